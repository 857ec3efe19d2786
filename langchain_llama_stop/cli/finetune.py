"""`llama-stop finetune`: teach a model to end its answers, or show what it would be taught."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, fields
from typing import Any

from langchain_llama_stop.cli.console import load
from langchain_llama_stop.cli.flags import add_command, add_model_flag, add_quantization_flag
from langchain_llama_stop.training.options import FinetuneOptions

PURPOSE = "Teach a model to end its answers: QLoRA on answers that end by EOS."
_EPILOG = """
examples:
  llama-stop finetune timdettmers/openassistant-guanaco --model meta-llama/Llama-2-7b-chat-hf
  llama-stop finetune answers.jsonl --max-new-tokens 128 --output-dir adapter
  llama-stop finetune answers.jsonl --show 3
  llama-stop finetune --self-distil prompts.jsonl --output-dir adapter

A row of data is a JSON object with "text" ("### Human: ... ### Assistant: ..."), "prompt" and
"completion", or "messages". Afterwards: llama-stop ask --adapter adapter "your question".
"""


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = add_command(commands, "finetune", run_finetune, PURPOSE, _EPILOG)
    parser.add_argument("data", nargs="?", help="JSONL file, or id of a data set on the hub")
    add_model_flag(parser)
    parser.add_argument(
        "--output-dir", default="adapter", help="new folder for the adapter (default: %(default)s)"
    )
    parser.add_argument(
        "--self-distil",
        metavar="PROMPTS",
        help="instead of data: train on the model's own answers to these that landed",
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument(
        "--show", type=int, metavar="N", help="print N rows as they would be trained on, and end"
    )
    for field in fields(FinetuneOptions):
        default: Any = field.default
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=type(default),
            default=default,
            metavar="N",
            help=f"{field.metadata['help']} (default: %(default)s)",
        )
    add_quantization_flag(parser)


def run_finetune(args: argparse.Namespace) -> None:
    """Trains an adapter, or prints rows of data for `--show`."""
    names = [field.name for field in fields(FinetuneOptions)]
    # Made here, so that wrong values are refused before anything is loaded.
    options = FinetuneOptions(**{name: getattr(args, name) for name in names})
    if args.show is not None:
        _show(args, options)
        return
    from langchain_llama_stop.training.finetune import finetune

    report = finetune(
        args.model,
        args.data,
        args.output_dir,
        self_distil=args.self_distil,
        quantization=None if args.quantization == "none" else args.quantization,
        resume=args.resume,
        progress=_print_stage,
        **asdict(options),
    )
    print(f"\n{report.table()}\n")
    print(f"The adapter is in {args.output_dir}, with a model card, report.json and report.png.")
    print(f'Next: llama-stop ask --model {args.model} --adapter {args.output_dir} "your question"')


def _print_stage(stage: str) -> None:
    """Prints a line: the training's own bar comes between these."""
    print(f"{stage} ...", file=sys.stderr, flush=True)


def _show(args: argparse.Namespace, options: FinetuneOptions) -> None:
    """Prints rows as they would be trained on, with the supervised parts in bold."""
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
    pipeline: Any = load(args.model, args.quantization, None, _print_stage)
    examples = encode_conversations(pipeline, talks, options)
    console = Console(soft_wrap=True, highlight=False)
    for number, example in enumerate(examples[: args.show], start=1):
        console.rule(f"row {number}, {len(example.ids)} tokens")
        for text, supervised in supervised_pieces(pipeline.tokenizer, example):
            part = Text(f"▶{text}◀" if supervised else text, "bold" * supervised)
            console.print(part, end="")
        console.print()
    console.rule()
    console.print(
        f"{len(examples):,} rows, {options.held_out:,} of them to be held out; "
        f"{len(talks) - len(examples):,} others are too long. The loss is on what stands between "
        "▶ and ◀. Nothing was trained: leave out --show for that.",
        markup=False,
    )
