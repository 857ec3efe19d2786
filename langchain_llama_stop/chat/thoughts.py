"""The thoughts that a model writes before its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

TAGS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<think:opensource>", "</think:opensource>"),
)
"""Tags around thoughts, as models write them."""

_OPENED = re.compile(rf"({'|'.join(re.escape(begin) for begin, _ in TAGS)})\s*\Z")


def removed_tags(template: str) -> list[tuple[str, str]]:
    """The tags that a chat template (Jinja) looks for in answers, to take thoughts out of them."""
    return [
        tags for tags in TAGS if re.search(rf"split\(\s*['\"]{re.escape(tags[1])}['\"]", template)
    ]


def thought_pieces(text: str, tags: Sequence[tuple[str, str]] = TAGS) -> list[str]:
    """Takes a text apart at the tags of the thoughts with which it begins.

    Args:
        text: What a model has said.
        tags: Tags to look for, pairs of the one before and the one after thoughts.

    Returns:
        Text and tags by turns; joined they are `text`.
    """
    for begin, end in tags:
        head, opened, rest = text.partition(begin)
        if head.strip() or not opened:
            head, opened, rest = "", "", text
        thoughts, closed, answer = rest.partition(end)
        if opened or closed:
            return [*([head, opened] if opened else ()), thoughts, closed, answer]
    return [text]


def opened_thought(prompt: str) -> str:
    """The tag that closes the thoughts in whose midst a prompt ends; "" if it ends in none."""
    opened = _OPENED.search(prompt)
    return dict(TAGS)[opened[1]] if opened else ""


class ThoughtSplitter:
    """Tells the thoughts of an answer from what follows them, piece by piece.

    Thoughts stand between tags at the beginning of an answer. Neither the tags nor the blanks
    around them are part of thoughts or content.
    """

    def __init__(self, closing: str = "") -> None:
        """Starts at the beginning of an answer.

        Args:
            closing: The tag that ends the thoughts that the prompt has begun; "" if it has none.
        """
        self._closing = closing
        self._state: Literal["begin", "thoughts", "answer"] = "thoughts" if closing else "begin"
        self._held = ""  # what may become a tag, or a blank beside one
        self._skip_blanks = bool(closing)

    def feed(self, text: str) -> tuple[str, str]:
        """Takes the next piece; returns what it adds to the thoughts and to the content."""
        self._held += text
        if self._state == "begin" and not self._begin():
            return "", ""
        thoughts = self._take_thoughts() if self._state == "thoughts" else ""
        return thoughts, self._take(self._held) if self._state == "answer" else ""

    def finish(self) -> tuple[str, str]:
        """Returns what was held back, as `feed` does, once the answer has ended."""
        held, self._held = self._held, ""
        if self._state == "thoughts":
            return held.strip() if self._skip_blanks else held.rstrip(), ""
        return "", "" if self._skip_blanks else held

    def _begin(self) -> bool:
        """Whether it is known how the answer begins."""
        bare = self._held.lstrip()
        for begin, end in TAGS:
            if bare.startswith(begin):
                self._state, self._closing = "thoughts", end
                self._held, self._skip_blanks = bare[len(begin) :], True
                return True
        if any(begin.startswith(bare) for begin, _ in TAGS):
            return False
        self._state = "answer"
        return True

    def _take_thoughts(self) -> str:
        before, closed, after = self._held.partition(self._closing)
        if closed:
            taken = self._take(before.rstrip())
            self._state, self._held, self._skip_blanks = "answer", after, True
            return taken
        lengths = range(min(len(before), len(self._closing) - 1), 0, -1)
        partial = next((n for n in lengths if self._closing.startswith(before[-n:])), 0)
        return self._take(before[: len(before) - partial].rstrip())

    def _take(self, text: str) -> str:
        """Takes a text out of what is held, which begins with it."""
        self._held = self._held[len(text) :]
        if self._skip_blanks:
            text = text.lstrip()
            self._skip_blanks = not text
        return text


def split_thoughts(answer: str, closing: str = "") -> tuple[str, str]:
    """Takes a whole answer apart.

    Args:
        answer: The answer, with the tags of its thoughts.
        closing: As for `ThoughtSplitter`.

    Returns:
        The thoughts, "" if there are none, and the content after them.
    """
    splitter = ThoughtSplitter(closing)
    (thoughts, content), (last_thoughts, last_content) = splitter.feed(answer), splitter.finish()
    return thoughts + last_thoughts, content + last_content
