"""The tokens of a tokenizer as texts, and the fewest tokens that complete an answer.

Texts are strings of symbols, as in `rules`: bytes, and special tokens as 256 + id.
"""

from __future__ import annotations

import heapq
import itertools
import sys
from bisect import bisect_left
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLTokenizer

    from langchain_llama_stop.grammar.rules import Place

_MOST_REMEMBERED = 100_000
"""Ends of texts whose tokens are remembered."""
_MOST_STEPS = 100_000
"""Symbols that a search may follow: about a second. Not tuned."""
_LONGEST = 32
"""Symbols of the longest token that is looked for. Longer ones are indentation and rulers."""


class Vocabulary:
    """The tokens of a tokenizer.

    Attributes:
        special: Gives the id of a special token's text; None if there is none.
        texts: The text of each id; "" for ids that are no text to a grammar.
        quoting: The ids of tokens with two quotes in them, and maybe a whole key.
        continuing: The ids of tokens with a comma in them.
    """

    def __init__(self, tokenizer: LLTokenizer) -> None:
        """Reads the tokens of a tokenizer."""
        self.texts = [
            chr(256 + i)
            if tokenizer.is_special_token(i)
            else tokenizer.decode_bytes([i]).decode("latin-1")
            for i in range(tokenizer.vocab_size)
        ]
        names = {
            tokenizer.decode_bytes([i]).decode(errors="replace"): i
            for i, text in enumerate(self.texts)
            if text == chr(256 + i)
        }
        self.special = names.get
        self.quoting = [i for i, text in enumerate(self.texts) if text.count('"') > 1]
        self.continuing = [i for i, text in enumerate(self.texts) if "," in text]
        self._ids = {text: i for i, text in reversed(list(enumerate(self.texts))) if text}
        self._sorted = sorted(self._ids)
        self._ids |= {chr(256 + i): i for i in range(len(self.texts))}  # a grammar may name any
        self._longest = min(max(map(len, self._sorted)), _LONGEST)
        self._ends: dict[str, tuple[int, int]] = {"": (0, 0)}

    def beginning_with(self, prefix: str) -> list[int]:
        """The ids of the tokens that begin with a text."""
        first = bisect_left(self._sorted, prefix)
        end = bisect_left(self._sorted, prefix + chr(sys.maxunicode), first)
        return [self._ids[text] for text in self._sorted[first:end]]

    def length(self, text: str) -> int:
        """The fewest tokens that a text can be written in; a large number if it cannot."""
        return self._end(text)[0]

    def ids(self, text: str) -> list[int]:
        """The text in the fewest tokens."""
        ids = []
        while text:
            size = self._end(text)[1]
            ids.append(self._ids[text[:size]])
            text = text[size:]
        return ids

    def _end(self, text: str) -> tuple[int, int]:
        """The fewest tokens of a text, and the symbols of the first of them."""
        known = self._ends
        if text in known:
            return known[text]
        if len(known) > _MOST_REMEMBERED:
            known.clear()
            known[""] = (0, 0)
        for begin in range(len(text) - 1, -1, -1):
            end = text[begin:]
            if end not in known:
                sizes = range(min(len(end), _LONGEST), 0, -1)
                found = [(known[end[n:]][0] + 1, n) for n in sizes if end[:n] in self._ids]
                known[end] = min(found, key=lambda pair: pair[0], default=(1 << 30, 0))
        return known[text]

    def fewest(self, place: Place, limit: int) -> list[int] | None:
        """Searches the fewest tokens that complete an answer.

        A* over places; no token covers more symbols than the longest one.

        Args:
            place: Where the answer stands.
            limit: The most tokens that are of use.

        Returns:
            Their ids; None if `limit` tokens do not suffice, or the search takes too long.
        """
        paths: list[tuple[int, int, list[int], Place]] = [(0, 0, [], place)]
        done, steps, number = set[int](), 0, itertools.count(1)
        while paths and steps < _MOST_STEPS:
            _, _, ids, before = heapq.heappop(paths)
            if before.accepting:
                return ids
            if id(before) in done:
                continue
            done.add(id(before))
            for text, after, count in self._following(before):
                steps += count
                if after is None or id(after) in done or (rest := after.completion) is None:
                    continue
                rank = len(ids) + 1 + -(-len(rest) // self._longest)
                if rank <= limit:
                    heapq.heappush(paths, (rank, next(number), [*ids, self._ids[text]], after))
        return None

    def _following(self, place: Place) -> Iterator[tuple[str, Place | None, int]]:
        """The tokens that may come next, the places after them, and the symbols followed."""
        path: list[Place | None] = [place]
        index, before = 0, ""
        while index < len(self._sorted):
            text = self._sorted[index]
            common = 0
            while common < min(len(text), len(before)) and text[common] == before[common]:
                common += 1
            del path[common + 1 :]
            begun = len(path)
            for symbol in text[len(path) - 1 :]:
                last = path[-1]
                if last is None:
                    break
                path.append(last.after(symbol))
            before = text
            if path[-1] is None:  # no token that begins so is allowed
                index = bisect_left(
                    self._sorted, text[: len(path) - 1] + chr(sys.maxunicode), index
                )
                yield text, None, len(path) - begun
            else:
                index += 1
                yield text, path[-1], len(path) - begun
