"""The command line: `llama-stop demo`, `ask`, `finetune` and `diagnose`.

Everything heavy is imported inside the functions that need it, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from langchain_llama_stop._version import __version__
from langchain_llama_stop.cli.commands import diagnose, finetune
from langchain_llama_stop.cli.console import chat_prompt, load, progress, require_text
from langchain_llama_stop.cli.demo import QUESTION, demo

_DEMO_EPILOG = """\
examples:
  llama-stop demo
  llama-stop demo --question "How do I bake bread?" --max-new-tokens 64
  llama-stop demo --svg demo.svg
"""
_FINETUNE_EPILOG = """
examples:
  llama-stop finetune timdettmers/openassistant-guanaco --model meta-llama/Llama-2-7b-chat-hf
  llama-stop finetune answers.jsonl --max-new-tokens 128 --output-dir adapter
  llama-stop finetune answers.jsonl --show 3
  llama-stop finetune --self-distil prompts.jsonl --output-dir adapter

A row of data is a JSON object with "text" ("### Human: ... ### Assistant: ..."), "prompt" and
"completion", or "messages". Afterwards: llama-stop ask --adapter adapter "your question".
"""
_DIAGNOSE_EPILOG = """
examples:
  llama-stop diagnose meta-llama/Llama-3.2-1B-Instruct
  llama-stop diagnose demo --adapter adapter --json
  llama-stop diagnose ./my-model --prompt "Q: Why? A:" --max-new-tokens 128

The exit status is 1 if there is an error among the findings.
"""
_ASK_EPILOG = r"""
examples:
  llama-stop ask "What can I do in Paris?"
  llama-stop ask --max-new-tokens 64 --temperature 0.7 --seed 1 "Tell me a story."
  llama-stop ask --model meta-llama/Llama-2-7b-chat-hf --system "Be brief." "What is NF4?"
  cat prompt.txt | llama-stop ask --raw --stop "\nObservation:" -

