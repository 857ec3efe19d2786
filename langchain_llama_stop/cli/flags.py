"""Flags that several commands have, and how they are read."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from langchain_llama_stop.loading.quantization import QUANTIZATIONS


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


_METAVARS: dict[Any, str] = {int: "N", float: "X", str: "TEXT"}


def add_option_flags(parser: argparse.ArgumentParser, **defaults: Any) -> None:
    """Adds a flag for each option of the table but objects.

    Args:
        parser: The command's parser.
        **defaults: Defaults that the command has of its own.
    """
    from langchain_llama_stop.options import OPTIONS

    for name, option in OPTIONS.items():
        if not option.is_object:
            add_option_flag(parser, name, defaults.get(name))


def add_option_flag(
    parser: argparse.ArgumentParser, name: str, default: Any = None, *, note: str = ""
) -> None:
    """Adds the flag of one option.

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
        how = {"action": "append", "type": unescape, "metavar": "STR"}
        text += r" Repeatable; \n and \t in it are newline and tab."
    elif list[int] in parts:
        how = {"action": "append", "type": int, "metavar": "N"}
        text += " Repeatable."
    elif name == "json_schema":
        how = {"type": _json_file, "metavar": "FILE"}
    elif dict[str, Any] in parts:
        how = {"type": _json_object, "metavar": "JSON"}
    else:
        how = {"type": scalar, "metavar": _METAVARS[scalar]}
    parser.add_argument(flag, default=default, help=text, **how)


def options_from(args: argparse.Namespace) -> dict[str, Any]:
    """Reads the flags of options: values by name, which are checked here already."""
    from langchain_llama_stop.options import OPTIONS, GenerationOptions

    values = {name: getattr(args, name, None) for name in OPTIONS}
    given = {name: value for name, value in values.items() if value is not None}
    GenerationOptions.parse(given)
    return given


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


def add_loading_flags(parser: argparse.ArgumentParser) -> None:
    """Adds all that says which model is loaded, and how."""
    add_model_flag(parser)
    add_adapter_flag(parser)
    add_quantization_flag(parser)
    parser.add_argument("--device", help='where the model goes: "cpu", "cuda:1", "auto", …')
    parser.add_argument("--dtype", help='type of what is not quantized: "bfloat16", …')
    parser.add_argument("--revision", help="branch, tag or commit on the hub")
    parser.add_argument(
        "--token", help="for gated models; others can see it in the list of processes: HF_TOKEN"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="let code that comes with the model run"
    )


def loading_from(args: argparse.Namespace) -> dict[str, Any]:
    """Reads the flags of `add_loading_flags`, as arguments of `load`."""
    given = {
        "device_map": args.device,
        "dtype": args.dtype,
        "revision": args.revision,
        "token": args.token,
        "trust_remote_code": args.trust_remote_code or None,
    }
    return {
        "model": args.model,
        "quantization": args.quantization,
        "adapter": args.adapter,
        **{name: value for name, value in given.items() if value is not None},
    }


def unescape(text: str) -> str:
    r"""Replaces \n, \t and \\ in a shell argument by newline, tab and backslash."""
    characters = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: characters[match[1]], text)


def _json_object(text: str) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"has to be JSON, but is {text!r}: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"has to be a JSON object, but is {text!r}")
    return value


def _json_file(name: str) -> dict[str, Any]:
    """Reads a file that holds a JSON object."""
    try:
        return _json_object(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(f"{name} cannot be read: {error}") from error
