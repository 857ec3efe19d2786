"""Answers that fit a grammar, complete within the token budget.

llguidance says which tokens may come next. What it does not know is the budget: a way to the end
is therefore known at each step, and taken in time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from llguidance import LLMatcher
from transformers import LogitsProcessor

from langchain_llama_stop.grammar.completion import LONGEST, vocabulary
from langchain_llama_stop.grammar.schema import Grammar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TRIED, _TRIED_ALWAYS = 8, 32  # tokens whose ways are measured where the budget is short; always


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
        free: As for `Grammar`.
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
        self.free = grammar.free
        self._eos = list(eos_token_ids)
        self._vocabulary = vocabulary(tokenizer)
        self._search = not grammar.parts  # the usual way out is that of JSON
        start, way = self._vocabulary.compiled(grammar.lark, self._search)
        if start is None:
            raise ValueError(
                f"{grammar.argument} has to be what decoding can be constrained to, but cannot "
                f"be compiled: simplify {grammar.lark!r}."
            )
        if len(way) >= max_new_tokens:
            least = f"over {LONGEST}" if len(way) > LONGEST else f"{len(way) + 1} or more"
            raise ValueError(
                f"`max_new_tokens` has to be {least} for the smallest answer that fits "
                f"{grammar.argument}, but is {max_new_tokens}."
            )
        self._start = _State(start.deep_copy(), way, 0)
        ways = [self._vocabulary.compiled(part, False)[1] for part in grammar.parts]
        self._reserve = max(map(len, ways)) + 4 if ways else max_new_tokens
        self._tried = _TRIED if ways else _TRIED_ALWAYS
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
            elif complete and ids and not allowed[scores[row].argmax()]:
                # What the model would rather say cannot stand behind a complete answer.
                allowed = self._only(self._eos, allowed)
            elif len(state.way) + self._reserve >= left:
                best = (
                    scores[row].masked_fill(~allowed, -torch.inf).topk(self._tried).indices.tolist()
                )
                best = [token for token in best if allowed[token]]
                late = [token for token in best if self._late(ids, token, left, known)]
                if complete and self.free:
                    allowed[late] = False
                else:
                    in_time = [token for token in best if token not in late]
                    ends = self._eos if complete else []
                    allowed = self._only([*in_time, *ends] or state.way[:1], allowed)
            scores[row, ~allowed] = -torch.inf
        self._known = known
        return scores

    def _late(
        self, ids: tuple[int, ...], token: int, left: int, known: dict[tuple[int, ...], _State]
    ) -> bool:
        """Whether too little is left for a way to the end behind one more token."""
        if token in self._eos:
            return False
        longer = (*ids, token)
        state = known[longer] = self._grown(known[ids], longer, 1)
        return len(state.way) > left - 1

    def _after(self, ids: tuple[int, ...]) -> _State:
        """The state behind some ids."""
        if ids in self._known:
            return self._known[ids]
        if ids[:-1] in self._known:
            return self._grown(self._known[ids[:-1]], ids, 1)
        return self._grown(self._start, ids, len(ids))

    def _grown(self, before: _State, ids: tuple[int, ...], count: int) -> _State:
        """The state behind some ids, of which the last `count` are new."""
        if not count:
            return before
        matcher = before.matcher.deep_copy()
        matcher.consume_tokens(list(ids[-count:]))
        if matcher.is_accepting():
            return _State(matcher, [], len(ids))
        # The way of before often leads on: a string that has grown is closed as it was, and a
        # token may have gone several steps of it.
        for way in (before.way[1:], before.way, before.way[2:], before.way[3:]):
            if way and matcher.validate_tokens(way) == len(way) and _leads_out(matcher, way):
                return _State(matcher, way, before.begin)
        most, said = self.max_new_tokens - len(ids), ids[before.begin :]
        way = self._vocabulary.way_out(matcher, said, most, self._search)
        return _State(matcher, way, before.begin)

    def _allowed(self, matcher: LLMatcher, size: int) -> torch.Tensor:
        """Which tokens may come next, (size,)."""
        mask = self._vocabulary.mask(matcher)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")  # (32 * words,)
        bits = bits[: min(size, self._vocabulary.size)]
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[: len(bits)] = torch.from_numpy(bits.astype(bool))
        allowed[self._eos] = matcher.is_accepting()
        return allowed

    def _only(self, ids: list[int], allowed: torch.Tensor) -> torch.Tensor:
        only = torch.zeros_like(allowed)
        only[ids] = True
        return only


def _leads_out(matcher: LLMatcher, way: list[int]) -> bool:
    """Whether an answer is complete behind a way that can be gone."""
    matcher = matcher.deep_copy()
    return matcher.consume_tokens(way) and matcher.is_accepting()