The answer goes to stdout as it comes, everything else to stderr. The last line on stderr says how
it ended: finish_reason (stop, or length for an answer that the budget cut), stop_reason (the stop
string that ended it; None for EOS), eos_source (model, reward or forced; None without EOS).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments without the program's name. None: those of the process.

    Returns:
        The exit code: 0; 1 if `diagnose` has found an error; 2 after an error, which is one line
        on stderr; 130 after Ctrl-C; 141 when what reads stdout has closed it.

    Raises:
        SystemExit: From argparse, for `--help`, `--version` and arguments it cannot read.
    """
    args = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model may write what the terminal's encoding does not have.
            stream.reconfigure(errors="replace")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):  # read when these are imported
        os.environ.setdefault(name, "error")
    # Threads that spin while they wait take the cores from each other on a busy machine: without
    # this, decoding was seen to take ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = args.run(args)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the shell's prompt begins on a line of its own
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at its exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        print(f"llama-stop: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return code or 0


def build_parser() -> argparse.ArgumentParser:
    """Describes the arguments.

    Returns:
        The parser; what it parses has `run`, the command to call with it.
    """
    parser = argparse.ArgumentParser(
        prog="llama-stop",
        description="Ask local Llama models for answers that end properly.",
        epilog="Start with `llama-stop demo`: it runs offline, on a small model that comes along.",
    )
    parser.add_argument("--version", action="version", version=f"llama-stop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    purpose = "Show one question answered twice: by the plain pipeline and by LlamaStopLLM."
    sub = _command(commands, "demo", demo, purpose, _DEMO_EPILOG)
    sub.add_argument("--question", default=QUESTION, help="what to ask (default: %(default)s)")
    _add_common(sub, max_new_tokens=96)
    sub.add_argument("--svg", metavar="FILE", help="write the table to FILE as a picture, too")

    purpose = "Stream a model's answer to one question to stdout."
    sub = _command(commands, "ask", _ask, purpose, _ASK_EPILOG)
    sub.add_argument("question", help='what to ask; "-" reads it from stdin')
    _add_model(sub)
    sub.add_argument("--adapter", help="PEFT adapter, folder or hub id, to put onto the model")
    _add_common(sub, max_new_tokens=256)
    _add_stop(sub)
    sub.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    sub.add_argument("--seed", type=int, help="make sampling repeatable (default: random)")
    sub.add_argument("--system", metavar="TEXT", help="system prompt (default: the template's own)")
    sub.add_argument("--raw", action="store_true", help="do not apply the model's chat template")
    sub.add_argument(
        "--no-eos-reward",
        dest="eos_reward",
        action="store_false",
        help="leave the model alone when the budget runs out (default: land at a sentence end)",
    )
    _add_finetune(commands)
    _add_diagnose(commands)
    return parser


_FINETUNE_HELP = {
    "max_length": "tokens of a conversation; longer ones are left out",
    "max_new_tokens": "budget to keep: longer answers are left out, and it is measured with",
    "held_out": "conversations that are not trained on, but measured",
    "epochs": "how often each conversation is seen",
    "learning_rate": "of AdamW, at its highest",
    "batch_size": "conversations per step",
    "r": "rank of the LoRA matrices",
    "lora_alpha": "their scale",
    "lora_dropout": "share of their inputs that is dropped",
    "save_steps": "steps between two checkpoints",
    "seed": "of the shuffling",
}


def _add_finetune(commands: Any) -> None:
    from langchain_llama_stop.training.options import FinetuneOptions

    purpose = "Teach a model to end its answers: QLoRA on answers that end by EOS."
    sub = _command(commands, "finetune", finetune, purpose, _FINETUNE_EPILOG)
    sub.add_argument("data", nargs="?", help="JSONL file, or id of a data set on the hub")
    _add_model(sub)
    sub.add_argument(
        "--output-dir", default="adapter", help="new folder for the adapter (default: %(default)s)"
    )
    sub.add_argument(
        "--self-distil",
        metavar="PROMPTS",
        help="instead of data: train on the model's own answers to these that landed",
    )
    sub.add_argument("--resume", action="store_true", help="go on with an interrupted run")
    sub.add_argument(
        "--show", type=int, metavar="N", help="print N rows as they would be trained on, and end"
    )
    for field in fields(FinetuneOptions):
        name = "--" + field.name.replace("_", "-")
        value: Any = field.default
        text = f"{_FINETUNE_HELP[field.name]} (default: %(default)s)"
        sub.add_argument(name, type=type(value), default=value, metavar="N", help=text)
    _add_quantization(sub)


def _add_diagnose(commands: Any) -> None:
    purpose = "Find out why a model does not stop."
    sub = _command(commands, "diagnose", diagnose, purpose, _DIAGNOSE_EPILOG)
    sub.add_argument("model", help='"demo", local folder, .gguf file or hub id')
    sub.add_argument("--adapter", help="PEFT adapter, folder or hub id, to put onto the model")
    sub.add_argument("--prompt", metavar="TEXT", help="a prompt as you send it, to be looked at")
    sub.add_argument("--max-new-tokens", type=int, metavar="N", help="the budget you use")
    sub.add_argument("--repetition-penalty", type=float, metavar="X", help="the one you use")
    _add_stop(sub)
    _add_quantization(sub)
    sub.add_argument("--json", action="store_true", help="print the findings as JSON")


def _ask(args: argparse.Namespace) -> None:
    """Streams the answer to one question to stdout, and a summary to stderr."""
    from langchain_llama_stop.options import GenerationOptions

    names = ("max_new_tokens", "temperature", "seed", "stop", "eos_reward")
    options = GenerationOptions.parse({name: getattr(args, name) for name in names})
    if args.raw and args.system:
        raise ValueError("`--system` needs the chat template, which `--raw` leaves out: drop one.")
    question = sys.stdin.read().removesuffix("\n") if args.question == "-" else args.question
    require_text(question)
    with progress(transient=True) as tell:
        pipeline = load(args.model, args.quantization, args.adapter, tell)
        prompt = question if args.raw else chat_prompt(pipeline.tokenizer, question, args.system)

    from rich.console import Console

    from langchain_llama_stop.engine.generate import stream_generate

    started, response = time.perf_counter(), None
    for chunk in stream_generate(pipeline, prompt, options):
        print(chunk.text, end="", flush=True)
        response = chunk.response
    seconds = time.perf_counter() - started
    assert response is not None  # the last chunk carries it
    print(flush=True)
    tokens = len(response.token_ids)
    Console(stderr=True, soft_wrap=True).print(
        f"{tokens} tokens · finish_reason={response.finish_reason} · "
        f"stop_reason={response.stop_reason!r} · eos_source={response.eos_source} · "
        f"{tokens / seconds:.1f} tokens/s",
        style="dim",
        markup=False,
        highlight=False,
    )


def _command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int | None],
    purpose: str,
    epilog: str,
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_common(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="token budget of an answer (default: %(default)s)",
    )
    _add_quantization(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        default="demo",
        help='"demo", local folder, .gguf file or hub id (default: %(default)s)',
    )


def _add_stop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        type=_unescaped,
        metavar="STR",
        help=r"end the answer before STR; repeatable; \n and \t in it are newline and tab",
    )


def _add_quantization(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--quantization",
        choices=("nf4", "int8", "none"),
        default="nf4",
        help="how the weights are loaded; none: as they are (default: %(default)s)",
    )


def _unescaped(text: str) -> str:
    r"""A shell argument with its \n, \t and \\ replaced by what they stand for."""
    characters = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: characters[match[1]], text)


if __name__ == "__main__":
    sys.exit(main())
