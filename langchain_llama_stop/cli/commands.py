"""`llama-stop finetune` and `llama-stop diagnose`."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, fields
from typing import Any

from langchain_llama_stop.cli.console import load, progress


def finetune(args: argparse.Namespace) -> None:
    """Teaches a model to end its answers, or shows what it would be taught.

    Args:
        args: As the command line has read them.
    """
    from langchain_llama_stop.training.options import FinetuneOptions

    options = {field.name: getattr(args, field.name) for field in fields(FinetuneOptions)}
    settings = FinetuneOptions(**options)  # wrong values are said before anything is loaded
    if args.show is not None:
        _show(args, settings)
        return
    from langchain_llama_stop.training.finetune import finetune

    report = finetune(
        args.model,
        args.data,
        args.output_dir,
        self_distil=args.self_distil,
        quantization=None if args.quantization == "none" else args.quantization,
        resume=args.resume,
        progress=_tell,
        **options,
    )
    print(f"\n{report.table()}\n")
    print(f"The adapter is in {args.output_dir}, with a model card, report.json and report.png.")
    print(f'Next: llama-stop ask --model {args.model} --adapter {args.output_dir} "your question"')


def _tell(stage: str) -> None:
    """A line for each stage: the bar of the training stands between them."""
    print(f"{stage} ...", file=sys.stderr, flush=True)


def _show(args: argparse.Namespace, settings: Any) -> None:
    """Prints rows as they would be trained on, what is supervised in bold."""
    from rich.console import Console
    from rich.text import Text

    from langchain_llama_stop.training.data import read_rows, to_conversations
    from langchain_llama_stop.training.examples import supervised_pieces
    from langchain_llama_stop.training.prepare import encode_conversations

    if not args.data:
        raise ValueError("`--show` needs data: a JSONL file, or the id of a data set on the hub.")
    if args.show < 1:
        raise ValueError(f"`--show` has to be a whole number of 1 or more, but is {args.show}.")
    talks = to_conversations(read_rows(args.data))
    pipeline: Any = load(args.model, args.quantization, None, _tell)
    examples = encode_conversations(pipeline, talks, settings)
    console = Console(soft_wrap=True, highlight=False)
    for number, example in enumerate(examples[: args.show], start=1):
        console.rule(f"row {number}, {len(example.ids)} tokens")
        for text, supervised in supervised_pieces(pipeline.tokenizer, example):
            shown = Text(f"▶{text}◀" if supervised else text, "bold" * supervised)
            console.print(shown, end="")
        console.print()
    console.rule()
    console.print(
        f"{len(examples):,} rows, {settings.held_out:,} of them to be held out; "
        f"{len(talks) - len(examples):,} others are too long. The loss is on what stands between "
        "▶ and ◀. Nothing was trained: leave out --show for that.",
        markup=False,
    )


def diagnose(args: argparse.Namespace) -> int:
    """Prints findings about a model.

    Args:
        args: As the command line has read them.

    Returns:
        1 if there is an error among them, else 0.
    """
    from langchain_llama_stop.options import GenerationOptions

    names = ("max_new_tokens", "repetition_penalty", "stop")
    options = {name: value for name in names if (value := getattr(args, name)) is not None}
    GenerationOptions.parse(options)
    with progress(transient=True) as tell:
        pipeline = load(args.model, args.quantization, args.adapter, tell)
        from langchain_llama_stop.diagnosis.diagnose import diagnose

        found = diagnose(pipeline, args.prompt, progress=tell, **options)
    if args.json:
        print(json.dumps([asdict(finding) for finding in found], indent=1, ensure_ascii=False))
    else:
        _print_findings(found)
    return int(any(finding.severity == "error" for finding in found))


def _print_findings(found: list[Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    colours = {"error": "bold red", "warning": "yellow", "info": "green"}
    for finding in found:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column()
        table.add_row(Text(finding.severity, colours[finding.severity]), Text(finding.code))
        lines = {"seen": finding.message, "why": finding.why, "fix": finding.fix}
        for name, line in lines.items():
            if line:
                table.add_row(Text(f"  {name}", "dim"), Text(line))
        console.print(table, "")
    serious = sum(finding.severity == "error" for finding in found)
    count = "1 finding" if len(found) == 1 else f"{len(found)} findings"
    console.print(f"{count}, {serious} of them serious.")
