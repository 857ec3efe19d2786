"""`llama-stop ask`: stream a model's answer to one question."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from langchain_llama_stop.cli.console import chat_prompt, load, require_text, show_stages
from langchain_llama_stop.cli.flags import (
    add_adapter_flag,
    add_command,
    add_model_flag,
    add_option_flags,
    add_quantization_flag,
    options_from,
)

_PURPOSE = "Stream a model's answer to one question to stdout."
_EPILOG = r"""
examples:
  llama-stop ask "What can I do in Paris?"
  llama-stop ask --max-new-tokens 64 --temperature 0.7 --seed 1 "Tell me a story."
  llama-stop ask --model meta-llama/Llama-2-7b-chat-hf --system "Be brief." "What is NF4?"
  cat prompt.txt | llama-stop ask --raw --stop "\nObservation:" -

The answer goes to stdout as it comes, everything else to stderr. The last line on stderr says how
it ended: finish_reason (stop, or length for an answer that the budget cut), stop_reason (the stop
string that ended it; None for EOS), eos_source (model, reward, closed or forced; None without EOS).
"""


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = add_command(commands, "ask", run_ask, _PURPOSE, _EPILOG)
    parser.add_argument("question", help='what to ask; "-" reads it from stdin')
    add_model_flag(parser)
    add_adapter_flag(parser)
    add_quantization_flag(parser)
    parser.add_argument(
        "--system", metavar="TEXT", help="system prompt (default: the template's own)"
    )
    parser.add_argument("--raw", action="store_true", help="do not apply the model's chat template")
    add_option_flags(parser, max_new_tokens=256, temperature=0.0)


def run_ask(args: argparse.Namespace) -> None:
    """Streams the answer to stdout, and a summary to stderr."""
    options = options_from(args)
    if args.raw and args.system:
        raise ValueError("`--system` needs the chat template, which `--raw` leaves out: drop one.")
    question = sys.stdin.read().removesuffix("\n") if args.question == "-" else args.question
    require_text(question)
    with show_stages(transient=True) as begin_stage:
        pipeline = load(args.model, args.quantization, args.adapter, begin_stage)
        prompt = question if args.raw else chat_prompt(pipeline.tokenizer, question, args.system)

    from rich.console import Console

    from langchain_llama_stop.engine.generate import stream_generate

    started, response = time.perf_counter(), None
    for chunk in stream_generate(pipeline, prompt, options):
        print(chunk.text, end="", flush=True)
        response = chunk.response
    seconds = time.perf_counter() - started
    assert response is not None  # the last chunk has it
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
