"""The tokens that close a text: what depends on the vocabulary alone."""

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

_TERMINATORS = (".", "!", "?", "。", "！", "？", "؟", "।")
_FIRST = ("```", "\n```", '"', '."', '".', ")", ".)", ").", "]", "].", "}", "**", ".**", "`", "|")
_NEVER_LAST = frozenset(",:-(<{[/=+#@$%^&~¿¡–—")
_OPENS_NOTHING = re.compile(r"(?:[^\W_]|[\s.,:;!?)\]}）」』】》〉”’-])+")
_OPENS_BLOCK = re.compile(r"[`~|\ufffd]")  # what closes it is longer than what opened it


@cached_per_object
def closing_tokens(tokenizer: PreTrainedTokenizerBase) -> ClosingTokens:
    """Returns the `ClosingTokens` of a tokenizer, built once for each."""
    return ClosingTokens(detokenizer(tokenizer))


class ClosingTokens:
    """What single tokens do to the end of a text; results are cached per token."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        """Starts with empty caches."""
        self._detokenizer = detokenizer
        self._may_end_after: dict[int, bool] = {}
        self._most_owed: dict[int, float] = {}
        self._ids: dict[str, list[int]] = {}

    @cached_property
    def terminators(self) -> list[int]:
        """Ids of the terminators that are one token each after a word."""
        return [ids[0] for char in _TERMINATORS if len(ids := self.ids(char)) == 1]

    @cached_property
    def first(self) -> list[int]:
        """First ids of the usual closings: the terminators, then brackets, quotes, fences."""
        closings = [self.ids(closing) for closing in _FIRST]
        return list(dict.fromkeys([*self.terminators, *(ids[0] for ids in closings if ids)]))

    def ids(self, closing: str) -> list[int]:
        """Encodes what is appended to close a text; [] for "", and if the vocabulary lacks it."""
        if closing not in self._ids:
            tokenizer = self._detokenizer.tokenizer
            ids = ids_after(tokenizer, "x", closing)
            if ids is None:  # it would merge with the word: the plain encoding has to do
                ids = tokenizer(closing, add_special_tokens=False)["input_ids"]
            self._ids[closing] = [] if tokenizer.unk_token_id in ids else ids
        return self._ids[closing]

    def may_end_after(self, token_id: int) -> bool:
        """Whether a text can end after this token: mostly not, which saves decoding the text."""
        may_end = self._may_end_after.get(token_id)
        if may_end is None:
            piece = self._detokenizer.decode([token_id])
            may_end = self._may_end_after[token_id] = "\n" in piece or not _inside_sentence(piece)
        return may_end

    def most_owed(self, ids: Sequence[int]) -> float:
        """An upper bound of the number of tokens that close what these tokens open."""
        for token_id in set(ids).difference(self._most_owed):
            piece = _OPENS_NOTHING.sub("", self._detokenizer.decode([token_id]))
            block = _OPENS_BLOCK.search(piece)
            self._most_owed[token_id] = math.inf if block else len(piece.encode())
        return sum(map(self._most_owed.__getitem__, ids))


def _inside_sentence(piece: str) -> bool:
    """Whether no text ends after a token with this text; "" is a special one, such as padding."""
    last = piece.rstrip()[-1:]
    if "\u0e00" <= last < "\u0f00":  # Thai and Lao: a space, or nothing, ends a sentence
        return False
    return not last or last.isalnum() or last in _NEVER_LAST
