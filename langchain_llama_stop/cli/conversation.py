"""A conversation: its messages, its commands, and how answers are shown."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from langchain_llama_stop._checks import nearest
from langchain_llama_stop.cli.console import chat_pieces
from langchain_llama_stop.cli.flags import unescape
from langchain_llama_stop.cli.markdown import StreamedMarkdown

_ENDED = {
    "model": "The model ended it by itself.",
    "reward": "It was near its budget, and the EOS reward ended it where a sentence ends.",
    "closed": "It was near its budget: what was open was closed, and it was ended.",
    "forced": "Its budget was used up: EOS was forced at its end.",
}
"""What ended an answer, by its `eos_source`."""


@dataclass
class _Last:
    """What is known of the last answer."""

    info: dict[str, Any]
    seconds: float
    first: float  # seconds to the first piece


class Conversation:
    """What was said, and what was set by commands."""

    def __init__(self, chat: Any, name: str, *, system: str | None = None) -> None:
        """Begins without messages.

        Args:
            chat: The chat model.
            name: Its name, for files.
            system: The system prompt.
        """
        self._chat, self._name, self._system = chat, name, system
        self._messages: list[dict[str, str]] = []
        self._stop: list[str] = []
        self._budget: int | None = None
        self._last: _Last | None = None
        self._console = Console(highlight=False)
        self.commands: dict[str, Callable[[str], None]] = {
            "/system": self._set_system,
            "/stop": self._set_stop,
            "/budget": self._set_budget,
            "/why": self._why,
            "/save": self._save,
            "/load": self._load,
            "/new": self._new,
            "/help": self._help,
            "/exit": lambda rest: None,
        }

    def take(self, text: str) -> bool:
        """Answers what a user has written, or does what it says; False at /exit."""
        word, _, rest = text.partition(" ")
        if not text.startswith("/"):
            self._answer(text)
        elif word in self.commands:
            try:
                self.commands[word](rest.strip())
            except (ValueError, OSError) as error:
                self._say(f"{error}")
        else:
            near = nearest(word, list(self.commands))
            hint = f"Did you mean {near[0]}? " if near else ""
            self._say(f"There is no {word}. {hint}/help lists the commands.")
        return word != "/exit"

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)

    def _answer(self, text: str) -> None:
        """Streams an answer; what is there when Ctrl-C ends it stays."""
        messages = [*self._messages, {"role": "user", "content": text}]
        system = [{"role": "system", "content": self._system}] if self._system else []
        options: dict[str, Any] = {"stop": self._stop} if self._stop else {}
        if self._budget:
            options["max_new_tokens"] = self._budget
        started, first, info, answer = time.perf_counter(), 0.0, {}, ""
        pieces = chat_pieces(self._chat, [*system, *messages], **options)
        try:
            with StreamedMarkdown(self._console) as shown:
                for piece in pieces:
                    first = first or time.perf_counter() - started
                    answer, info = answer + piece.text, piece.info
                    shown.feed(piece.text, piece.thoughts)
        except KeyboardInterrupt:
            self._say("(You ended the answer.)")
            if not answer:
                return
        except ValueError as error:  # such as a conversation that is too long for the model
            self._say(f"{error} /new begins anew.")
            return
        finally:
            pieces.close()  # type: ignore[attr-defined]
        self._messages = [*messages, {"role": "assistant", "content": answer}]
        self._last = _Last(info, time.perf_counter() - started, first)

    def _set_system(self, text: str) -> None:
        self._system = text or None
        self._say("The system prompt is set." if text else "There is no system prompt.")

    def _set_stop(self, text: str) -> None:
        r"""Sets the stop strings, words or "in quotes"; \n and \t in them are newline and tab."""
        words = [quoted or word for quoted, word in re.findall(r'"([^"]+)"|(\S+)', text)]
        stops = self._stop = [unescape(word) for word in words]
        self._say(f"Answers end before {stops}." if stops else "There are no stop strings.")

    def _set_budget(self, text: str) -> None:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(
                f"`/budget` has to be a whole number of 1 or more tokens, but is {text!r}."
            )
        self._budget = int(text)
        self._say(f"Answers have up to {self._budget} tokens.")

    def _why(self, rest: str) -> None:
        """Says what ended the last answer, its tokens and its time."""
        if self._last is None:
            return self._say("There is no answer yet.")
        info, seconds = self._last.info, self._last.seconds
        if not info:
            return self._say(f"You ended it after {seconds:.1f} s.")
        if info["stop_reason"] is not None:
            why = f"It reached the stop {info['stop_reason']!r}."
        else:
            why = _ENDED.get(info["eos_source"], "Its budget cut it: /budget gives more tokens.")
        usage = info["usage_metadata"]
        tokens = usage["output_tokens"]
        self._say(
            f"{why}\n{tokens} tokens in {seconds:.1f} s ({tokens / seconds:.1f} tokens/s), the "
            f"first after {self._last.first:.2f} s; the prompt has {usage['input_tokens']}. "
            f"finish_reason={info['finish_reason']}, eos_source={info['eos_source']}"
        )

    def _save(self, name: str) -> None:
        file = _path(name, "/save")
        saved = {
            "model": self._name,
            "system": self._system,
            "stop": self._stop,
            "budget": self._budget,
            "messages": self._messages,
        }
        file.write_text(json.dumps(saved, indent=1, ensure_ascii=False), encoding="utf-8")
        self._say(f"{len(self._messages)} messages are in {file}.")

    def _load(self, name: str) -> None:
        file = _path(name, "/load")
        try:
            saved = json.loads(file.read_text(encoding="utf-8"))
            messages = [
                {key: str(m[key]) for key in ("role", "content")} for m in saved["messages"]
            ]
            if any(m["role"] not in ("user", "assistant") for m in messages):
                raise ValueError("a role is neither user nor assistant")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} has to be what `/save` wrote, but is not: {error}."
            ) from error
        self._messages, self._system = messages, saved.get("system")
        self._stop, self._budget = saved.get("stop") or [], saved.get("budget")
        self._last = None
        self._say(f"{len(messages)} messages of {file}.")

    def _new(self, rest: str) -> None:
        self._messages, self._last = [], None
        self._say("The conversation begins anew.")

    def _help(self, rest: str) -> None:
        self._say(
            "/system TEXT    set the system prompt; without a text: remove it\n"
            '/stop WORDS     end answers before these, or before "quoted text"; alone: no stops\n'
            "/budget N       tokens of an answer\n"
            "/why            what ended the last answer, its tokens and time\n"
            "/save FILE      keep the conversation; /load FILE takes it up again\n"
            "/new            begin anew\n"
            "/exit           leave, as Ctrl-D\n"
            "Enter sends, Alt-Enter or Ctrl-J begins a new line, Ctrl-C ends an answer."
        )


def _path(name: str, command: str) -> Path:
    if not name:
        raise ValueError(f"`{command}` needs the name of a file: {command} talk.json")
    return Path(name).expanduser()
