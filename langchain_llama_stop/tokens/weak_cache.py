"""A cache of what is built once per tokenizer or model, and freed with it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

from langchain_llama_stop._locks import ForkSafeLock, in_forked_child

K = TypeVar("K")
V = TypeVar("V")


def cached_per_object(make: Callable[[K], V]) -> Callable[[K], V]:
    """Decorates a function of one object: it runs once per object, in one thread.

    Args:
        make: The function. Its result must not refer to the object, which would then never be
            freed.

    Returns:
        The function; it returns the same result as long as the object lives.
    """
    return _cached(make, in_child=False)


def cached_per_process(make: Callable[[K], V]) -> Callable[[K], V]:
    """The same for what holds locks or threads: a forked child makes it anew."""
    return _cached(make, in_child=True)


def _cached(make: Callable[[K], V], *, in_child: bool) -> Callable[[K], V]:
    """The cached function; `in_child` tells whether a forked child makes everything anew."""
    cache: WeakKeyDictionary[K, V] = WeakKeyDictionary()
    lock = ForkSafeLock()
    if in_child:
        in_forked_child(cache.clear)

    @functools.wraps(make)
    def cached(key: K) -> V:
        with lock():
            if key not in cache:
                cache[key] = make(key)
            return cache[key]

    return cached
