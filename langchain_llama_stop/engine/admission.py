"""What ends a call early: too many calls at the model, its deadline, or its caller's cancelling."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from langchain_llama_stop.tokens.weak_cache import cached_per_process


class ModelBusyError(RuntimeError):
    """A call was refused because `max_calls` calls are at the model already."""


class _Calls:
    """How many calls are at one model."""

    def __init__(self) -> None:
        # Reentrant: garbage collection may close a stream while this thread holds the lock.
        self.lock = threading.RLock()
        self.count = 0


@cached_per_process
def _calls(model: Any) -> _Calls:
    """The calls at a model."""
    return _Calls()


@contextmanager
def admitted(model: Any, max_calls: int) -> Iterator[None]:
    """Counts a call at a model for as long as it lasts; raises `ModelBusyError` if it is full."""
    calls = _calls(model)
    with calls.lock:
        if room := calls.count < max_calls:
            calls.count += 1
    if not room:
        raise ModelBusyError(
            f"`max_calls` allows {max_calls} calls at one model at once, and as many are there: "
            "try again later, or allow more."
        )
    try:
        yield
    finally:
        with calls.lock:
            calls.count -= 1


class Deadline:
    """When a call has to be finished; its time runs from its construction.

    Attributes:
        until: The time by `time.monotonic`; infinite if the call may take any time.
    """

    def __init__(self, seconds: float | None) -> None:
        """Starts the clock; None allows any time."""
        self._seconds = seconds
        self.until = math.inf if seconds is None else time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.until

    def error(self, finished: int, answers: int) -> TimeoutError:
        """The error to raise with `finished` of `answers` answers done."""
        return TimeoutError(
            f"`timeout` ({self._seconds} seconds) ran out with {finished} of {answers} answers "
            "finished: give more seconds or fewer `max_new_tokens`, or take what is there with "
            "`on_timeout='cut'`."
        )


class Cancelled(Exception):
    """Ends a call that was cancelled; only a processor that has made the call sees it."""


class Cancellation:
    """Lets one thread cancel calls that other threads wait for.

    It needs no lock: garbage collection may cancel at any point of any thread.

    Attributes:
        until: The time by `time.monotonic` at which the calls are cancelled in any case.
    """

    def __init__(self, until: float = math.inf) -> None:
        """Starts with no request to abort."""
        self.until = until
        self._aborts: list[Callable[[], None]] = []
        self._cancelled = False

    def cancel(self) -> None:
        """Aborts all requests of the calls, and those that are still to come."""
        self._cancelled = True
        for abort in list(self._aborts):
            abort()

    @contextmanager
    def aborting(self, abort: Callable[[], None]) -> Iterator[None]:
        """Calls `abort` if a call is, or was, cancelled; from any thread, perhaps twice."""
        self._aborts.append(abort)
        if self._cancelled:
            abort()
        try:
            yield
        finally:
            self._aborts.remove(abort)

    def check(self) -> None:
        """Raises `Cancelled` if the calls have been cancelled."""
        if self._cancelled or time.monotonic() >= self.until:
            raise Cancelled


CURRENT: ContextVar[Cancellation | None] = ContextVar("cancellation", default=None)


def current_cancellation() -> Cancellation:
    """This call's cancellation; one that nobody can trigger if the call cannot be cancelled."""
    return CURRENT.get() or Cancellation()


@contextmanager
def cancelled_by(cancellation: Cancellation) -> Iterator[None]:
    """Makes the calls of this thread cancellable for as long as the context lasts.

    Args:
        cancellation: What cancels them; so does what could cancel them before.
    """
    outer = current_cancellation()
    cancellation.until = min(cancellation.until, outer.until)
    with outer.aborting(cancellation.cancel):
        token = CURRENT.set(cancellation)
        try:
            yield
        finally:
            CURRENT.reset(token)
