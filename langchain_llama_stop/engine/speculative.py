"""Tokens guessed ahead, so that one forward pass can confirm several; a wrong guess changes none.

Greedy decoding of one row only. A pass over a dozen tokens costs little more than over one, as
long as reading the weights is what takes the time.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from langchain_llama_stop.engine.kv_cache import CACHE, RowsCache, can_share

LOOKUP_TOKENS = 32
"""Tokens that prompt lookup guesses at most where it has switched itself on."""

LONG_PROMPT = 128
"""Tokens from which on a prompt holds enough to look up."""

_SIZES = (4, 3, 2)  # tokens that have to agree before what follows them is a guess
_FIRST = 8  # tokens of the first guess
_FEWEST = 4  # tokens of a guess after a wrong one


class Guesser(Protocol):
    """Guesses how a text goes on."""

    def __call__(self, input_ids: torch.Tensor, tried: int, right: int, most: int) -> torch.Tensor:
        """Guesses the next tokens.

        Args:
            input_ids: The text, (1, length).
            tried: How many tokens of the last guess were tried.
            right: How many of them were right.
            most: Tokens to guess at most; none if under 1.

        Returns:
            The guesses, (1, 0 to most).
        """
        ...


class PromptLookup:
    """Guesses what followed the last time that the newest tokens stood in the text.

    Prompt lookup decoding, after A. Saxena (2023): an answer that quotes its context needs no
    second model to guess ahead. A guess that came true doubles the next one; after a wrong one
    fewer tokens are guessed and longer agreement is asked for, so that texts that only seem to
    repeat themselves cost little.
    """

    def __init__(self, count: int) -> None:
        """Begins without a text.

        Args:
            count: Tokens to guess at most.
        """
        self._count, self._ahead, self._least = count, _FIRST, _SIZES[-1]
        self._ids: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # where what follows a run of tokens begins

    def __call__(self, input_ids: torch.Tensor, tried: int, right: int, most: int) -> torch.Tensor:
        """Guesses the next tokens; see `Guesser`."""
        if tried:
            self._least += -1 if right else 1
            self._least = max(_SIZES[-1], min(self._least, _SIZES[0]))
            self._ahead = 2 * tried if right == tried else max(_FEWEST, right)
        for token in input_ids[0, len(self._ids) :].tolist():
            for size in _SIZES:  # the newest token itself is not indexed: nothing follows it yet
                self._behind[tuple(self._ids[-size:])] = len(self._ids)
            self._ids.append(token)
        for size in _SIZES:
            begin = self._behind.get(tuple(self._ids[-size:]))
            if size >= self._least and begin is not None:
                return input_ids[:, begin : begin + max(0, min(self._ahead, self._count, most))]
        return input_ids[:, :0]


class Assistant:
    """Lets a small model of the same vocabulary guess (speculative decoding, Leviathan 2023)."""

    def __init__(self, model: Any) -> None:
        """Begins without a text.

        Args:
            model: The small model.

        Raises:
            ValueError: If what the model remembers cannot be taken back.
        """
        if not can_share(model.config):
            raise ValueError(
                "`assistant_model` has to be a model that remembers keys and values only, but is a "
                f"{model.config.model_type}: its guesses could not be taken back."
            )
        self._model, self._count = model, 5
        self._cache, self._ids = RowsCache(), torch.empty(0, dtype=torch.long)

    def __call__(self, input_ids: torch.Tensor, tried: int, right: int, most: int) -> torch.Tensor:
        """Guesses the next tokens; see `Guesser`. It guesses more after right guesses."""
        if tried:
            self._count = self._count + 2 if right == tried else max(1, self._count - 1)
        ids = input_ids[0].to(self._model.device)
        same = min(len(ids) - 1, len(self._ids), self._cache.length)
        agree = ids[:same] == self._ids.to(ids.device)[:same]
        known = int(agree.long().cumprod(0).sum())
        self._cache.truncate(known)
        new, guesses = ids[None, known:], ids[:0]
        for _ in range(min(self._count, most)):
            outputs = self._model(new, use_cache=True, **{CACHE: self._cache})
            new = outputs.logits[:, -1:].argmax(dim=-1)  # (1, 1)
            guesses = torch.cat([guesses, new[0]])
        self._ids = torch.cat([ids, guesses])
        return guesses[None].to(input_ids.device)
