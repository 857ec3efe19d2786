"""Answers that fit a grammar and are complete within the token budget.

llguidance computes which tokens may come next. It does not know the budget. So a short completion
of the answer is known at each step, and its tokens are forced when the budget leaves no more room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from llguidance import LLMatcher
from transformers import LogitsProcessor

from langchain_llama_stop.grammar.completion import MAX_COMPLETION, grammar_tokens
from langchain_llama_stop.grammar.schema import Grammar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOP_NEAR_LIMIT, _TOP_ALWAYS = 8, 32
"""Top tokens whose completions are computed: near the limit; at every step, for grammars without
parts. Not tuned: each costs a copy of the matcher, and enough must remain to choose from."""
_RESERVE_MARGIN = 4
"""Tokens kept beside a part's completion, for separators and brackets around it. Not tuned."""


class _State(NamedTuple):
    """The state of one row's answer.

    Attributes:
        matcher: llguidance's state after the answer.
        completion: Ids that complete the answer; [] if it is complete.
        begin: The number of the answer's ids when it was last complete.
    """

    matcher: LLMatcher
    completion: list[int]
    begin: int


class GrammarProcessor(LogitsProcessor):
    """Allows only tokens that lead to an answer of the grammar, complete within the budget.

    It stands after the processors of other settings. Where these forbid every token that the
    grammar allows, the answer takes the shortest way to its end.

    The result depends on `input_ids`, `scores` and the construction alone; the states of the last
    call are kept, so that a row costs one token per step.

    Attributes:
        unconstrained: As for `Grammar`.
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
        self.unconstrained = grammar.unconstrained
        self._eos = list(eos_token_ids)
        self._tokens = grammar_tokens(tokenizer)
        self._look_ahead = not grammar.parts  # completions of JSON need no search
        start, completion = self._tokens.compiled(grammar.lark, self._look_ahead)
        if start is None:
            raise ValueError(
                f"{grammar.argument} has to be a grammar that llguidance can compile, but cannot "
                f"be compiled: simplify {grammar.lark!r}."
            )
        if len(completion) >= max_new_tokens:
            least = f"{len(completion) + 1} or more"
            if len(completion) > MAX_COMPLETION:
                least = f"over {MAX_COMPLETION}"
            raise ValueError(
                f"`max_new_tokens` has to be {least} for the smallest answer that fits "
                f"{grammar.argument}, but is {max_new_tokens}."
            )
        self._start = _State(start.deep_copy(), completion, 0)
        parts = [self._tokens.shortest_length(part) for part in grammar.parts]
        self._reserve = max(parts) + _RESERVE_MARGIN if parts else max_new_tokens
        self._top = _TOP_NEAR_LIMIT if parts else _TOP_ALWAYS
        self._states: dict[tuple[int, ...], _State] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Forbids the tokens that do not lead to an answer of the grammar.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).
            scores: Next-token scores, (batch, vocab).

        Returns:
            New scores, (batch, vocab).
        """
        scores = scores.clone()
        states: dict[tuple[int, ...], _State] = {}
        for row, ids in enumerate(map(tuple, input_ids[:, self.prompt_length :].tolist())):
            if not set(ids).isdisjoint(self._eos):  # finished; only padding follows
                continue
            state = states[ids] = self._state_after(ids)
            complete = state.matcher.is_accepting()
            left = self.max_new_tokens - len(ids) - 1  # without EOS
            allowed = self._allowed(state.matcher, scores.shape[1]).to(scores.device)  # (vocab,)
            if len(state.completion) >= left and not (complete and self.unconstrained):
                allowed = _only(state.completion[:1] or self._eos, allowed)
            elif complete and ids and not allowed[scores[row].argmax()]:
                # The model's favourite cannot follow a complete answer: the answer ends.
                allowed = _only(self._eos, allowed)
            elif len(state.completion) + self._reserve >= left:
                top = scores[row].masked_fill(~allowed, -torch.inf).topk(self._top).indices.tolist()
                top = [token for token in top if allowed[token]]
                late = [t for t in top if self._exceeds_budget(ids, t, left, states)]
                if complete and self.unconstrained:
                    allowed[late] = False
                else:
                    in_time = [token for token in top if token not in late]
                    ends = self._eos if complete else []
                    allowed = _only([*in_time, *ends] or state.completion[:1], allowed)
            scores[row, ~allowed] = -torch.inf
            if scores[row].max() <= torch.finfo(scores.dtype).min:
                # Settings such as `min_new_tokens` forbid all of them: the grammar goes first.
                scores[row, state.completion[:1] or self._eos] = 0.0
        self._states = states
        return scores

    def _exceeds_budget(
        self, ids: tuple[int, ...], token: int, left: int, states: dict[tuple[int, ...], _State]
    ) -> bool:
        """Whether the answer cannot be completed within `left` tokens if `token` comes next."""
        if token in self._eos:
            return False
        longer = (*ids, token)
        state = states[longer] = self._advance(states[ids], longer, 1)
        return len(state.completion) > left - 1

    def _state_after(self, ids: tuple[int, ...]) -> _State:
        """The state after some ids, from the states of the last call where they help."""
        if ids in self._states:
            return self._states[ids]
        if ids[:-1] in self._states:
            return self._advance(self._states[ids[:-1]], ids, 1)
        return self._advance(self._start, ids, len(ids))

    def _advance(self, before: _State, ids: tuple[int, ...], count: int) -> _State:
        """The state after some ids, the last `count` of which are new."""
        if not count:
            return before
        matcher = before.matcher.deep_copy()
        matcher.consume_tokens(list(ids[-count:]))
        if matcher.is_accepting():
            return _State(matcher, [], len(ids))
        # The completion of before often still fits: a longer string is closed in the same way, and
        # a token may have covered several tokens of it.
        old = before.completion
        for rest in (old[1:], old, old[2:], old[3:]):
            if rest and matcher.validate_tokens(rest) == len(rest) and _completes(matcher, rest):
                return _State(matcher, rest, before.begin)
        left, recent = self.max_new_tokens - len(ids), ids[before.begin :]
        completion = self._tokens.shortest_completion(matcher, recent, left, self._look_ahead)
        return _State(matcher, completion, before.begin)

    def _allowed(self, matcher: LLMatcher, size: int) -> torch.Tensor:
        """Which tokens may come next, (size,)."""
        mask = self._tokens.mask(matcher)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")  # (32 * words,)
        bits = bits[: min(size, self._tokens.size)]
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[: len(bits)] = torch.from_numpy(bits.astype(bool))
        allowed[self._eos] = matcher.is_accepting()
        return allowed


def _only(ids: list[int], allowed: torch.Tensor) -> torch.Tensor:
    """A mask like `allowed` that allows only these ids."""
    only = torch.zeros_like(allowed)
    only[ids] = True
    return only


def _completes(matcher: LLMatcher, ids: list[int]) -> bool:
    """Whether appending these (allowed) tokens completes the answer."""
    matcher = matcher.deep_copy()
    return matcher.consume_tokens(ids) and matcher.is_accepting()
