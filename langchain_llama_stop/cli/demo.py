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

PURPOSE = "Show one question answered twice: by the plain pipeline and by LlamaStopLLM."
_EPILOG = """\
examples:
  llama-stop demo
  llama-stop demo --question "How do I bake bread?" --max-new-tokens 64
  llama-stop demo --svg demo.svg
"""
_QUESTION = "What can I do in Paris?"
_SYSTEM = "You are a helpful travel guide."


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = add_command(commands, "demo", run_demo, PURPOSE, _EPILOG)
    parser.add_argument("--question", default=_QUESTION, help="what to ask (default: %(default)s)")
    add_option_flag(parser, "max_new_tokens", 96)
    add_quantization_flag(parser)
    parser.add_argument("--svg", metavar="FILE", help="write the table to FILE as a picture, too")


def run_demo(args: argparse.Namespace) -> None:
    """Answers one question twice, and prints both answers side by side."""
    from rich.console import Console

    from langchain_llama_stop.options import GenerationOptions

    require_text(args.question)
    GenerationOptions(max_new_tokens=args.max_new_tokens)  # refuses wrong values before loading
    with show_stages() as begin_stage:
        pipeline = load("demo", args.quantization, None, begin_stage)
        prompt = chat_prompt(pipeline.tokenizer, args.question, _SYSTEM)
        begin_stage("The plain pipeline answers")
        plain = _plain_answer(pipeline, prompt, args.max_new_tokens)
        begin_stage("LlamaStopLLM answers")
        ours = _llama_stop_answer(pipeline, prompt, args.max_new_tokens)
    table = _table(args.question, args.max_new_tokens, plain, ours)
    console = Console()
    console.print(table)
    console.print(
        'Next: [bold]llama-stop ask "your question"[/]; --help tells of stops and other models.'
        "\nIn Python: README.md, and in examples/ a chain, RAG and an agent."
    )
    if args.svg:
        picture = Console(record=True, width=101, file=io.StringIO())
        picture.print(table)
        picture.save_svg(args.svg, title="llama-stop demo")
        console.print(f"The table is in {args.svg}.", markup=False)


@dataclass(frozen=True)
class _Column:
    """One column of the demo's table."""

    name: str
    text: str
    tokens: int
    cut: bool  # by the token limit
    finish_reason: str
    eos_source: str


def _plain_answer(pipeline: TextGenerationPipeline, prompt: str, budget: int) -> _Column:
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
        pipeline_kwargs={
            "max_new_tokens": budget,
            "do_sample": False,
            "return_full_text": False,
            "stopping_criteria": [count],
        },
    )
    cut = token_ids[-1] not in eos_token_ids(pipeline, GenerationOptions())
    return _Column(
        name="Plain HuggingFacePipeline",
        text=text,
        tokens=len(token_ids),
        cut=cut,
        finish_reason=f"{'length' if cut else 'stop'} (the pipeline does not say)",
        eos_source="none" if cut else "model",
    )


def _llama_stop_answer(pipeline: TextGenerationPipeline, prompt: str, budget: int) -> _Column:
    """The answer of `LlamaStopLLM`."""
    from langchain_llama_stop.llms import LlamaStopLLM

    llm = LlamaStopLLM(pipeline=pipeline, max_new_tokens=budget, temperature=0)
    generation = llm.generate([prompt]).generations[0][0]
    info = generation.generation_info
    assert info is not None  # LlamaStopLLM always sets it
    return _Column(
        name="LlamaStopLLM",
        text=generation.text,
        tokens=info["usage_metadata"]["output_tokens"],
        cut=info["finish_reason"] == "length",
        finish_reason=info["finish_reason"],
        eos_source=info["eos_source"] or "none",
    )


def _table(question: str, budget: int, *answers: _Column) -> Table:
    """The answers side by side."""
    from rich.box import HORIZONTALS
    from rich.table import Table
    from rich.text import Text

    from langchain_llama_stop.ending.boundaries import may_end

    # On a line of their own: after the text they might be wrapped.
    cut, end = ("\n✂ cut here", "bold red"), ("\n✓ ends here", "bold green")
    texts = [
        Text.assemble(a.text, end if not a.cut and may_end(a.text, following="") else cut)
        for a in answers
    ]
    table = Table(
        title=Text(f"“{question}” in {budget} tokens", style="bold"),
        box=HORIZONTALS,  # vertical lines have gaps in the picture
        padding=(0, 1),
        expand=True,
    )
    table.add_column("", style="dim", no_wrap=True)
    for answer in answers:
        table.add_column(answer.name, ratio=1, header_style="red" if answer.cut else "green")
    table.add_row("answer", *texts)
    table.add_section()
    table.add_row("tokens used", *(f"{answer.tokens} of {budget}" for answer in answers))
    table.add_row("finish_reason", *(answer.finish_reason for answer in answers))
    table.add_row("eos_source", *(answer.eos_source for answer in answers))
    return table
