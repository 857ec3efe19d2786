"""A cache of what is built once per tokenizer or model, and freed with it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

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
    cache: WeakKeyDictionary[K, V] = WeakKeyDictionary()
    lock = threading.RLock()

    @functools.wraps(make)
    def cached(key: K) -> V:
        with lock:
            if key not in cache:
                cache[key] = make(key)
            return cache[key]

    return cached
