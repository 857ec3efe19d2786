"""Draft tokens, so that one forward pass can confirm several; a wrong draft changes no token.

Greedy decoding of one sequence only. A pass over a dozen tokens costs little more than over one,
as long as most of its time goes into reading the weights.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from langchain_llama_stop.engine.kv_cache import CACHE_NAME, RowsCache, can_share

LOOKUP_TOKENS = 32
"""Tokens that prompt lookup drafts at most where it has switched itself on. Tuned by `make bench`
(quotations; float32): a pass over 33 tokens takes as long as 2.4 passes over one."""

LONG_PROMPT = 128
"""Tokens from which on prompt lookup switches itself on. Chosen, not tuned: shorter prompts hold
little to look up."""

# Of prompt lookup. Chosen so that a text that only seems to repeat itself costs little; `make
# bench` (quotations) was run with them.
_MATCHES = (4, 3, 2)  # tokens that have to match before what follows them is a draft
_FIRST = 8  # tokens of the first draft
_FEWEST = 4  # tokens of a draft after a wrong one

_MODEL_TOKENS = 5
"""Tokens of a draft model's first draft. This number, and how it grows and shrinks, are those of
transformers' heuristic schedule."""


class Drafter(Protocol):
    """Drafts how a text continues."""

    def __call__(
        self, input_ids: torch.Tensor, drafted: int, accepted: int, max_tokens: int
    ) -> torch.Tensor:
        """Drafts the next tokens.

        Args:
            input_ids: The text, (1, length).
            drafted: How many tokens the last draft had.
            accepted: How many of them were right.
            max_tokens: Tokens to draft at most; none if under 1.

        Returns:
            The draft, (1, 0 to max_tokens).
        """
        ...


class PromptLookup:
    """Drafts what followed the last time that the newest tokens stood in the text.

    Prompt lookup decoding, after A. Saxena (2023): an answer that quotes its context needs no
    second model to draft. After a right draft the next one is twice as long; after a wrong one it
    is shorter, and more tokens have to match.
    """

    def __init__(self, max_tokens: int) -> None:
        """Starts without a text; a draft has at most `max_tokens`."""
        self._max_tokens, self._length, self._least_match = max_tokens, _FIRST, _MATCHES[-1]
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # position after the last run of these tokens

    def __call__(
        self, input_ids: torch.Tensor, drafted: int, accepted: int, max_tokens: int
    ) -> torch.Tensor:
        """Drafts the next tokens; see `Drafter`."""
        if drafted:
            self._least_match += -1 if accepted else 1
            self._least_match = max(_MATCHES[-1], min(self._least_match, _MATCHES[0]))
            self._length = 2 * drafted if accepted == drafted else max(_FEWEST, accepted)
        for token in input_ids[0, len(self._ids) :].tolist():
            for size in _MATCHES:  # the newest token is not indexed: nothing follows it yet
                self._after[tuple(self._ids[-size:])] = len(self._ids)
            self._ids.append(token)
        for size in _MATCHES:
            start = self._after.get(tuple(self._ids[-size:]))
            if size >= self._least_match and start is not None:
                length = max(0, min(self._length, self._max_tokens, max_tokens))
                return input_ids[:, start : start + length]
        return input_ids[:, :0]


class DraftModel:
    """Drafts by a small model of the same vocabulary (speculative decoding, Leviathan 2023)."""

    def __init__(self, model: Any) -> None:
        """Starts without a text; raises ValueError if the model cannot take tokens back."""
        if not can_share(model.config):
            raise ValueError(
                "`assistant_model` has to be a model that remembers keys and values only, but is a "
                f"{model.config.model_type}: its draft tokens could not be taken back."
            )
        self._model, self._length = model, _MODEL_TOKENS
        self._cache, self._ids = RowsCache(), torch.empty(0, dtype=torch.long)

    def __call__(
        self, input_ids: torch.Tensor, drafted: int, accepted: int, max_tokens: int
    ) -> torch.Tensor:
        """Drafts the next tokens; see `Drafter`. A right draft makes the next one longer."""
        if drafted:
            self._length = self._length + 2 if accepted == drafted else max(1, self._length - 1)
        ids = input_ids[0].to(self._model.device)
        shared = min(len(ids) - 1, len(self._ids), self._cache.length)
        equal = ids[:shared] == self._ids.to(ids.device)[:shared]
        cached = int(equal.long().cumprod(0).sum())
        self._cache.truncate(cached)
        new, draft = ids[None, cached:], ids[:0]
        for _ in range(min(self._length, max_tokens)):
            outputs = self._model(new, use_cache=True, **{CACHE_NAME: self._cache})
            new = outputs.logits[:, -1:].argmax(dim=-1)  # (1, 1)
            draft = torch.cat([draft, new[0]])
        self._ids = torch.cat([ids, draft])
        return draft[None].to(input_ids.device)
