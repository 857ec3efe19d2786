"""Answers that fit a grammar and are complete within the token budget.

llguidance computes which tokens may come next. It does not know the budget. So a short completion
of the answer is known at each step, and its tokens are forced when the budget leaves no more room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import LogitsProcessor

from langchain_llama_stop.grammar.completion import MAX_COMPLETION, grammar_tokens
from langchain_llama_stop.grammar.schema import Grammar
from langchain_llama_stop.grammar.state import State, begin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENOUGH = 32
"""Near the limit, completions of top tokens are computed until this many can be completed in time.
Not tuned: enough must remain to choose from."""


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
        self.unconstrained, self._argument = grammar.unconstrained, grammar.argument
        self._eos = list(eos_token_ids)
        self._tokens = grammar_tokens(tokenizer)
        start = begin(self._tokens, grammar, max_new_tokens - 1)
        if start is None:
            raise ValueError(
                f"{grammar.argument} has to be a grammar that llguidance can compile, but cannot "
                f"be compiled: simplify {grammar.lark!r}."
            )
        if start.length >= max_new_tokens:
            least = f"{start.length + 1} or more"
            if start.length > MAX_COMPLETION:
                least = f"over {MAX_COMPLETION}"
            raise ValueError(
                f"`max_new_tokens` has to be {least} for the smallest answer that fits "
                f"{grammar.argument}, but is {max_new_tokens}."
            )
        self._start = start
        self._states: dict[tuple[int, ...], State] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Forbids the tokens that do not lead to an answer of the grammar.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).
            scores: Next-token scores, (batch, vocab).

        Returns:
            New scores, (batch, vocab).

        Raises:
            RuntimeError: If llguidance gives up, since the grammar is too large for it.
        """
        scores = scores.clone()
        states: dict[tuple[int, ...], State] = {}
        for row, ids in enumerate(map(tuple, input_ids[:, self.prompt_length :].tolist())):
            if not set(ids).isdisjoint(self._eos):  # finished; only padding follows
                continue
            state = states[ids] = self._state_after(ids)
            left = self.max_new_tokens - len(ids) - 1  # without EOS
            allowed = self._allowed(state, scores.shape[1]).to(scores.device)  # (vocab,)
            self._narrow(scores[row], allowed, state, left, begun=bool(ids))
            scores[row].masked_fill_(~allowed, -torch.inf)
            if scores[row].max() <= torch.finfo(scores.dtype).min:
                # Settings such as `min_new_tokens` forbid all of them: the grammar goes first.
                scores[row, state.completion[:1] or self._eos] = 0.0
        self._states = states
        return scores

    def _narrow(
        self, scores: torch.Tensor, allowed: torch.Tensor, state: State, left: int, *, begun: bool
    ) -> None:
        """Forbids tokens after which the answer cannot be complete in time.

        Args:
            scores: Of one row, (vocab,).
            allowed: What the grammar allows, (vocab,); changed in place.
            state: The row's state.
            left: Tokens left, without EOS.
            begun: Whether there is an answer yet.
        """
        complete, free = state.accepting, state.accepting and self.unconstrained
        if state.length >= left and not free:
            _keep(allowed, state.completion[:1] or self._eos)
        elif complete and begun and not allowed[scores.argmax()]:
            # The model's favourite cannot follow a complete answer: the answer ends.
            _keep(allowed, self._eos)
        elif state.length + state.reserve >= left:
            top = scores.masked_fill(~allowed, -torch.inf).topk(min(state.tried, len(scores)))
            in_time, late = list[int](), list[int]()
            for token, score in zip(top.indices.tolist(), top.values.tolist(), strict=True):
                if score == -torch.inf or len(in_time) == _ENOUGH:
                    break
                soon = token in self._eos or state.length_after(token) < left
                (in_time if soon else late).append(token)
            if free:
                allowed[late] = False
            else:
                ends = self._eos if complete else []
                _keep(allowed, [*in_time, *ends] or state.completion[:1])

    def _state_after(self, ids: tuple[int, ...]) -> State:
        """The state after some ids, from the states of the last call where they help."""
        if ids in self._states:
            return self._states[ids]
        if ids[:-1] in self._states:
            return self._states[ids[:-1]].after(ids[-1:])
        return self._start.after(ids) if ids else self._start

    def _allowed(self, state: State, size: int) -> torch.Tensor:
        """Which tokens may come next, (size,)."""
        mask = self._tokens.mask(state.matcher)
        if state.matcher.is_error():  # its limits are met in the middle of an answer
            problem = state.matcher.get_error().partition("\n")[0]
            raise RuntimeError(
                f"{self._argument} has to be a grammar that llguidance can follow, but it gave up "
                f"({problem}): simplify it."
            )
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")  # (32 * words,)
        bits = bits[: min(size, self._tokens.size)].view(np.bool_)
        allowed = torch.zeros(size, dtype=torch.bool)
        allowed[: len(bits)] = torch.from_numpy(bits)
        allowed[self._eos] = state.accepting
        allowed[state.forbidden] = False
        return allowed


def _keep(allowed: torch.Tensor, ids: list[int]) -> None:
    """Allows only these ids, in place."""
    allowed.fill_(False)
    allowed[ids] = True
