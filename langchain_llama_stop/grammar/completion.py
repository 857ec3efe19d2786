"""Grammars in the tokens of a tokenizer: which tokens may come next, and short completions."""

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

MAX_COMPLETION = 4096
"""Most tokens of a completion where no budget is known yet. Not tuned: longer answers are rare, and
a search that reaches this limit takes seconds."""

_OUTSIDE = [t for word in '} ] , 0 " null false [ { :'.split() for t in (word, f" {word}")] + [" "]
"""JSON outside of strings: what may come next, first what ends a value soonest."""


@cached_per_object
def grammar_tokens(tokenizer: PreTrainedTokenizerBase) -> GrammarTokens:
    """Returns the `GrammarTokens` of a tokenizer, built once for each."""
    return GrammarTokens(tokenizer)


class GrammarTokens:
    """Token masks and short completions of grammars, for one tokenizer.

    Attributes:
        size: The number of the tokenizer's tokens.
        compiled: Gives a grammar's matcher, to be copied before use, and the ids of a short
            complete answer; None and [] if the grammar cannot be compiled.
        shortest_length: Gives the number of these ids alone, for grammars of JSON.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reads the vocabulary of a tokenizer."""
        self._tokenizer: LLTokenizer = llguidance.hf.from_tokenizer(cast(Any, tokenizer))
        self.size = self._tokenizer.vocab_size
        firsts = {t: ids[0] for t in _OUTSIDE if (ids := ids_after(tokenizer, "x", t))}
        self._outside, self._quote = list(firsts.values()), firsts.get('"')
        pieces = [self._tokenizer.greedy_tokenize(chr(i)) for i in (*range(32, 127), 10)]
        self._characters = [piece[0] for piece in pieces if len(piece) == 1]
        # A matcher takes some 50 KB, a number nothing: a schema has a matcher and, for each part of
        # it, a number. Room for some tens of schemas.
        self.compiled = lru_cache(maxsize=32)(self._compile)
        self.shortest_length = lru_cache(maxsize=1024)(self._shortest_length)

    def _compile(self, lark: str, look_ahead: bool) -> tuple[LLMatcher | None, list[int]]:
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            return None, []
        return matcher, self.shortest_completion(matcher, (), MAX_COMPLETION, look_ahead)

    def _shortest_length(self, lark: str) -> int:
        return len(self._compile(lark, look_ahead=False)[1])

    def mask(self, matcher: LLMatcher) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Returns which tokens may come next, as bits of 32-bit words, (words,)."""
        mask = llguidance.numpy.allocate_token_bitmask(1, self.size)
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        words: np.ndarray[Any, np.dtype[np.int32]] = mask[0]
        return words

    def shortest_completion(
        self, matcher: LLMatcher, ids: Sequence[int], max_tokens: int, look_ahead: bool
    ) -> list[int]:
        """Looks for a short completion of an answer; the shortest of those that are tried.

        Args:
            matcher: The state of the answer.
            ids: The answer's ids since it was last complete.
            max_tokens: Tokens that the completion may have.
            look_ahead: Whether to look one step ahead, for grammars of anything but JSON.

        Returns:
            Its ids; more than `max_tokens` of them if none is found that is short enough.
        """
        completion = self._complete(
            matcher, ids, max_tokens, self._final_step if look_ahead else None
        )
        if look_ahead and len(completion) > 1:
            other = self._complete(matcher, ids, max_tokens, self._narrowest_step)
            completion = min(completion, other, key=len)
        return completion

    def _complete(
        self,
        matcher: LLMatcher,
        ids: Sequence[int],
        max_tokens: int,
        choose: Callable[[LLMatcher], list[int]] | None,
    ) -> list[int]:
        """A completion by forced steps, else by those of `choose`, else by those of JSON."""
        matcher, completion = matcher.deep_copy(), list[int]()
        string = _in_string(self._tokenizer.decode_bytes(list(ids)), (False, False))
        while not matcher.is_accepting():
            step = _forced(matcher) or (choose(matcher) if choose else [])
            if not step:
                mask = self.mask(matcher)
                json_ids = [self._quote] if string[0] else self._outside
                usual = (i for i in json_ids if i is not None and _is_allowed(mask, i))
                step = [next(usual, _first(mask))]
            completion += step
            if not matcher.consume_tokens(step):  # no completion: an answer that is too long
                return completion * (max_tokens + 1)
            if len(completion) > max_tokens:
                return completion
            string = _in_string(self._tokenizer.decode_bytes(step), string)
        return completion

    def _final_step(self, matcher: LLMatcher) -> list[int]:
        """A step that completes the answer; [] if there is none."""
        return next((step for step, after in self._steps(matcher) if after.is_accepting()), [])

    def _narrowest_step(self, matcher: LLMatcher) -> list[int]:
        """A step that completes the answer, else the one after which the fewest tokens may come."""
        steps = list(self._steps(matcher))
        final = [step for step, after in steps if after.is_accepting()]
        width = {i: _count(self.mask(after)) for i, (_, after) in enumerate(steps)}
        return (final or [steps[i][0] for i in sorted(width, key=lambda i: width[i])] or [[]])[0]

    def _steps(self, matcher: LLMatcher) -> Iterator[tuple[list[int], LLMatcher]]:
        """Every step of one character and what it forces, with the matcher after it."""
        mask = self.mask(matcher)
        for token in self._characters:
            after = matcher.deep_copy()
            if _is_allowed(mask, token) and after.consume_token(token):
                forced = _forced(after)
                if not forced or after.consume_tokens(forced):
                    yield [token, *forced], after


def _forced(matcher: LLMatcher) -> list[int]:
    """The tokens that have to come next, as far as the grammar leaves no choice."""
    forced = matcher.compute_ff_tokens()
    # They are encoded as usual, perhaps into a token that is no text to a grammar.
    return forced[: matcher.validate_tokens(forced)]


def _is_allowed(mask: np.ndarray[Any, np.dtype[np.int32]], token: int) -> bool:
    """Whether a token may come next."""
    return bool(int(mask[token >> 5]) >> (token & 31) & 1)


def _count(mask: np.ndarray[Any, np.dtype[np.int32]]) -> int:
    """How many tokens may come next."""
    return int(np.bitwise_count(mask.view(np.uint32)).sum())


def _first(mask: np.ndarray[Any, np.dtype[np.int32]]) -> int:
    """The first of the tokens that may come next."""
    return int(np.unpackbits(mask.view(np.uint8), bitorder="little").argmax())


def _in_string(text: bytes, before: tuple[bool, bool]) -> tuple[bool, bool]:
    """Whether JSON text ends inside a string, and after a backslash there.

    `before` says the same of the text before it.
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
