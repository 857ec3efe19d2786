"""Keys and values of earlier prompts, kept for prompts that begin the same way.

A conversation sends all of its past with every turn. What the model has computed for it is kept
here, found again by token ids (never by text), and continued.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from weakref import WeakKeyDictionary

from transformers import DynamicCache, PreTrainedModel

from langchain_llama_stop.loading import adapter_state

_CACHES: WeakKeyDictionary[PreTrainedModel, PrefixCache] = WeakKeyDictionary()


class PrefixCache:
    """The kept keys and values of one model, bounded in tokens; the longest unused go first."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Begins empty.

        Args:
            model: The model that computes the keys and values.
        """
        self._config = model.config
        self._lock = threading.Lock()
        self._entries: list[tuple[tuple[int, ...], DynamicCache]] = []  # the newest last
        self._adapters: object = None
        self.limit = 0

    @classmethod
    def of(cls, model: PreTrainedModel, limit: int) -> PrefixCache | None:
        """Returns the prefix cache of a model, emptied if its adapters have changed.

        Args:
            model: The model.
            limit: Tokens to keep at most.

        Returns:
            The cache; None if `limit` is 0.
        """
        if not limit:
            return None
        cache = _CACHES.setdefault(model, cls(model))
        adapters = {name: id(config) for name, config in getattr(model, "peft_config", {}).items()}
        state = (adapters, adapter_state(model))
        with cache._lock:
            if cache._adapters != state:
                cache._entries, cache._adapters = [], state
            cache.limit = limit
        return cache

    @property
    def tokens(self) -> int:
        """Tokens kept now."""
        return sum(len(ids) for ids, _ in self._entries)

    def take(self, ids: Sequence[int]) -> DynamicCache:
        """Takes the entry that shares the longest prefix with a prompt out of the cache.

        Args:
            ids: The prompt.

        Returns:
            Keys and values of a proper prefix of `ids`, for the caller alone; empty if there is
            no entry that shares one.
        """
        with self._lock:
            shared = [_common(ids[:-1], kept) for kept, _ in self._entries]
            best = max(range(len(shared)), key=shared.__getitem__, default=None)
            if best is None or not shared[best]:
                return DynamicCache(config=self._config)
            kept, cache = self._entries.pop(best)
            length = shared[best]
        if surplus := cache.get_seq_length() - length:
            cache.crop(-surplus)
        return cache

    def put(self, ids: Sequence[int], cache: DynamicCache) -> None:
        """Keeps the keys and values of a finished generation.

        Args:
            ids: Prompt and answer.
            cache: Their keys and values, which may lack those of the newest tokens.
        """
        length = cache.get_seq_length()
        if not 0 < length <= len(ids):  # nothing was computed, or more than the caller has seen
            return
        with self._lock:
            self._entries.append((tuple(ids[:length]), cache))
            while self._entries and self.tokens > self.limit:
                self._entries.pop(0)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two sequences of ids."""
    length = min(len(a), len(b))
    if tuple(a[:length]) == tuple(b[:length]):
        return length
    return next(i for i in range(length) if a[i] != b[i])
