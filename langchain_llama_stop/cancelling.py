"""Calls whose caller has gone: an awaited call that is cancelled takes its jobs out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Cancelled(Exception):
    """Ends the thread of a call whose caller has gone; nobody sees it."""


class Cancellation:
    """Lets one thread take out what another one waits for."""

    def __init__(self) -> None:
        """Begins with nothing to take out."""
        self._lock = threading.Lock()
        self._leave: list[Callable[[], None]] = []
        self._cancelled = False

    def cancel(self) -> None:
        """Takes out all jobs of the call, and those that are still to come."""
        with self._lock:
            self._cancelled, leave = True, self._leave
        for take_out in leave:
            take_out()

    def add(self, leave: Callable[[], None]) -> None:
        """Says how a job of the call is taken out.

        Args:
            leave: Takes it out, from any thread.

        Raises:
            Cancelled: If the call has been cancelled.
        """
        self.check()
        with self._lock:
            self._leave.append(leave)
        self.check()

    def check(self) -> None:
        """Ends a call that has been cancelled.

        Raises:
            Cancelled: If it has.
        """
        if self._cancelled:
            raise Cancelled


_CURRENT: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


def current() -> Cancellation:
    """Returns what can cancel the call that this thread makes; nobody may have it in hand."""
    return _CURRENT.get() or Cancellation()


@contextmanager
def cancelled_by(cancellation: Cancellation) -> Iterator[None]:
    """Makes calls of this thread such that they can be cancelled.

    Args:
        cancellation: By what.
    """
    token = _CURRENT.set(cancellation)
    try:
        yield
    finally:
        _CURRENT.reset(token)
