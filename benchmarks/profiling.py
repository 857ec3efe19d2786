"""Where the time of a decode step goes: `make bench-profile`.

Timers around the parts of a step while `LlamaStopLLM` answers one prompt, or a batch of 8, with
two stop strings and the EOS reward: the forward pass, and what is ours. A few minutes.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import transformers
from measuring import arguments, load, machine, synchronize
from peers import passage

from langchain_llama_stop import LlamaStopLLM
from langchain_llama_stop.ending.landing import Landing
from langchain_llama_stop.ending.stopping_criteria import StopSequenceCriteria
from langchain_llama_stop.engine.batch import Batch
from langchain_llama_stop.engine.request import Request
from langchain_llama_stop.engine.scheduler import Scheduler
from langchain_llama_stop.engine.sequence import Sequence

PARTS: dict[str, tuple[Any, str]] = {
    "step": (Scheduler, "step"),
    "forward": (Batch, "forward"),
    "decode": (Request, "advance"),
    "stops": (StopSequenceCriteria, "__call__"),
    "criteria": (transformers.StoppingCriteriaList, "__call__"),
    "processors": (transformers.LogitsProcessorList, "__call__"),
    "take": (Sequence, "take"),
    "landing": (Landing, "record"),
    "land": (Landing, "end"),
}
"""What is timed; `step` holds `forward` and `decode`, the last the others."""


def timed(spent: dict[str, float], name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """The same call, with its seconds added up."""

    def run(*args: Any, **kwargs: Any) -> Any:
        synchronize()
        begin = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            synchronize()
            spent[name] += time.perf_counter() - begin

    return run


def profile(llm: LlamaStopLLM, prompts: list[str]) -> tuple[dict[str, float], float, int]:
    """Seconds of each part, of all calls, and the steps."""
    spent: dict[str, float] = defaultdict(float)
    steps = [0]
    hook = llm.pipeline.model.register_forward_hook(lambda *_: steps.append(steps.pop() + 1))
    originals = {name: getattr(owner, part) for name, (owner, part) in PARTS.items()}
    for name, (owner, part) in PARTS.items():
        setattr(owner, part, timed(spent, name, originals[name]))
    try:
        begin = time.perf_counter()
        llm.generate(prompts)
        whole = time.perf_counter() - begin
    finally:
        for name, (owner, part) in PARTS.items():
            setattr(owner, part, originals[name])
        hook.remove()
    return spent, whole, steps[0]


def table(spent: dict[str, float], whole: float, steps: int) -> str:
    """A Markdown table of the parts."""
    inside = spent["decode"] - sum(spent[name] for name in ("criteria", "processors", "take"))
    parts = {
        "forward pass (transformers, torch)": spent["forward"],
        "stop strings": spent["stops"],
        "criteria besides them": spent["criteria"] - spent["stops"],
        "logits processors": spent["processors"],
        "landing: noting places": spent["landing"],
        "landing: the ends": spent["land"],
        "sequences take their tokens": spent["take"] - spent["landing"] - spent["land"],
        "scores, choice, tokens": inside,
        "scheduling": spent["step"] - spent["forward"] - spent["decode"],
        "per call: options, prompts, texts": whole - spent["step"],
    }
    lines = ["| part | µs per step | share |", "|---|--:|--:|"]
    for name, seconds in parts.items():
        lines.append(f"| {name} | {seconds / steps * 1e6:,.0f} | {seconds / whole:.2%} |")
    return "\n".join([*lines, f"| all | {whole / steps * 1e6:,.0f} | 100% |"])


def main() -> None:
    """Profiles one prompt and a batch of 8."""
    parser: argparse.ArgumentParser = arguments(__doc__.split("\n")[0], ["1", "8"])
    args = parser.parse_args()
    pipeline = load(args)
    tokens = 16 if args.quick else 128
    llm = LlamaStopLLM(
        pipeline=pipeline,
        temperature=0,
        max_new_tokens=tokens,
        prefix_cache=0,
        stop=["\nObs:", "##"],
    )
    llm.invoke("The first pass sets things up.", max_new_tokens=2)
    print(machine(args))
    for count in map(int, args.only):
        prompts = [passage(pipeline.tokenizer, 40, start) for start in range(count)]
        print(f"\n{count} of {tokens} tokens:\n\n{table(*profile(llm, prompts))}")


if __name__ == "__main__":
    main()
