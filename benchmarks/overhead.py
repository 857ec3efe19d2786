"""What our code costs per step and per call, beside others: `make bench-overhead`.

Microseconds per call of a logits processor, at two vocabularies and two batch sizes, outside and
inside the landing zone; and `LlamaStopLLM` on the demo model over the same tokens from bare
`model.generate`, alternating, as a ratio. Nothing here is a test: figures depend on the machine.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from transformers import ExponentialDecayLengthPenalty, LogitsProcessor

from langchain_llama_stop import (
    EosReward,
    EosTokenRewardLogitsProcessor,
    LlamaStopLLM,
    load_pipeline,
)
from langchain_llama_stop.ending.landing import Landing
from langchain_llama_stop.ending.logits_processor import InPlaceEosReward

VOCABULARIES, BATCHES = (32_000, 128_000), (1, 32)
PROMPT, BUDGET = 64, 128
AIM_OUTSIDE, AIM_INSIDE = 3.0, 150.0


class ListIndexing(LogitsProcessor):
    """The article's rule as it is often written: every other id listed, all scores rewritten."""

    def __init__(self, eos: int, max_length: int) -> None:
        """Takes the EOS id and the length of prompt and answer."""
        self.eos, self.max_length = eos, max_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Rewards EOS from 80% of the length on."""
        ratio = input_ids.shape[1] / self.max_length
        if ratio > 0.8:
            others = [i for i in range(scores.shape[1]) if i != self.eos]
            scores = scores.clone()
            scores[:, others] = (
                scores[:, others] * 10 * ratio * torch.exp(-torch.sign(scores[:, others]))
            )
            scores[:, self.eos] = 100 * ratio
        return scores


class Look:
    """Landing in hindsight, the default of `LlamaStopLLM`: for a batch, up to its ends.

    Unlike the other cases it is one call per zone: the texts are judged at the end of the budget.
    As in decoding, the answers are lists, and greedy decoding has already chosen the best tokens.
    """

    def __init__(self, tokenizer, rows: torch.Tensor, scores: torch.Tensor) -> None:
        """Takes the rows at their whole length, (batch, PROMPT + BUDGET), and the scores."""
        self.tokenizer, self.scores = tokenizer, scores
        self.answers = rows[:, PROMPT:].tolist()
        self.best = scores.amax(dim=1).tolist()

    def __call__(self) -> None:
        """Looks at all steps of the zone, then ends all rows."""
        for row, ids in enumerate(self.answers):
            landing = Landing(
                self.tokenizer,
                prompt=[],
                max_new_tokens=BUDGET,
                eos_token_ids=[self.tokenizer.eos_token_id],
                reward=EosReward(),
            )
            for step in range(landing.zone, BUDGET):
                landing.record(ids[:step], self.scores[row : row + 1], self.best[row])
            landing.end(ids)


def microseconds(call: Callable[[], object], seconds: float = 0.4) -> float:
    """Median of repeated calls, in microseconds; short calls are timed in groups."""
    call()
    begin = time.perf_counter()
    call()
    group = max(1, int(0.002 / max(1e-7, time.perf_counter() - begin)))
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        for _ in range(group):
            call()
        times.append((time.perf_counter() - begin) / group)
    return statistics.median(times) * 1e6


TEXT = """Paris is the capital of France and one of the most visited cities in the world. Most \
people come for the museums, the river and the food. If you have a day only, begin early at the \
Louvre, walk through the gardens to the Orangerie, and have lunch on the left bank, where it is \
quieter. In the afternoon you can take a boat. Do you like old bookshops? There is a famous \
one near the cathedral, and many smaller ones (some of them hidden in courtyards) farther south. \
At night the tower is lit for five minutes at every full hour, which is best seen from the bridge. \
"""


def answer_rows(tokenizer, batch: int, length: int) -> torch.Tensor:
    """Prompts and answers of real sentences, (batch, length); each row starts elsewhere."""
    ids = tokenizer(TEXT * 20, add_special_tokens=False)["input_ids"]
    starts = [(row * 37) % 500 for row in range(batch)]
    return torch.tensor([[ids[0]] * PROMPT + ids[s : s + length] for s in starts])


def finish(ours: EosTokenRewardLogitsProcessor, steps: list[torch.Tensor], eos: int) -> None:
    """Pads each row after the step at which its end was decided, as decoding does."""
    ended = torch.zeros(len(steps[0]), dtype=torch.bool)
    for ids in steps:
        decided = [n.decided for n in ours.nudges(ids)]
        ids[ended, -1] = eos
        ended |= torch.tensor(decided)


def processors(tokenizer) -> list[dict]:
    """Times each processor outside and inside the zone; inside, the mean over all of its steps."""
    results = []
    eos = tokenizer.eos_token_id
    for vocabulary in VOCABULARIES:
        for batch in BATCHES:
            scores = torch.randn(batch, vocabulary)
            lengths = {"max_new_tokens": BUDGET, "prompt_length": PROMPT}
            ours = EosTokenRewardLogitsProcessor(tokenizer, **lengths)
            in_place = InPlaceEosReward(tokenizer, **lengths)
            decay = ExponentialDecayLengthPenalty((PROMPT, 1.1), eos, PROMPT)
            look = Look(tokenizer, answer_rows(tokenizer, batch, BUDGET), scores)
            naive = ListIndexing(eos, PROMPT + BUDGET)
            zone = range(ours.reward.zone(BUDGET), BUDGET)
            cases = {
                "ours, outside the landing zone": (in_place, range(1, zone.start)),
                "ours, inside, in hindsight": (look, zone),
                "ours, inside, as the text comes": (in_place, zone),
                "ours, inside, scores copied": (ours, zone),
                "transformers' exponential decay": (decay, zone),
                "list indexing": (naive, range(126, 128)),
            }
            for name, (processor, steps) in cases.items():
                rows = [answer_rows(tokenizer, batch, step) for step in steps]
                finish(ours, rows, eos)
                if isinstance(processor, Look):
                    us = microseconds(processor)
                else:
                    us = microseconds(lambda p=processor, r=rows, s=scores: [p(i, s) for i in r])
                results.append(
                    {
                        "processor": name,
                        "vocabulary": vocabulary,
                        "batch": batch,
                        "us": us / len(rows),
                    }
                )
    return results


def overhead(pipeline, repeats: int) -> dict[str, list[float]]:
    """Ratios to bare `model.generate` for the same 48 tokens, each pair timed back to back."""
    tokenizer, model = pipeline.tokenizer, pipeline.model
    prompt = "The history of Paris begins"
    inputs = tokenizer(prompt, return_tensors="pt")
    llm = LlamaStopLLM(pipeline=pipeline, max_new_tokens=48, temperature=0)

    def bare() -> object:
        return model.generate(**inputs, max_new_tokens=48, min_new_tokens=48, do_sample=False)

    fixed = {"pipeline_kwargs": {"min_new_tokens": 48}}
    calls = {
        "invoke, eos_reward off": lambda: llm.invoke(prompt, eos_reward=False, **fixed),
        "invoke": lambda: llm.invoke(prompt, **fixed),
        "invoke, 2 stop strings": lambda: llm.invoke(prompt, stop=["\nObs:", "XYZ"], **fixed),
        "stream": lambda: list(llm.stream(prompt, **fixed)),
    }
    ratios: dict[str, list[float]] = {name: [] for name in calls}
    for call in (bare, *calls.values()):
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            pair = []
            for work in (bare, call, call, bare):  # both orders, so that drift cancels out
                begin = time.perf_counter()
                work()
                pair.append(time.perf_counter() - begin)
            ratios[name].append((pair[1] + pair[2]) / (pair[0] + pair[3]))
    return ratios


def main() -> None:
    """Runs everything and prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="also write the figures as JSON")
    parser.add_argument("--repeats", type=int, default=5, help="pairs per ratio (default 5)")
    args = parser.parse_args()
    console = Console()
    pipeline = load_pipeline("demo", dtype="float32")
    steps = processors(pipeline.tokenizer)
    table = Table(title=f"µs per step (aim: {AIM_OUTSIDE:g} outside, {AIM_INSIDE:g} inside)")
    table.add_column("processor")
    sizes = [(v, b) for v in VOCABULARIES for b in BATCHES]
    for vocabulary, batch in sizes:
        table.add_column(f"{vocabulary // 1000}k x {batch}", justify="right")
    for name in dict.fromkeys(s["processor"] for s in steps):
        row = [s["us"] for s in steps if s["processor"] == name]
        table.add_row(name, *(f"{us:,.1f}" for us in row))
    console.print(table)
    ratios = overhead(pipeline, args.repeats)
    table = Table(title="time over bare model.generate, 48 tokens, demo model in float32")
    for column in ("path", "median", "min", "max"):
        table.add_column(column, justify="left" if column == "path" else "right")
    for name, values in ratios.items():
        figures = (statistics.median(values), min(values), max(values))
        table.add_row(name, *(f"{figure:.3f}" for figure in figures))
    console.print(table)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    console.print(machine)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"machine": machine, "steps": steps, "ratios": ratios}, file, indent=1)


if __name__ == "__main__":
    main()
