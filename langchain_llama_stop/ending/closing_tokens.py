"""The tokens that bring a text to its end: what depends on the vocabulary alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from langchain_llama_stop.tokens.detokenizer import Detokenizer, detokenizer
from langchain_llama_stop.tokens.encoding import ids_after
from langchain_llama_stop.tokens.weak_cache import cached_per_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = (".", "!", "?", "。", "！", "？", "؟", "।")
_FIRST = ("```", "\n```", '"', '."', '".', ")", ".)", ").", "]", "].", "}", "**", ".**", "`", "|")
_NO_END = frozenset(",;:-(<{[/=+#@$%^&~¿¡–—")
_OPENS_NOTHING = re.compile(r"(?:[^\W_]|[\s.,:;!?)\]}）」』】》〉”’-])+")
_OPENS_BLOCK = re.compile(r"[`~|\ufffd]")  # what closes it is longer than what opened it


@cached_per_object
def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> ClosingTokens:
    """Returns the `ClosingTokens` of a tokenizer, built once for each."""
    return ClosingTokens(detokenizer(tokenizer))


class ClosingTokens:
    """What single tokens do to the end of a text; answers are remembered per token."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        """Begins with nothing known.

        Args:
            detokenizer: Of the model's tokenizer.
        """
        self._detokenizer = detokenizer
        self._may_end_after: dict[int, bool] = {}
        self._debts: dict[int, float] = {}
        self._ids: dict[str, list[int]] = {}

    @cached_property
    def marks(self) -> list[int]:
        """Ids of the marks that close a sentence, as far as each is one token behind a word."""
        return [ids[0] for mark in _MARKS if len(ids := self.ids(mark)) == 1]

    @cached_property
    def first(self) -> list[int]:
        """Ids with which the usual ends begin: the marks, brackets, quotes, fences."""
        ends = [self.ids(end) for end in _FIRST]
        return list(dict.fromkeys([*self.marks, *(ids[0] for ids in ends if ids)]))

    def ids(self, end: str) -> list[int]:
        """Encodes what brings a text to its end.

        Args:
            end: What is put behind the text, a full stop and a quote for instance.

        Returns:
            Its ids; [] for "", and if the vocabulary lacks it.
        """
        if end not in self._ids:
            tokenizer = self._detokenizer.tokenizer
            ids = ids_after(tokenizer, "x", end)
            if ids is None:  # it would merge with the word: the plain encoding has to do
                ids = tokenizer(end, add_special_tokens=False)["input_ids"]
            self._ids[end] = [] if tokenizer.unk_token_id in ids else ids
        return self._ids[end]

    def may_end_after(self, token_id: int) -> bool:
        """Rules out, without the text, the tokens behind which no text ends: most of them."""
        known = self._may_end_after.get(token_id)
        if known is None:
            piece = self._detokenizer.decode([token_id])
            known = self._may_end_after[token_id] = "\n" in piece or not _inside_sentence(piece)
        return known

    def debt(self, ids: Sequence[int]) -> float:
        """Says how many tokens it takes at most to close what these tokens open."""
        for token_id in set(ids).difference(self._debts):
            piece = _OPENS_NOTHING.sub("", self._detokenizer.decode([token_id]))
            block = _OPENS_BLOCK.search(piece)
            self._debts[token_id] = math.inf if block else len(piece.encode())
        return sum(map(self._debts.__getitem__, ids))


def _inside_sentence(piece: str) -> bool:
    """Whether no text ends behind a token with this text; "" is a special one, padding say."""
    last = piece.rstrip()[-1:]
    return not last or last.isalnum() or last in _NO_END
