"""Grammars in the tokens of a tokenizer: which tokens may come next, and short completions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, cast

import llguidance.hf
import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLTokenizer

from langchain_llama_stop.grammar.read_lark import UnknownLark, lark_parser
from langchain_llama_stop.grammar.rules import Parser
from langchain_llama_stop.grammar.vocabulary import Vocabulary
from langchain_llama_stop.tokens.weak_cache import cached_per_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger("langchain_llama_stop")

MAX_COMPLETION = 4096
"""Most tokens of a completion where no budget is known yet. Not tuned: longer answers are rare, and
a search that reaches this limit takes seconds."""


@cached_per_object
def grammar_tokens(tokenizer: PreTrainedTokenizerBase) -> GrammarTokens:
    """Returns the `GrammarTokens` of a tokenizer, built once for each."""
    return GrammarTokens(tokenizer)


class GrammarTokens:
    """Token masks of grammars, and short completions of those that users wrote.

    Attributes:
        size: The number of the tokenizer's tokens.
        compiled: Gives a grammar's matcher, to be copied before use; None if the grammar cannot be
            compiled.
        parser: Gives the parser of a grammar that a user wrote; None if it is not known.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reads the vocabulary of a tokenizer."""
        self._tokenizer: LLTokenizer = llguidance.hf.from_tokenizer(cast(Any, tokenizer))
        self.size = self._tokenizer.vocab_size
        pieces = [self._tokenizer.greedy_tokenize(chr(i)) for i in (*range(32, 127), 10)]
        self._characters = [piece[0] for piece in pieces if len(piece) == 1]
        self.compiled = lru_cache(maxsize=32)(self._compile)  # a matcher takes some 50 KB
        self.parser = lru_cache(maxsize=32)(self._parser)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The tokens as texts."""
        return Vocabulary(self._tokenizer)

    def _compile(self, lark: str) -> LLMatcher | None:
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        return None if matcher.is_error() else matcher

    def _parser(self, lark: str) -> Parser | None:
        try:
            return lark_parser(lark, self.vocabulary.special)
        except UnknownLark as problem:
            logger.debug("Short completions are searched: a grammar holds %s.", problem)
            return None

    def mask(self, matcher: LLMatcher) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Returns which tokens may come next, as bits of 32-bit words, (words,)."""
        mask = llguidance.numpy.allocate_token_bitmask(1, self.size)
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        words: np.ndarray[Any, np.dtype[np.int32]] = mask[0]
        return words

    def short_completion(self, matcher: LLMatcher, max_tokens: int) -> list[int]:
        """Looks for a short completion of an answer by one step of look-ahead.

        Args:
            matcher: The state of the answer.
            max_tokens: Tokens that the completion may have.

        Returns:
            Its ids, the fewest of those that are tried; more than `max_tokens` of them if none is
            found that is short enough.
        """
        completion = self._complete(matcher, max_tokens, self._final_step)
        if len(completion) > 1:
            other = self._complete(matcher, max_tokens, self._narrowest_step)
            completion = min(completion, other, key=len)
        return completion

    def _complete(
        self, matcher: LLMatcher, max_tokens: int, choose: Callable[[LLMatcher], list[int]]
    ) -> list[int]:
        """A completion by forced steps, else by those of `choose`, else by the first token."""
        matcher, completion = matcher.deep_copy(), list[int]()
        while not matcher.is_accepting():
            step = _forced(matcher) or choose(matcher) or [_first(self.mask(matcher))]
            completion += step
            if not matcher.consume_tokens(step):  # no completion: an answer that is too long
                return completion * (max_tokens + 1)
            if len(completion) > max_tokens:
                return completion
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
