"""Where a call waits for what the engine has for it."""

from __future__ import annotations

import math
import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class _Engine(Protocol):
    """What an outbox needs of the engine on whose thread it waits."""

    def wake(self) -> None: ...

    def serve(self, done: Callable[[], bool], until: float) -> None: ...


class _Here(threading.local):
    """The engine whose thread this is; None on all other threads."""

    engine: _Engine | None = None


HERE = _Here()


class Outbox:
    """The queue of one call: engines put pieces of answers into it, the call takes them.

    A processor that calls another model waits on its own engine's thread. The engine serves its
    other requests meanwhile: else two models whose processors call each other would wait for ever.
    """

    def __init__(self) -> None:
        """Starts empty; belongs to the process that makes it."""
        self._items: SimpleQueue[Any] = SimpleQueue()
        self._engine: _Engine | None = None  # on whose thread the call waits
        self._pid = os.getpid()

    def put(self, item: Any) -> None:
        """Adds an item; called by engines."""
        self._items.put(item)
        if self._engine:
            self._engine.wake()

    def get(self, until: float) -> Any:
        """Waits for the next item.

        Args:
            until: The time by `time.monotonic` at which to stop waiting.

        Returns:
            The item; None if the time is up, even if one has come then.

        Raises:
            RuntimeError: In a forked child, to which the parent's answers do not come.
        """
        if os.getpid() != self._pid:
            raise RuntimeError(
                "The answer has to be read in the process that asked for it, but this is a child "
                "that was forked meanwhile: ask again here."
            )
        self._engine = HERE.engine  # who takes from it may change from item to item
        if self._engine:
            self._engine.serve(lambda: not self._items.empty() or time.monotonic() >= until, until)
        try:
            item = self._items.get(timeout=seconds_until(until))
        except Empty:
            return None
        return item if time.monotonic() < until else None


def seconds_until(until: float) -> float | None:
    """The seconds until a time by `time.monotonic`; None if it never comes."""
    return None if until == math.inf else max(0.0, until - time.monotonic())
