"""The command line: `llama-stop demo`, `ask`, `chat`, `finetune` and `diagnose`.

Each command is one file with its purpose, its arguments (`add_parser`) and its run function
(`run_ask`, …), and one name in `_COMMANDS`. Heavy packages are imported inside functions, and the
arguments of a command are built only if it is named, so that `--help` is instant.
"""

from __future__ import annotations

import _thread
import argparse
import importlib
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence

from langchain_llama_stop._version import __version__

_COMMANDS = ("demo", "ask", "chat", "finetune", "diagnose")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments without the program's name. None: those of the process.

    Returns:
        The exit code: 0; 1 if `diagnose` has found an error; 2 after an error, which is one line
        on stderr; 130 after Ctrl-C; 141 if the reader of stdout has closed it.

    Raises:
        SystemExit: From argparse, for `--help`, `--version` and arguments it cannot read.
    """
    before, sys.unraisablehook = sys.unraisablehook, _lose_no_interrupt
    try:
        code = _run(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        # Python flushes stdout once more at its exit, which must not fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        from langchain_llama_stop.loading.hub import causes

        if any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):
            return _interrupted()  # transformers' imports turn it into another error
        if not isinstance(error, ValueError | OSError | ImportError):
            raise
        print(f"llama-stop: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    finally:
        sys.unraisablehook = before
    return code


def _interrupted() -> int:
    """Ends a command after Ctrl-C; returns the exit code."""
    if threading.current_thread() is threading.main_thread():
        # A second one ends the process at once, without a traceback of what it interrupts.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    print(file=sys.stderr)  # so that the shell's prompt begins on a new line
    return 130


def _lose_no_interrupt(ignored: sys.UnraisableHookArgs) -> None:
    """Raises a Ctrl-C again that has come in a finalizer, where Python would ignore it."""
    if issubclass(ignored.exc_type, KeyboardInterrupt):
        threading.Timer(0.01, _thread.interrupt_main).start()  # not in here, where it is lost too
    else:
        sys.__unraisablehook__(ignored)


def _run(argv: Sequence[str] | None) -> int:
    """Reads the arguments, and runs the command."""
    args = build_parser(sys.argv[1:] if argv is None else argv).parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model may write characters that the terminal's encoding lacks.
            stream.reconfigure(errors="replace")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):  # read when these are imported
        os.environ.setdefault(name, "error")
    # Threads that spin while they wait take the cores from each other on a busy machine: decoding
    # took up to ten times as long without this.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return args.run(args) or 0


def build_parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """Describes the arguments; what the parser reads has `run`, the function to call with it.

    Args:
        argv: The arguments to be read: commands that are not among them stay without arguments of
            their own. None: all commands have them.
    """
    parser = argparse.ArgumentParser(
        prog="llama-stop",
        description="Ask local Llama models for answers that end properly.",
        epilog="Start with `llama-stop demo`: it runs offline, on a small model that comes along.",
    )
    parser.add_argument("--version", action="version", version=f"llama-stop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in _COMMANDS:
        command = importlib.import_module(f"{__name__}.{name}")
        if argv is None or name in argv:
            command.add_parser(commands)
        else:
            commands.add_parser(name, help=command.PURPOSE)
    return parser
