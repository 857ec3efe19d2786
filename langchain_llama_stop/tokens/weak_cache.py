"""What is made once for each tokenizer or model, and goes with it."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

K = TypeVar("K")
V = TypeVar("V")


def cached_per_object(make: Callable[[K], V]) -> Callable[[K], V]:
    """Decorates a function of one object, so that it is asked once for each, by one thread.

    Args:
        make: The function. What it returns may not refer to the object, which would then live on
            for ever.

    Returns:
        The function, which remembers what it has returned as long as the object lives.
    """
    known: WeakKeyDictionary[K, V] = WeakKeyDictionary()
    lock = threading.RLock()

    @functools.wraps(make)
    def remembered(key: K) -> V:
        with lock:
            if key not in known:
                known[key] = make(key)
            return known[key]

    return remembered
