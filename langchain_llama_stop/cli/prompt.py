"""The line at which a user writes: several lines, history across starts, completed commands."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent


def prompt_session(commands: Iterable[str]) -> PromptSession[str]:
    """Makes the prompt; its history lies in the user's state folder, else only in memory.

    Args:
        commands: Words that the tabulator completes at the beginning of a line.
    """
    import re

    from platformdirs import user_state_path

    folder = Path(os.environ.get("LLAMA_STOP_STATE") or user_state_path("langchain-llama-stop"))
    history = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "chat-history"
        file.touch(mode=0o600)  # others on this machine may not read it
        history = FileHistory(str(file))
    except OSError as error:
        print(f"What you write is not kept for the next start: {error}.")
    return PromptSession(
        history=history,
        multiline=True,
        key_bindings=_keys(),
        completer=WordCompleter(sorted(commands), pattern=re.compile(r"^/\w*")),
        complete_while_typing=False,
        prompt_continuation=lambda width, number, wrapped: " " * width,
    )


def _keys() -> KeyBindings:
    """Enter sends; Alt-Enter and Ctrl-J begin a new line."""
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def read(session: PromptSession[str]) -> str | None:
    """Reads what the user writes; None at Ctrl-D. Ctrl-C throws away what is written so far."""
    while True:
        try:
            return session.prompt("> ")
        except KeyboardInterrupt:
            print("(Ctrl-D or /exit ends.)")
        except EOFError:
            return None
