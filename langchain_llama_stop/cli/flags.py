"""Flags that several commands have, and how they are read."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

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


_NO_FLAG = ("logprobs", "top_logprobs", "batch_size", "max_calls", "prefix_cache")
"""Options that make no difference to one question whose text is printed."""
_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}


def add_option_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds a flag for each option of the table that can be written in a shell.

    Args:
        parser: The command's parser.
        **defaults: Defaults that the command has of its own.
    """
    from langchain_llama_stop.options import OPTIONS

    for name in OPTIONS:
        if name not in _NO_FLAG:
            add_option_flag(parser, name, defaults.get(name))


def add_option_flag(
    parser: argparse.ArgumentParser, name: str, default: Any = None, *, note: str = ""
) -> None:
    """Adds the flag of one option, if its type is one that a shell can write.

    Args:
        parser: The command's parser.
        name: The option's name.
        default: The command's own default; None leaves the option out, as if it was not given.
        note: What the help text says first.
    """
    from langchain_llama_stop.options import OPTIONS

    option = OPTIONS[name]
    flag = "--" + name.replace("_", "-")
    text = (
        note
        + re.sub(r" None: .*", "", option.doc).replace("%", "%%")
        + (" (default: %(default)s)" if default is not None else "")
    )
    parts = get_args(option.annotation) or (option.annotation,)
    scalar = next((kind for kind in (int, float, str) if kind in parts), None)
    if bool in parts or option.annotation is bool:
        switch = option.default is True
        if switch:
            flag, text = f"--no-{flag[2:]}", f"Turn off what is on by default. {text}"
        how: dict[str, Any] = {"action": "store_const", "const": not switch, "dest": name}
    elif get_origin(option.annotation) is Literal:
        how = {"choices": parts}
    elif list[str] in parts:
        how = {"action": "append", "type": _unescape, "metavar": "STR"}
        text += r" Repeatable; \n and \t in it are newline and tab."
    elif scalar:
        how = {"type": scalar, "metavar": _METAVARS[scalar]}
    else:
        return
    parser.add_argument(flag, default=default, help=text, **how)


def options_from(args: argparse.Namespace) -> GenerationOptions:
    """Reads the flags of options."""
    from langchain_llama_stop.options import OPTIONS, GenerationOptions

    values = {name: getattr(args, name, None) for name in OPTIONS}
    return GenerationOptions.parse({k: v for k, v in values.items() if v is not None})


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
