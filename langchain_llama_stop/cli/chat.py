"""`llama-stop chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from langchain_llama_stop._optional import require
from langchain_llama_stop.cli.console import is_chat_model, load, show_stages
from langchain_llama_stop.cli.flags import (
    add_command,
    add_loading_flags,
    add_option_flags,
    loading_from,
    options_from,
)

PURPOSE = "Talk with a model in the terminal."
_EPILOG = """
examples:
  llama-stop chat
  llama-stop chat --model meta-llama/Llama-2-7b-chat-hf --system "Be brief."
  llama-stop chat --model ./my-model --adapter adapter --quantization none

Enter sends; Alt-Enter or Ctrl-J begins a new line. Ctrl-C ends an answer, Ctrl-D the program. Arrow
up brings back what you wrote, today or earlier. /help lists the commands.
"""
_INSTALL = "pip install 'langchain-llama-stop[cli]' ('.[cli]' in a clone)"


def add_parser(commands: Any) -> None:
    """Adds the command and its arguments."""
    parser = add_command(commands, "chat", run_chat, PURPOSE, _EPILOG)
    add_loading_flags(parser)
    parser.add_argument(
        "--system", metavar="TEXT", help="system prompt (default: the template's own)"
    )
    add_option_flags(parser, max_new_tokens=512, temperature=0.0)


def run_chat(args: argparse.Namespace) -> None:
    """Loads the model, then reads and answers until the user leaves."""
    options = options_from(args)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ValueError(
            "`llama-stop chat` needs a terminal, but stdin or stdout is none: for pipes there is "
            "`llama-stop ask`."
        )
    require("prompt_toolkit", "`llama-stop chat`", _INSTALL)
    with show_stages(transient=True) as begin_stage:
        pipeline: Any = load(progress=begin_stage, **loading_from(args))
        if not is_chat_model(pipeline.tokenizer, args.model):
            raise ValueError(
                f"`--model` has to be a chat model, but {args.model} has no chat template: take "
                "its -Instruct or -chat variant, or `llama-stop ask --raw`."
            )
        begin_stage("Importing LangChain")
        from langchain_llama_stop.chat_models import ChatLlamaStop
        from langchain_llama_stop.cli.conversation import Conversation
        from langchain_llama_stop.cli.prompt import prompt_session, read

        chat = ChatLlamaStop(pipeline=pipeline, **options)
    conversation = Conversation(chat, args.model, system=args.system)
    session = prompt_session(conversation.commands)
    print(f"{args.model} listens. /help lists the commands, Ctrl-D ends.")
    while (text := read(session)) is not None:
        if text.strip() and not conversation.take(text.strip()):
            break
