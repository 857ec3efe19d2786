"""Who runs the model: all calls on one model share its forward passes.

Each call decodes its own sequences with its own options; the forward pass is shared. There is no
thread of ours: of all callers that wait for their answers, one leads. It runs the passes for all of
them until its own request has what it waits for; then the next caller takes over. Rows join between
two passes and leave when they are finished.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import ref

import torch
from transformers import PreTrainedModel

from langchain_llama_stop.engine.admission import cancelled_by
from langchain_llama_stop.engine.batch import Batch, prefill
from langchain_llama_stop.engine.oom import free_caches, out_of_memory, without_frames
from langchain_llama_stop.engine.prefix_cache import PrefixCache
from langchain_llama_stop.engine.request import Request, unbatched_pass
from langchain_llama_stop.tokens.weak_cache import cached_per_object

logger = logging.getLogger("langchain_llama_stop")

_PADDING = 64
"""Tokens of padding that a shared prefill may have in any case; half of its real tokens beyond.
Chosen, not tuned: so much padding costs less than a pass for each prompt."""


class Scheduler:
    """Runs the forward passes of one model.

    `_step` and `_remove_aborted` run in inference mode, whatever mode the calling thread is in:
    the buffers that one caller makes are written to by the next. Without inference mode a step
    takes an eighth longer where the host is the limit (`make bench ARGS="--shape thin-32"`).
    """

    def __init__(self, model: Any) -> None:
        """Starts with no request; keeps a weak reference to the model."""
        self._ref = ref(model)
        # Guards the fields below, up to the blank line. Reentrant, because garbage collection may
        # close a stream, which aborts its request, while this thread holds the lock.
        self._mutex = threading.RLock()
        self._leader = 0  # the thread that leads; 0 if none does
        self._queue: list[Request] = []  # wait for their prefill, the first come first
        self._aborted: list[Request] = []
        self._waiters: dict[Request, tuple[threading.Condition, int | None]] = {}

        # Used by the leader only.
        self._batch: Batch | None = None
        self._just_prefilled = False  # whether the last step was a prefill
        self._unbatchable: list[Request] = []
        self._prefix_cache: PrefixCache | None = None  # the one used by the last prefill

    @property
    def _model(self) -> Any:
        return self._ref()

    @property
    def queued(self) -> int:
        """How many requests wait for their prefill."""
        return len(self._queue)

    @property
    def running_rows(self) -> int:
        """How many rows of the shared batch are not finished."""
        return sum(map(len, self._batch.running().values())) if self._batch else 0

    @property
    def idle(self) -> bool:
        """Whether there is no request, and no caller that waits or leads."""
        requests = self._batch or self._queue or self._aborted or self._unbatchable
        return not (requests or self._leader or self._waiters)

    def add_request(self, request: Request) -> None:
        """Queues a request; its caller has to `run_until` it is finished, and to `abort` it."""
        with self._mutex:
            self._queue.append(request)

    def run_until(
        self, request: Request, since: int | None = None, until: float = math.inf
    ) -> None:
        """Blocks until a request is finished or has advanced; runs the model if nobody else does.

        Args:
            request: The request.
            since: The `steps` that the caller has seen; None to wait for the end.
            until: The time by `time.monotonic` at which to return in any case.

        Raises:
            BaseException: What has ended the request, or came up while the caller led.
        """
        if self._leader == threading.get_ident():
            raise RuntimeError(
                "The model has to be called from outside of its own processors and criteria, but "
                "was called from inside: call it in a callback, or another model."
            )

        def done() -> bool:
            return _advanced(request, since) or time.monotonic() >= until

        with self._mutex:
            try:
                while self._leader and not done():
                    turn = threading.Condition(self._mutex)
                    self._waiters[request] = (turn, since)
                    turn.wait(None if until == math.inf else max(0.0, until - time.monotonic()))
                if lead := not done():
                    self._leader = threading.get_ident()
            finally:
                self._waiters.pop(request, None)
                if not self._leader:  # this caller may have been woken to lead, and does not
                    self._wake()
        if lead:
            try:
                with cancelled_by(None):  # the processors that run here may be another call's
                    while not done():
                        self._step()
                        with self._mutex:
                            self._wake()
            finally:
                self._release_lead()
        if request.error:
            raise request.error

    def abort(self, request: Request) -> None:
        """Removes a request, finished or not; may be called from any thread."""
        with self._mutex:
            if request in self._queue:
                self._queue.remove(request)
                request.end()
                self._wake()
            if request.finished:
                return
            self._aborted.append(request)
            if self._leader:
                return  # the leader removes it
            self._leader = threading.get_ident()
        self._release_lead()

    def _wake(self) -> None:
        """Wakes the callers that have what they wait for and, if nobody leads, one to lead."""
        led = self._leader != 0
        for request, (turn, since) in self._waiters.items():
            if _advanced(request, since):
                turn.notify()
            elif not led:
                led = True
                turn.notify()

    def _release_lead(self) -> None:
        """Gives up the lead once no aborted request is left to be removed."""
        leads = True
        while leads:
            try:
                self._remove_aborted()
            except BaseException:
                self._give_up_lead()
                raise
            with self._mutex:
                leads = bool(self._aborted)
                if not leads:
                    self._give_up_lead()

    def _give_up_lead(self) -> None:
        with self._mutex:
            self._leader = 0
            self._wake()

    @torch.inference_mode()
    def _remove_aborted(self) -> None:
        """Removes the aborted requests; their prefixes are cached."""
        with self._mutex:
            aborted = [request for request in self._aborted if not request.finished]
            self._aborted.clear()
            self._queue = [request for request in self._queue if request not in aborted]
        if aborted:
            for request in aborted:
                self._cache_prefix(self._batch, request)
                request.end()
            self._unbatchable = [request for request in self._unbatchable if not request.finished]
            with self._moving_rows(self._batch):
                self._batch = self._batch and self._batch.compact(at_once=True)

    @contextmanager
    def _moving_rows(self, *batches: Batch | None) -> Iterator[None]:
        """Ends the batches' requests if an error leaves rows moved in some layers only."""
        try:
            yield
        except BaseException as error:
            for batch in batches:
                for request, _ in batch.owners if batch else ():
                    if not request.finished:
                        request.end(error)
            if self._batch in batches:
                self._batch = None
            if not isinstance(error, Exception):
                raise

    @torch.inference_mode()
    def _step(self) -> None:
        """One prefill of queued requests or one decode step of all running ones."""
        self._remove_aborted()
        # In turns: running rows do not wait for more than one prefill.
        group = [] if self._batch and self._just_prefilled else self._next_group()
        self._just_prefilled = bool(group)
        if group:
            self._prefill(group)
        elif self._batch:
            self._decode_step(self._batch)
        try:
            for request in self._unbatchable:
                try:
                    request.advance(unbatched_pass(self._model, request))
                except Exception as error:
                    request.end(without_frames(error))
                except BaseException as error:
                    request.end(error)
                    raise
        finally:
            self._unbatchable = [request for request in self._unbatchable if not request.finished]

    def _next_group(self) -> list[Request]:
        """The first requests of the queue that fit into the batch and into one padded prefill."""
        with self._mutex:
            while self._queue and self._queue[0].unbatchable:
                self._unbatchable.append(self._queue.pop(0))
            running = self.running_rows
            group: list[Request] = []
            lengths: list[int] = []
            for request in list(self._queue):
                rows = [*lengths, *map(len, request.prefill_ids().values())]
                padding = len(rows) * max(rows) - sum(rows)
                if (
                    request.unbatchable
                    or (running and running + len(rows) > request.max_rows)
                    or (group and len(rows) > request.max_rows)
                    or (group and (request.prefill_alone or group[-1].prefill_alone))
                    or (group and padding > _PADDING + sum(rows) // 2)
                ):
                    break
                group.append(request)
                lengths = rows
            self._queue = [request for request in self._queue if request not in group]
            return group

    def _prefill(self, group: list[Request]) -> None:
        """Prefills requests; their rows join the running ones."""
        failure = None
        try:
            batch, logits, cache = prefill(self._model, group)
            self._prefix_cache = cache or self._prefix_cache
        except Exception as error:
            failure = without_frames(error)
        except BaseException:
            self._requeue(group)
            raise
        if failure:
            return self._prefill_failed(group, failure)
        with self._moving_rows(batch):
            for request in group:
                rows = [i for i, (owner, _) in enumerate(batch.owners) if owner is request]
                if len(rows) == 1 and request.prefix_cache and not request.steps:
                    request.prompt_logits = logits[rows[0], -1].clone()
        before = self._batch
        try:
            self._process_logits(batch, logits)
        finally:  # every request has its logits: the others join even if one was interrupted
            with self._moving_rows(before, batch):
                if joined := batch.compact(at_once=True):
                    if before and (running := before.compact(at_once=True)):
                        failure = None
                        try:
                            running.join(joined)
                        except Exception as error:  # the running rows are as they were
                            failure = without_frames(error)
                        if failure:
                            self._join_failed(list(joined.running()), running, failure)
                        joined = running
                    self._batch = joined

    def _prefill_failed(self, group: list[Request], failure: Exception) -> None:
        """Lets requests try again, alone or with more memory; a last failure ends the request."""
        no_memory, first_try = out_of_memory(failure), not group[0].prefill_alone
        for request in group:
            request.prefill_alone = True
        freed = no_memory and first_try and free_caches(self._model)
        if len(group) > 1 or freed:
            cause = type(failure).__name__
            logger.info("A prefill of %d requests failed, is tried again: %s", len(group), cause)
            self._requeue(group)
        elif self._batch and no_memory:
            self._preempt(group, self._batch)
        else:
            group[0].end(failure)

    def _join_failed(self, group: list[Request], running: Batch, failure: Exception) -> None:
        """Lets requests wait that could not join the running rows for lack of memory."""
        if out_of_memory(failure):
            free_caches(self._model)
            self._preempt(group, running)
        else:
            for request in group:
                request.end(failure)

    def _preempt(self, group: list[Request], running: Batch) -> None:
        """Lets requests wait until fewer rows run than now; then they are prefilled again."""
        rows = sum(map(len, running.running().values()))
        for request in group:
            request.max_rows = max(1, rows + request.running_rows - 1)
            logger.info("Memory ran out: a request waits until fewer than %d rows run.", rows)
        self._requeue(group)

    def _requeue(self, group: list[Request]) -> None:
        with self._mutex:
            self._queue[:0] = group

    def _decode_step(self, batch: Batch) -> None:
        """One forward pass over the newest token of all rows."""
        ((first, _), *others) = batch.owners
        if not others and not self._queue and first.next_pass:
            tokens = first.next_pass.tokens  # with its draft: (1, 1 or more)
        else:
            tokens = batch.mask.new_zeros(len(batch.owners), 1)
            for request, rows in batch.running().items():
                assert request.next_pass is not None
                tokens[rows] = request.next_pass.tokens[:, :1].to(tokens.device)
        failure = None
        try:
            logits = batch.forward(self._model, tokens, keep=tokens.shape[1])
        except Exception as error:
            failure = without_frames(error)
        if failure:
            self._decode_failed(batch, failure)
        else:
            self._process_logits(batch, logits)
        with self._moving_rows(batch):
            self._batch = batch.compact()

    def _decode_failed(self, batch: Batch, failure: Exception) -> None:
        """Without memory the newest request waits; any other failure ends it."""
        no_memory = out_of_memory(failure)
        if no_memory and free_caches(self._model):
            return  # and try again
        *older, newest = batch.running()
        if no_memory and older:
            # Its rows have no owner from here on: `compact` removes them.
            batch.owners = [(r, -1 if r is newest else row) for r, row in batch.owners]
            batch.compact(at_once=True)
            self._preempt([newest], batch)
        else:
            newest.end(failure)

    def _process_logits(self, batch: Batch, logits: torch.Tensor) -> None:
        """Advances all requests by the logits of a pass; an interrupt is raised afterwards."""
        interrupt: BaseException | None = None
        for request, rows in batch.running().items():
            try:
                request.advance(logits if len(rows) == len(logits) else logits[rows])
            except BaseException as error:  # else the next pass would repeat the others' tokens
                request.end(error)
                interrupt = interrupt or error
            if request.finished:
                self._cache_prefix(batch, request)
            elif logits.shape[1] > 1:  # drops draft tokens that were wrong
                batch.truncate(len(request.prompts[0]) + len(request.answers[0]) - 1)
        if interrupt:
            raise interrupt

    def _cache_prefix(self, batch: Batch | None, request: Request) -> None:
        """Keeps what has been computed of a request with one sequence in the prefix cache."""
        owner = (request, 0)
        if request.error or request.prompt_logits is None or not batch or owner not in batch.owners:
            return
        # Best effort: without memory the prefix is not cached.
        with suppress(Exception):
            index, cache = batch.owners.index(owner), self._prefix_cache
            prompt, answer = request.prompts[0], request.answers[0]
            ids = [*prompt, *answer][:-1] if answer else prompt
            if cache and request.prefix_cache:
                entry = batch.prefix(index, ids, len(prompt), request.prompt_logits)
                cache.put(entry, request.prefix_cache)


@cached_per_object
def scheduler_of(model: PreTrainedModel) -> Scheduler:
    """The scheduler of a model."""
    return Scheduler(model)


def _advanced(request: Request, since: int | None) -> bool:
    """Whether a request is finished, or has advanced after step `since`."""
    return request.finished or (since is not None and request.steps > since)
