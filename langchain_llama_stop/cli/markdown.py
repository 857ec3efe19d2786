"""Markdown that is shown while it is written."""

from __future__ import annotations

import re
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from langchain_llama_stop.cli.console import plain

_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)


def finished_blocks(text: str) -> int:
    """The length of the blocks at a text's beginning to which nothing can be added.

    A block ends at a blank line outside of code.
    """
    ends = [match.end() for match in re.finditer(r"\n[ \t]*\n+", text)]
    for end in reversed(ends):
        if len(_FENCE.findall(text[:end])) % 2 == 0:
            return end
    return 0


class StreamedMarkdown:
    """Prints finished blocks for good and redraws the last one, so that all of it can be scrolled.

    A context manager; its end prints the rest.
    """

    def __init__(self, console: Console) -> None:
        """Begins with nothing."""
        self._console, self._open = console, ""
        self._live = Live(console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> Self:
        """Shows what is fed from now on."""
        self._live.start()
        return self

    def feed(self, text: str, thoughts: str = "") -> None:
        """Adds text of the answer; thoughts are printed dim, before it."""
        if thoughts:
            self._console.print(Text(plain(thoughts), "dim"), end="")
        self._open += plain(text)
        if end := finished_blocks(self._open):
            self._console.print(Markdown(self._open[:end]))
            self._console.print()
            self._open = self._open[end:]
        self._live.update(Markdown(self._open))

    def __exit__(self, *exc_info: Any) -> None:
        """Prints the rest."""
        self._live.stop()
        self._console.print(Markdown(self._open))
