"""The engine of a model: one thread that runs it for all callers, and a queue of requests.

The thread starts with the first request and ends with the model, or with the interpreter. A forked
child has engines of its own.
"""

from __future__ import annotations

import atexit
import math
import os
import threading
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import Any
from weakref import WeakSet, ref

import torch

from langchain_llama_stop.engine.outbox import HERE, seconds_until
from langchain_llama_stop.engine.request import Request
from langchain_llama_stop.engine.scheduler import Scheduler
from langchain_llama_stop.tokens.weak_cache import cached_per_process

_GRACE = 1.0
"""Seconds that a fork waits for a step to end; then it forks in the midst of it. Chosen."""

_LAST_STEP = 10.0
"""Seconds that the interpreter's exit waits for a step to end. Chosen."""

INSIDE: ContextVar[tuple[Engine, ...]] = ContextVar("inside", default=())
"""The engines whose processors or criteria this code runs in."""


class Engine:
    """One thread that runs one model.

    To abort is to put into its queue, which needs no lock: garbage collection may do it at any
    point of any thread.
    """

    def __init__(self, model: Any) -> None:
        """Starts without a thread; keeps a weak reference to the model."""
        self._inbox: SimpleQueue[list[Request] | None] = SimpleQueue()
        inbox = self._inbox
        self._model = ref(model, lambda _: inbox.put(None))
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._schedulers: list[Scheduler] = []  # more than one while a processor waits
        self._ending = False
        self.stepping = threading.RLock()
        _ENGINES.add(self)

    @property
    def queued(self) -> int:
        """How many calls it has not looked at, and requests that wait for their prefill."""
        return self._inbox.qsize() + sum(scheduler.queued for scheduler in self._schedulers)

    @property
    def running_rows(self) -> int:
        """How many sequences are being decoded in the shared batch."""
        return sum(scheduler.running_rows for scheduler in self._schedulers)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return self._inbox.empty() and not any(s.busy for s in self._schedulers)

    def add(self, requests: list[Request]) -> None:
        """Queues the requests of a call, all at once; starts the thread if there is none."""
        with self._starting:
            if self._thread is None:
                name = "llama-stop engine"
                thread = threading.Thread(target=self._run, name=name, daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise RuntimeError(
                        f"The thread that runs the model could not start ({error}): end other "
                        "threads, or allow the process more of them (`ulimit -u`)."
                    ) from error
                self._thread = thread
        self._inbox.put(requests)

    def abort(self, requests: Iterable[Request]) -> None:
        """Lets requests end early, finished or not; may be called from any thread."""
        running = [request for request in requests if not request.finished]
        for request in running:
            request.aborted = True
        if running:
            self.wake()

    def wake(self) -> None:
        """Lets the thread look around, if it waits."""
        self._inbox.put(None)

    def serve(self, done: Callable[[], bool], until: float = math.inf) -> None:
        """Runs the model for new requests until `done`, and those to their end.

        Called on the thread itself.

        Args:
            done: Whether to stop; it is asked after each step and each message.
            until: The time by `time.monotonic` at which to ask again in any case.
        """
        scheduler = Scheduler(self._model)
        self._schedulers.append(scheduler)
        try:
            while not self._ending:
                if not done():
                    self._read(scheduler, until)
                elif not scheduler.busy:
                    return
                if scheduler.busy:
                    self._step(scheduler)
        finally:
            self._schedulers.remove(scheduler)

    def stop(self) -> None:
        """Ends the thread after its step; who still waits for an answer waits for ever."""
        self._ending = True
        self.wake()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join(_LAST_STEP)

    def _run(self) -> None:
        HERE.engine = self
        if (model := self._model()) is not None and model.device.type == "cuda":
            torch.cuda.set_device(model.device)  # a thread starts with the first GPU
        del model
        # Without inference mode a step takes an eighth longer where the host is the limit (`make
        # bench ARGS="--shape thin-32"`).
        with torch.inference_mode():
            self.serve(lambda: self._model() is None)

    def _read(self, scheduler: Scheduler, until: float) -> None:
        """Takes what is in the queue; waits for it if there is nothing else to do."""
        try:
            if scheduler.busy:
                requests = self._inbox.get_nowait()
            else:
                requests = self._inbox.get(timeout=seconds_until(until))
            while True:
                for request in requests or ():
                    if request.threads != torch.get_num_threads():
                        torch.set_num_threads(request.threads)
                    scheduler.add(request)
                requests = self._inbox.get_nowait()
        except Empty:
            return

    def _step(self, scheduler: Scheduler) -> None:
        """One step; whatever fails, no caller waits for ever."""
        with self.stepping:
            try:
                scheduler.step()
            except BaseException as error:
                scheduler.fail(error)


_ENGINES: WeakSet[Engine] = WeakSet()

_EXITING = threading.Event()


@cached_per_process
def engine_of(model: Any) -> Engine:
    """The engine of a model."""
    return Engine(model)


def check_caller(engine: Engine) -> None:
    """Raises RuntimeError in a processor or criterion of this engine's own, or at exit."""
    if _EXITING.is_set():
        raise RuntimeError("A model answers until the interpreter exits, and it is exiting.")
    if engine in INSIDE.get():
        raise RuntimeError(
            "The model has to be called from outside of its own processors and criteria, but was "
            "called from inside: call it in a callback, or another model."
        )


@atexit.register
def _stop_all() -> None:
    """Ends all threads: one inside torch while the interpreter goes down may crash it."""
    _EXITING.set()
    for engine in list(_ENGINES):
        engine.stop()


class _Held(threading.local):
    """The engines that the fork of this thread holds between two steps."""

    engines: tuple[Engine, ...] = ()


_HELD = _Held()


def _before_fork() -> None:
    # Between two steps nobody holds a lock of torch's or of the allocator's.
    _HELD.engines = tuple(e for e in list(_ENGINES) if e.stepping.acquire(timeout=_GRACE))


def _after_fork_in_parent() -> None:
    for engine in _HELD.engines:
        engine.stepping.release()
    _HELD.engines = ()


def _after_fork_in_child() -> None:
    _HELD.engines = ()
    HERE.engine = None
    _ENGINES.clear()  # their threads are the parent's


if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
