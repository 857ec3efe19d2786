"""`llama-stop ask`: stream a model's answer to one question."""

from __future__ import annotations

import argparse
import json
import logging
import os
import stat
import sys
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

from langchain_llama_stop.cli.console import (
    Piece,
    chat_pieces,
    is_chat_model,
    load,
    plain,
    print_summary,
    require_text,
    show_stages,
    show_thoughts,
    text_pieces,
)
from langchain_llama_stop.cli.flags import (
    add_command,
    add_loading_flags,
    add_option_flags,
    loading_from,
    options_from,
)

PURPOSE = "Stream a model's answer to one question to stdout."
_EPILOG = r"""
examples:
  llama-stop ask "What can I do in Paris?"
  llama-stop ask --max-new-tokens 64 --temperature 0.7 --seed 1 "Tell me a story."
  llama-stop ask --model meta-llama/Llama-2-7b-chat-hf --system "Be brief." "What is NF4?"
  cat notes.txt | llama-stop ask "What is this about?"
  llama-stop ask --json --json-schema city.json "Name a city in France."
  cat prompt.txt | llama-stop ask --raw --stop "\nObservation:" -

What is piped in is put before the question. The answer goes to stdout as it comes, everything else
to stderr. The last line on stderr says how it ended: finish_reason (stop, or length for an answer
that the budget cut), stop_reason (the stop string that ended it; None for EOS), eos_source (model,
reward, closed or forced; None without EOS). --json prints all of that and the answer to stdout.
"""


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = add_command(commands, "ask", run_ask, PURPOSE, _EPILOG)
    parser.add_argument(
        "question", nargs="?", default="-", help='what to ask; "-" (default) reads it from stdin'
    )
    add_loading_flags(parser)
    parser.add_argument(
        "--system", metavar="TEXT", help="system prompt (default: the template's own)"
    )
    parser.add_argument("--raw", action="store_true", help="do not apply the model's chat template")
    parser.add_argument("--json", action="store_true", help="print answer and metadata as JSON")
    add_option_flags(parser, max_new_tokens=256, temperature=0.0)


def run_ask(args: argparse.Namespace) -> None:
    """Streams the answer to stdout, and a summary to stderr."""
    options = options_from(args)
    if args.raw and args.system:
        raise ValueError("`--system` needs the chat template, which `--raw` leaves out: drop one.")
    question = _question(args.question)
    require_text(question)
    with show_stages(transient=True) as begin_stage:
        pipeline = load(progress=begin_stage, **loading_from(args))
        begin_stage("Reading the prompt")
        pieces = _pieces(pipeline, args, question, options)
        started, first = time.perf_counter(), next(pieces)

    texts: list[str] = []
    for piece in chain([first], pieces):
        if not args.json:
            show_thoughts(piece.thoughts)
            print(plain(piece.text) if sys.stdout.isatty() else piece.text, end="", flush=True)
        texts.append(piece.text)
        last = piece
    seconds = time.perf_counter() - started
    if args.json:
        answer = {"answer": "".join(texts), **last.info, "seconds": round(seconds, 3)}
        print(json.dumps(answer, indent=1, ensure_ascii=False))
    else:
        print(flush=True)
        print_summary(last.info, seconds)


def _question(argument: str) -> str:
    """The question, after what is piped in."""
    if argument == "-":
        return _read_stdin().removesuffix("\n")
    piped = _read_stdin().strip("\n") if _is_piped() else ""
    return f"{piped}\n\n{argument}" if piped else argument


def _is_piped() -> bool:
    """Whether stdin is a pipe or a file; a terminal and /dev/null are not."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):  # there is none
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"stdin has to be text in UTF-8, but its byte {error.start} is "
            f"{error.object[error.start]:#04x}: convert it, for example with `iconv -t utf-8`."
        ) from None


def _pieces(
    pipeline: Any, args: argparse.Namespace, question: str, options: dict[str, Any]
) -> Iterator[Piece]:
    """Streams the answer: of a chat, or of the text as it is."""
    if not args.raw and is_chat_model(pipeline.tokenizer, args.model):
        from langchain_llama_stop.chat_models import ChatLlamaStop

        chat = ChatLlamaStop(pipeline=pipeline, **options)
        system = [("system", args.system)] if args.system else []
        return chat_pieces(chat, [*system, ("human", question)])
    if args.system:
        raise ValueError(
            "`--system` needs a chat template, but the model's tokenizer has none: leave it out, "
            "and write what you want into the question."
        )
    if not args.raw:
        logging.getLogger("langchain_llama_stop").warning(
            "%s has no chat template: it continues the text instead of answering it.", args.model
        )
    return text_pieces(pipeline, question, options)
