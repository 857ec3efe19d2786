"""An answer that grows by tokens: its text, and what it may owe, without reading it anew."""

from __future__ import annotations

from collections.abc import Sequence

from langchain_llama_stop.ending import boundaries
from langchain_llama_stop.ending.boundaries import Boundary
from langchain_llama_stop.ending.closing_tokens import ClosingTokens
from langchain_llama_stop.tokens.detokenizer import Detokenizer, TextBuilder


class Answer:
    """A growing answer: its text is decoded where it is asked for, from the newest tokens on."""

    def __init__(self, detokenizer: Detokenizer, tokens: ClosingTokens) -> None:
        """Starts without tokens.

        Args:
            detokenizer: Of texts that follow the answer's prompt.
            tokens: The tokens that close a text.
        """
        self.detokenizer, self._tokens = detokenizer, tokens
        self.ids: list[int] = []
        self._builder = TextBuilder(detokenizer)
        self._owed: float = 0
        self._counted = 0
        self._judged: tuple[str, Boundary, bool] | None = None

    def grow(self, ids: Sequence[int]) -> None:
        """Adds tokens."""
        self.ids += ids

    @property
    def text(self) -> str:
        """Its text."""
        known = len(self._builder.ids)
        if known < len(self.ids):
            self._builder.push(*self.ids[known:])
        return self._builder.text

    def may_end(self, boundary: Boundary) -> bool:
        """Whether its text may end as it stands; tokens without text change nothing."""
        text = self.text
        if self._judged is None or self._judged[:2] != (text, boundary):
            self._judged = (text, boundary, boundaries.may_end(text, boundary))
        return self._judged[2]

    @property
    def most_owed(self) -> float:
        """An upper bound of the number of tokens that close what it has opened."""
        self._owed += self._tokens.most_owed(self.ids[self._counted :])
        self._counted = len(self.ids)
        return self._owed
