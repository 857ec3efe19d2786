"""`llama-stop demo`: one question, answered by the plain pipeline and by `LlamaStopLLM`."""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.cli.console import chat_prompt, load, require_text, show_stages
from langchain_llama_stop.cli.flags import add_command, add_option_flag, add_quantization_flag

if TYPE_CHECKING:
    import torch
    from rich.table import Table
    from transformers import TextGenerationPipeline

PURPOSE = "Show one question answered by the plain pipeline and by LlamaStopLLM, side by side."
_EPILOG = """\
examples:
  llama-stop demo
  llama-stop demo --question "How do I bake bread?" --max-new-tokens 64
  llama-stop demo --svg demo.svg
  llama-stop demo --agent                     what an agent invents without its stop string
"""
_QUESTION, _AGENT_QUESTION = "What can I do in Paris?", "When does the Louvre open?"
_SYSTEM = "You are a helpful travel guide."
_PLAIN, _OURS = "Plain HuggingFacePipeline", "LlamaStopLLM"
_STOP = "\nObservation:"
_AGENT_PROMPT = """\
Answer each question with the help of the tool opening_hours.

Question: When does the Orsay open?
Thought: I need the opening hours.
Action: opening_hours
Action Input: Orsay
Observation: 9:30 to 18:00, closed on Monday
Thought: I now know the final answer.
Final Answer: The Orsay opens at 9:30.

Question: {question}
Thought: I"""  # with an example, for a small model; a space at the end would confuse it


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = add_command(commands, "demo", run_demo, PURPOSE, _EPILOG)
    parser.add_argument("--question", help=f"what to ask (default: {_QUESTION})")
    parser.add_argument(
        "--agent",
        action="store_true",
        help=f"show a ReAct agent's step with a stop string (default question: {_AGENT_QUESTION})",
    )
    add_option_flag(parser, "max_new_tokens", 96)
    add_quantization_flag(parser)
    parser.add_argument("--svg", metavar="FILE", help="write the table to FILE as a picture, too")


def run_demo(args: argparse.Namespace) -> None:
    """Answers one question twice, and prints the answers side by side."""
    from rich.console import Console

    from langchain_llama_stop.options import GenerationOptions

    question = args.question
    if question is None:
        question = _AGENT_QUESTION if args.agent else _QUESTION
    require_text(question)
    GenerationOptions(max_new_tokens=args.max_new_tokens)  # refuses wrong values before loading
    stop = [_STOP] if args.agent else None
    with show_stages() as begin_stage:
        pipeline = load("demo", args.quantization, None, begin_stage)
        if args.agent:
            prompt = _AGENT_PROMPT.format(question=question)
        else:
            prompt = chat_prompt(pipeline.tokenizer, question, _SYSTEM)
        begin_stage("The plain pipeline answers")
        plain = _plain_answer(pipeline, prompt, args.max_new_tokens, stop)
        begin_stage("LlamaStopLLM answers")
        ours = _llama_stop_answer(pipeline, prompt, args.max_new_tokens, stop)
    if args.agent:
        table = _agent_table(question, plain, ours)
    else:
        trimmed = _trimmed_answer(pipeline.tokenizer, plain)
        table = _table(question, args.max_new_tokens, plain, trimmed, ours)
    console = Console()
    console.print(table)
    console.print(
        'Next: [bold]llama-stop ask "your question"[/]; --help tells of stops and other models.'
        "\nIn Python: README.md, and in examples/ a chain, RAG and an agent."
    )
    if args.svg:
        picture = Console(record=True, width=101 if args.agent else 121, file=io.StringIO())
        picture.print(table)
        picture.save_svg(args.svg, title="llama-stop demo" + " --agent" * args.agent)
        console.print(f"The table is in {args.svg}.", markup=False)


@dataclass(frozen=True)
class _Column:
    """One column of the demo's tables."""

    name: str
    text: str
    tokens: int
    finish_reason: str
    eos_source: str
    stop_reason: str = "not given"

    @property
    def ends(self) -> bool:
        """Whether the answer reads as finished: for the model, or for the judge of all columns."""
        from langchain_llama_stop.ending.boundaries import may_end

        return self.eos_source == "model" or may_end(self.text, following="")


