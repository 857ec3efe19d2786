"""Grammars in the tokens of a vocabulary: what may come next, and a way to a complete answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import llguidance.hf
import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from langchain_llama_stop.tokens.encoding import ids_after
from langchain_llama_stop.tokens.weak_cache import cached_per_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LONGEST = 4096
"""Tokens that a way to a complete answer may have where no budget is known yet."""

_OUTSIDE = [t for word in '} ] , 0 " null false [ { :'.split() for t in (word, f" {word}")] + [" "]
"""What may come next outside of strings, the best first."""


@cached_per_object
def vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    """Returns the `Vocabulary` of a tokenizer, built once for each."""
    return Vocabulary(tokenizer)


class Vocabulary:
    """What depends on the tokenizer alone: its tokens, and what grammars come to in them.

    Attributes:
        size: The number of its tokens.
        compiled: Gives a grammar's matcher, to be copied before it is used, and ids of a short
            way to a complete answer; None and [] if the grammar cannot be compiled.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reads the vocabulary.

        Args:
            tokenizer: The model's tokenizer.
        """
        self._tokenizer: LLTokenizer = llguidance.hf.from_tokenizer(cast(Any, tokenizer))
        self.size = self._tokenizer.vocab_size
        firsts = {t: ids[0] for t in _OUTSIDE if (ids := ids_after(tokenizer, "x", t))}
        self._outside, self._quote = list(firsts.values()), firsts.get('"')
        pieces = [self._tokenizer.greedy_tokenize(chr(i)) for i in (*range(32, 127), 10)]
        self._single = [piece[0] for piece in pieces if len(piece) == 1]
        self.compiled = lru_cache(maxsize=1024)(self._compile)

    def _compile(self, lark: str, search: bool) -> tuple[LLMatcher | None, list[int]]:
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            return None, []
        return matcher, self.way_out(matcher, (), LONGEST, search)

    def mask(self, matcher: LLMatcher) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Finds which tokens may come next.

        Args:
            matcher: Where an answer stands.

        Returns:
            32 bits a word, (words,).
        """
        mask = llguidance.numpy.allocate_token_bitmask(1, self.size)
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        words: np.ndarray[Any, np.dtype[np.int32]] = mask[0]
        return words

    def way_out(self, matcher: LLMatcher, ids: Sequence[int], most: int, search: bool) -> list[int]:
        """Looks for a short way to a complete answer.

        Args:
            matcher: Where the answer stands.
            ids: Its ids since it was complete last.
            most: Tokens that the way may have.
            search: Whether to look one step ahead, for grammars of anything but JSON.

        Returns:
            The ids of the way; over `most` of them if none is found that is short enough.
        """
        way = self._way(matcher, ids, most, self._ending if search else None)
        if search and len(way) > 1:
            way = min(way, self._way(matcher, ids, most, self._narrowest), key=len)
        return way

    def _way(
        self,
        matcher: LLMatcher,
        ids: Sequence[int],
        most: int,
        choose: Callable[[LLMatcher], list[int]] | None,
    ) -> list[int]:
        """A way that goes where it has to, else where `choose` says, else where JSON would."""
        matcher, way = matcher.deep_copy(), list[int]()
        string = _in_string(self._tokenizer.decode_bytes(list(ids)), (False, False))
        while not matcher.is_accepting():
            step = _forced(matcher) or (choose(matcher) if choose else [])
            if not step:
                mask = self.mask(matcher)
                wanted = [self._quote] if string[0] else self._outside
                step = [
                    next((t for t in wanted if t is not None and _holds(mask, t)), _first(mask))
                ]
            way += step
            if not matcher.consume_tokens(step):  # a dead end
                return way * (most + 1)
            if len(way) > most:
                return way
            string = _in_string(self._tokenizer.decode_bytes(step), string)
        return way

    def _ending(self, matcher: LLMatcher) -> list[int]:
        """A step of one character, with what it forces, to the end; [] if there is none."""
        return next((step for step, behind in self._steps(matcher) if behind.is_accepting()), [])

    def _narrowest(self, matcher: LLMatcher) -> list[int]:
        """The step to the end, else the one that leaves the least choice behind it."""
        steps = list(self._steps(matcher))
        ends = [step for step, behind in steps if behind.is_accepting()]
        width = {i: _count(self.mask(b)) for i, (_, b) in enumerate(steps)}
        return (ends or [steps[i][0] for i in sorted(width, key=lambda i: width[i])] or [[]])[0]

    def _steps(self, matcher: LLMatcher) -> Iterator[tuple[list[int], LLMatcher]]:
        """Every step of one character, with what it forces, and where it leads."""
        mask = self.mask(matcher)
        for token in self._single:
            behind = matcher.deep_copy()
            if _holds(mask, token) and behind.consume_token(token):
                forced = _forced(behind)
                if not forced or behind.consume_tokens(forced):
                    yield [token, *forced], behind


def _forced(matcher: LLMatcher) -> list[int]:
    """The tokens that have to come next, if it is settled which."""
    forced = matcher.compute_ff_tokens()
    # They are encoded as usual, maybe into a token that is no text to a grammar.
    return forced[: matcher.validate_tokens(forced)]


def _holds(mask: np.ndarray[Any, np.dtype[np.int32]], token: int) -> bool:
    """Whether a token may come next."""
    return bool(int(mask[token >> 5]) >> (token & 31) & 1)


def _count(mask: np.ndarray[Any, np.dtype[np.int32]]) -> int:
    """How many tokens may come next."""
    return int(np.bitwise_count(mask.view(np.uint32)).sum())


def _first(mask: np.ndarray[Any, np.dtype[np.int32]]) -> int:
    """The first of the tokens that may come next."""
    return int(np.unpackbits(mask.view(np.uint8), bitorder="little").argmax())


def _in_string(text: bytes, before: tuple[bool, bool]) -> tuple[bool, bool]:
    """Whether a JSON text ends inside of a string, and there behind a backslash.

    Args:
        text: The text.
        before: The same of what precedes it.

    Returns:
        Both.
    """
    inside, escaped = before
    for byte in text:
        if escaped:
            escaped = False
        elif inside and byte == ord("\\"):
            escaped = True
        elif byte == ord('"'):
            inside = not inside
    return inside, escaped
