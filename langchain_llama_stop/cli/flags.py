"""Flags that several commands have, and how they are read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.loading.quantization import QUANTIZATIONS

if TYPE_CHECKING:
    from langchain_llama_stop.options import GenerationOptions


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    purpose: str,
    epilog: str,
) -> argparse.ArgumentParser:
    """Adds a command to the command line; what its parser reads is given to `run`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def add_option_flags(parser: argparse.ArgumentParser) -> None:
    """Adds flags for generation options."""
    add_budget_flag(parser, 256)
    add_stop_flag(parser)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    parser.add_argument("--seed", type=int, help="make sampling repeatable (default: random)")
    parser.add_argument(
        "--no-eos-reward",
        dest="eos_reward",
        action="store_false",
        help="leave the model alone when the budget runs out (default: land at a sentence end)",
    )


def options_from(args: argparse.Namespace) -> GenerationOptions:
    """Reads the flags of `add_option_flags`."""
    from langchain_llama_stop.options import GenerationOptions

    names = ("max_new_tokens", "temperature", "seed", "stop", "eos_reward")
    return GenerationOptions.parse({name: getattr(args, name) for name in names})


def add_budget_flag(parser: argparse.ArgumentParser, default: int) -> None:
    """Adds `--max-new-tokens`."""
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=default,
        metavar="N",
        help="token budget of an answer (default: %(default)s)",
    )


def add_stop_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--stop`."""
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        type=_unescape,
        metavar="STR",
        help=r"end the answer before STR; repeatable; \n and \t in it are newline and tab",
    )


def add_model_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--model`."""
    parser.add_argument(
        "--model",
        default="demo",
        help='"demo", local folder, .gguf file or hub id (default: %(default)s)',
    )


def add_adapter_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--adapter`."""
    parser.add_argument("--adapter", help="PEFT adapter, folder or hub id, to put onto the model")


def add_quantization_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--quantization`."""
    entries = "; ".join(f"{entry.name}: {entry.help}" for entry in QUANTIZATIONS.values())
    parser.add_argument(
        "--quantization",
        choices=(*QUANTIZATIONS, "none"),
        default="nf4",
        help=f"how the weights are loaded. {entries}; none: as they are (default: %(default)s)",
    )


def _unescape(text: str) -> str:
    r"""Replaces \n, \t and \\ in a shell argument by newline, tab and backslash."""
    characters = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: characters[match[1]], text)