def _plain_answer(
    pipeline: TextGenerationPipeline, prompt: str, budget: int, stop: list[str] | None
) -> _Column:
    """The answer of LangChain's own class on the same pipeline."""
    import torch
    from langchain_huggingface import HuggingFacePipeline

    from langchain_llama_stop.engine.config import eos_token_ids
    from langchain_llama_stop.options import GenerationOptions

    token_ids: list[int] = []

    def count(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """A stopping criterion that never stops: the pipeline offers no other way to count."""
        token_ids.append(int(input_ids[0, -1]))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    text = HuggingFacePipeline(pipeline=pipeline).invoke(
        prompt,
        stop=stop,
        pipeline_kwargs={
            "max_new_tokens": budget,
            "do_sample": False,
            "return_full_text": False,
            "stopping_criteria": [count],
        },
    )
    cut = token_ids[-1] not in eos_token_ids(pipeline, GenerationOptions())
    return _Column(
        name=_PLAIN,
        text=text,
        tokens=len(token_ids),
        finish_reason=f"not given ({'length' if cut else 'stop'})",
        eos_source="none" if cut else "model",
    )


def _trimmed_answer(tokenizer: Any, plain: _Column) -> _Column:
    """The plain answer, cut back to its last true end if the model has not ended it."""
    from langchain_llama_stop.ending.boundaries import last_end

    text = plain.text if plain.eos_source == "model" else plain.text[: last_end(plain.text, True)]
    tokens = plain.tokens
    if text != plain.text:
        tokens = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    return _Column("Trimmed afterwards", text, tokens, plain.finish_reason, plain.eos_source)


def _llama_stop_answer(
    pipeline: TextGenerationPipeline, prompt: str, budget: int, stop: list[str] | None
) -> _Column:
    """The answer of `LlamaStopLLM`."""
    from langchain_llama_stop.llms import LlamaStopLLM

    llm = LlamaStopLLM(pipeline=pipeline, max_new_tokens=budget, temperature=0)
    generation = llm.generate([prompt], stop=stop).generations[0][0]
    info = generation.generation_info
    assert info is not None  # LlamaStopLLM always sets it
    return _Column(
        name=_OURS,
        text=generation.text,
        tokens=info["usage_metadata"]["output_tokens"],
        finish_reason=info["finish_reason"],
        eos_source=info["eos_source"] or "none",
        stop_reason=repr(info["stop_reason"]),
    )


def _table(question: str, budget: int, *answers: _Column) -> Table:
    """The answers side by side."""
    from rich.text import Text

    # On a line of their own: after the text they might be wrapped.
    cut, end = ("\n✂ cut here", "bold red"), ("\n✓ ends here", "bold green")
    table = _empty_table(f"“{question}” in {budget} tokens", [(a.name, a.ends) for a in answers])
    table.add_row("answer", *(Text.assemble(a.text, end if a.ends else cut) for a in answers))
    table.add_section()
    table.add_row("tokens used", *(f"{answer.tokens} of {budget}" for answer in answers))
    table.add_row("finish_reason", *(answer.finish_reason for answer in answers))
    table.add_row("eos_source", *(answer.eos_source for answer in answers))
    return table


def _agent_table(question: str, *answers: _Column) -> Table:
    """An agent's step side by side: what it says, and what it invents in its tool's place."""
    from rich.text import Text

    table = _empty_table(
        f"“{question}”: an agent's step, stop={[_STOP]}",
        [(a.name, _STOP not in a.text) for a in answers],
    )
    texts = []
    for answer in answers:
        said, stop, invented = answer.text.partition(_STOP)
        end = ("\n✂ all of this is invented", "bold red") if stop else ("\n✓ stops", "bold green")
        texts.append(Text.assemble("I", said, (stop + invented, "red"), end))
    table.add_row("answer", *texts)
    table.add_section()
    table.add_row("tokens", *(str(answer.tokens) for answer in answers))
    table.add_row("finish_reason", *(answer.finish_reason for answer in answers))
    table.add_row("stop_reason", *(answer.stop_reason for answer in answers))
    return table


def _empty_table(title: str, columns: list[tuple[str, bool]]) -> Table:
    """A table with a column of labels, and one for each (name, whether its answer is right)."""
    from rich.box import HORIZONTALS
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"),
        box=HORIZONTALS,  # vertical lines have gaps in the picture
        padding=(0, 1),
        expand=True,
    )
    table.add_column("", style="dim", no_wrap=True)
    for name, right in columns:
        table.add_column(name, ratio=1, header_style="green" if right else "red")
    return table
