"""Answers that fit a grammar, complete within the token budget.

llguidance says which tokens may come next. What it does not know is the budget: a way to the end
is therefore known at each step, and taken in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import llguidance.hf
import llguidance.numpy
import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from transformers import LogitsProcessor

from langchain_llama_stop.closers import ids_behind
from langchain_llama_stop.detokenization import detokenizer
from langchain_llama_stop.grammars import Grammar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LONGEST = 1024  # tokens of a way to the end: a schema that needs more cannot be closed
_OUTSIDE = [t for word in '} ] , 0 " null false [ { :'.split() for t in (word, f" {word}")] + [" "]
"""What may come next outside of strings, the best first."""
_TRIED = 8  # tokens whose ways are measured where the budget is short
_TOKENIZERS: WeakKeyDictionary[PreTrainedTokenizerBase, LLTokenizer] = WeakKeyDictionary()


class _State(NamedTuple):
    """Where a row stands.

    Attributes:
        matcher: What the grammar makes of its answer.
        way: Ids of a way to a complete answer.
        begin: Ids of the answer up to where it was complete last.
    """

    matcher: LLMatcher
    way: list[int]
    begin: int


class GrammarProcessor(LogitsProcessor):
    """Allows the tokens that lead to an answer of a grammar, and only these, within the budget.

    What it returns depends on `input_ids`, `scores` and its construction alone; the states it
    keeps are those of the last call, so that a row costs one token per step.

    Attributes:
        free: Whether the grammar lets an answer end anywhere, as long as it holds no call: such an
            answer is not ended here.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        grammar: Grammar,
        *,
        prompt_length: int,
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        """Compiles the grammar.

        Args:
            tokenizer: The model's tokenizer.
            grammar: The grammar.
            prompt_length: Width of the (left-padded) prompt, in tokens.
            max_new_tokens: The token budget of the call, EOS included.
            eos_token_ids: All EOS ids.

        Raises:
            ValueError: If the grammar cannot be compiled, or its smallest answer needs more
                tokens.
        """
        self.prompt_length, self.max_new_tokens = prompt_length, max_new_tokens
        self._eos = list(eos_token_ids)
        self._detokenizer = detokenizer(tokenizer)
        if tokenizer not in _TOKENIZERS:
            _TOKENIZERS[tokenizer] = llguidance.hf.from_tokenizer(cast(Any, tokenizer))
        self._tokenizer = _TOKENIZERS[tokenizer]
        firsts = {t: ids[0] for t in _OUTSIDE if (ids := ids_behind(tokenizer, "x", t))}
        self._outside, self._quote = list(firsts.values()), firsts.get('"')
        start = self._matcher(grammar.lark)
        self._start = _State(start, self._way_out(start, ()), 0)
        self.free = start.is_accepting()
        least = len(self._start.way) + 1
        if least > max_new_tokens:
            raise ValueError(
                f"`max_new_tokens` has to be {least} or more for this schema, whose smallest "
                f"value takes so many tokens, but is {max_new_tokens}."
            )
        parts = [self._way_out(self._matcher(part), ()) for part in grammar.parts]
        self._reserve = max(map(len, parts), default=0) + 4
        self._known: dict[tuple[int, ...], _State] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Forbids what does not lead to an answer of the grammar.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).
            scores: Next-token scores, (batch, vocab).

        Returns:
            New scores, (batch, vocab).
        """
        scores = scores.clone()
        known: dict[tuple[int, ...], _State] = {}
        for row, ids in enumerate(map(tuple, input_ids[:, self.prompt_length :].tolist())):
            if not set(ids).isdisjoint(self._eos):  # finished; what follows is padding
                continue
            state = known[ids] = self._after(ids)
            complete = state.matcher.is_accepting()
            left = self.max_new_tokens - len(ids) - 1  # without EOS
            allowed = self._allowed(state.matcher, scores.shape[1]).to(scores.device)  # (vocab,)
            if len(state.way) >= left and not (complete and self.free):
                allowed = self._only(state.way[:1] or self._eos, allowed)
            elif complete and not allowed[scores[row].argmax()]:
                # What the model would rather say cannot stand behind a complete answer.
                allowed = self._only(self._eos, allowed)
            elif len(state.way) + self._reserve >= left:
                best = scores[row].masked_fill(~allowed, -torch.inf).topk(_TRIED).indices.tolist()
                best = [token for token in best if allowed[token]]
                late = [token for token in best if self._late(ids, token, left, known)]
                if complete and self.free:
                    allowed[late] = False
                else:
                    in_time = [token for token in best if token not in late]
                    allowed = self._only(in_time or state.way[:1] or self._eos, allowed)
            scores[row, ~allowed] = -torch.inf
        self._known = known
        return scores

    def _late(
        self, ids: tuple[int, ...], token: int, left: int, known: dict[tuple[int, ...], _State]
    ) -> bool:
        """Whether too little is left for a way to the end behind one more token."""
        if token in self._eos:
            return False
        state = known[(*ids, token)] = self._after((*ids, token))
        return len(state.way) > left - 1

    def _matcher(self, lark: str) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        if matcher.is_error():
            raise ValueError(f"The schema or grammar cannot be compiled: {matcher.get_error()}")
        return matcher

    def _after(self, ids: tuple[int, ...]) -> _State:
        """The state behind some ids."""
        if ids in self._known:
            return self._known[ids]
        before, new = self._known.get(ids[:-1], self._start), ids[-1:]
        if ids[:-1] not in self._known:
            before, new = self._start, ids
        if not new:
            return before
        matcher = before.matcher.deep_copy()
        matcher.consume_tokens(list(new))
        if matcher.is_accepting():
            return _State(matcher, [], len(ids))
        # The way of before often leads on: a string that has grown is closed as it was.
        for way in (before.way[1:], before.way):
            if way and matcher.validate_tokens(way) == len(way) and _leads_out(matcher, way):
                return _State(matcher, way, before.begin)
        return _State(matcher, self._way_out(matcher, ids[before.begin :]), before.begin)

    def _allowed(self, matcher: LLMatcher, size: int) -> torch.Tensor:
        """Which tokens may come next, (size,)."""
        bits = np.unpackbits(self._mask(matcher).view(np.uint8), bitorder="little")  # (32 * words,)
        bits = bits[: min(size, self._tokenizer.vocab_size)]
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[: len(bits)] = torch.from_numpy(bits.astype(bool))
        allowed[self._eos] = matcher.is_accepting()
        return allowed

    def _only(self, ids: list[int], allowed: torch.Tensor) -> torch.Tensor:
        only = torch.zeros_like(allowed)
        only[ids] = True
        return only

    def _mask(self, matcher: LLMatcher) -> np.ndarray[Any, np.dtype[np.int32]]:
        """Which tokens may come next, 32 bits a word, (words,)."""
        mask = llguidance.numpy.allocate_token_bitmask(1, self._tokenizer.vocab_size)
        llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
        words: np.ndarray[Any, np.dtype[np.int32]] = mask[0]
        return words

    def _way_out(self, matcher: LLMatcher, ids: Sequence[int]) -> list[int]:
        """Ids of a short way to a complete answer; `ids` are those since it was complete last."""
        matcher, way = matcher.deep_copy(), list[int]()
        while not matcher.is_accepting() and len(way) < _LONGEST:
            forced = matcher.compute_ff_tokens()
            if not forced:
                mask = self._mask(matcher)
                inside = _in_string(self._detokenizer.decode([*ids, *way]))
                wanted = [self._quote] if inside else self._outside
                first = next(
                    (t for t in wanted if t is not None and int(mask[t >> 5]) >> (t & 31) & 1), None
                )
                forced = [_first(mask) if first is None else first]
            if not matcher.consume_tokens(forced):
                break
            way += forced
        return way


def _leads_out(matcher: LLMatcher, way: list[int]) -> bool:
    """Whether an answer is complete behind a way that can be gone."""
    matcher = matcher.deep_copy()
    return matcher.consume_tokens(way) and matcher.is_accepting()


def _first(mask: np.ndarray[Any, np.dtype[np.int32]]) -> int:
    """The first of the tokens that may come next."""
    return int(np.unpackbits(mask.view(np.uint8), bitorder="little").argmax())


def _in_string(text: str) -> bool:
    """Whether a JSON text ends inside of a string."""
    inside = escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif inside and character == "\\":
            escaped = True
        elif character == '"':
            inside = not inside
    return inside
