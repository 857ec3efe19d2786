"""Keys and values of earlier prompts, kept for prompts that begin the same way.

A conversation sends all of its past with every turn, and all prompts of a RAG app begin with the
same instructions. What the model has computed for them is kept here, found again by token ids
(never by text), and continued.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_llama_stop._weights import adapter_state
from langchain_llama_stop.engine.kv_cache import LayerStates
from langchain_llama_stop.tokens.encoding import common_length
from langchain_llama_stop.tokens.weak_cache import cached_per_object

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHORTEST = 32
"""Tokens under which a common prefix is not used: reading it again costs next to nothing, and in
low precision another way of computing it may round differently."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """What is known of a text.

    Attributes:
        ids: Its tokens.
        states: Their keys and values, never written to.
        prompt: How many of the tokens were a prompt.
        logits: The model's scores behind that prompt, (vocab,): the same prompt again needs no
            forward pass, and gets the very same answer in any precision.
    """

    ids: tuple[int, ...]
    states: LayerStates
    prompt: int = 0
    logits: torch.Tensor | None = None


class PrefixCache:
    """The known prefixes of one model, bounded in tokens; the longest unused go first."""

    def __init__(self) -> None:
        """Begins empty."""
        self._lock = threading.Lock()
        self._entries: list[Prefix] = []  # the last used last
        self._state: object = None  # of the weights that the entries were computed with

    @classmethod
    def of(cls, model: PreTrainedModel, limit: int) -> PrefixCache | None:
        """Returns the prefix cache of a model, emptied if its adapters or weights have changed.

        That takes a millisecond or so: every parameter is asked.

        Args:
            model: The model.
            limit: Tokens that the caller wants to be kept at most.

        Returns:
            The cache; None if `limit` is 0.
        """
        if not limit:
            return None
        cache = _cache(model)
        # Configs are compared as objects. Training in place raises the versions of parameters;
        # those that are fetched from a disk for one pass have none.
        configs = [_Same(config) for config in getattr(model, "peft_config", {}).values()]
        versions = sum(p._version for p in model.parameters() if not p.is_inference())
        state = (configs, adapter_state(model), versions)
        with cache._lock:
            if cache._state != state:
                cache._entries, cache._state = [], state
        return cache

    @classmethod
    def forget(cls, model: PreTrainedModel) -> int:
        """Drops all that is kept for a model.

        Args:
            model: The model.

        Returns:
            The tokens that were kept.
        """
        cache = _cache(model)
        with cache._lock:
            tokens, cache._entries = cache.tokens, []
        return tokens

    @property
    def tokens(self) -> int:
        """Tokens kept now."""
        return sum(len(entry.ids) for entry in self._entries)

    def find(self, ids: Sequence[int]) -> tuple[Prefix | None, int]:
        """Finds what is known of the beginning of a prompt.

        Args:
            ids: The prompt.

        Returns:
            The entry and how many of its tokens to use: all of the prompt's if their scores are
            known too, else at most all but the last. None and 0 where there is too little.
        """
        with self._lock:
            best, length = None, SHORTEST - 1
            for entry in self._entries:
                shared = common_length(ids, entry.ids)
                if shared == len(ids) and (entry.logits is None or entry.prompt != shared):
                    shared -= 1
                if shared > length:
                    best, length = entry, shared
            if best is None:
                return None, 0
            self._entries.remove(best)
            self._entries.append(best)
            return best, length

    def put(self, entry: Prefix, limit: int) -> None:
        """Keeps an entry, in place of those that it continues.

        Args:
            entry: The entry; what is over the limit is cut off.
            limit: Tokens to keep at most.
        """
        if len(entry.ids) > limit:
            states = [s and (s[0][:, :limit], s[1][:, :limit]) for s in entry.states]
            states = [s and (s[0].clone(), s[1].clone()) for s in states]  # no view on the rest
            entry = Prefix(entry.ids[:limit], states)
        with self._lock:
            if any(common_length(entry.ids, e.ids) == len(entry.ids) for e in self._entries):
                return  # nothing new
            self._entries = [
                e for e in self._entries if common_length(e.ids, entry.ids) < len(e.ids)
            ]
            self._entries.append(entry)
            while self.tokens > limit:
                self._entries.pop(0)


class _Same:
    """An object that is equal to itself only, and kept: its `id` is not given to another."""

    def __init__(self, held: object) -> None:
        self._held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other._held is self._held

    __hash__ = None  # type: ignore[assignment]


@cached_per_object
def _cache(model: PreTrainedModel) -> PrefixCache:
    """The prefix cache of a model."""
    return PrefixCache()
