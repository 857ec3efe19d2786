"""What ends a call before its time: too many are here, its time is over, its caller has gone."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_llama_stop.tokens.weak_cache import cached_per_object


class ModelBusyError(RuntimeError):
    """A call was refused, as too many are at the model already."""


class _Calls:
    """How many calls are at one model."""

    def __init__(self) -> None:
        # Entered anew where, in the midst of it, an abandoned stream is collected and leaves.
        self.lock = threading.RLock()
        self.count = 0


@cached_per_object
def _calls(model: Any) -> _Calls:
    """The calls at a model."""
    return _Calls()


@contextmanager
def admitted(model: Any, most: int) -> Iterator[None]:
    """Counts a call for as long as it lasts.

    Args:
        model: The model.
        most: Calls that may be there at once.

    Raises:
        ModelBusyError: If there are as many already.
    """
    calls = _calls(model)
    with calls.lock:
        if room := calls.count < most:
            calls.count += 1
    if not room:
        raise ModelBusyError(
            f"`max_calls` allows {most} calls at one model at once, and as many are there: try "
            "again later, or allow more."
        )
    try:
        yield
    finally:
        with calls.lock:
            calls.count -= 1


class Deadline:
    """When a call has to be over.

    Attributes:
        until: The time by `time.monotonic`; infinite where there is none.
    """

    def __init__(self, seconds: float | None) -> None:
        """Begins now.

        Args:
            seconds: How long the call may take; None for any time.
        """
        self._seconds = seconds
        self.until = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self.until

    def error(self, finished: int, answers: int) -> TimeoutError:
        """Says that it is.

        Args:
            finished: Answers that are there.
            answers: Answers that were asked for.

        Returns:
            The error to raise.
        """
        return TimeoutError(
            f"`timeout` ({self._seconds} seconds) ran out with {finished} of {answers} answers "
            "finished: give more seconds or fewer `max_new_tokens`, or take what is there with "
            "`on_timeout='cut'`."
        )


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
def cancelled_by(cancellation: Cancellation | None) -> Iterator[None]:
    """Makes calls of this thread such that they can be cancelled.

    Args:
        cancellation: By what; None by nothing, for what is done for others.
    """
    token = _CURRENT.set(cancellation)
    try:
        yield
    finally:
        _CURRENT.reset(token)
