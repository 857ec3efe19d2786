"""Which requests run in the next forward pass of a model.

A step is one prefill of waiting requests, or one decode of all running ones. Rows join between two
steps and leave when they are finished. Nothing here knows of threads: `thread.py` calls `step`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from langchain_llama_stop.engine.batch import Batch, prefill
from langchain_llama_stop.engine.forward import Logits
from langchain_llama_stop.engine.oom import (
    answer_oom,
    free_caches,
    out_of_memory,
    own_copy,
    without_frames,
)
from langchain_llama_stop.engine.prefix_cache import PrefixCache
from langchain_llama_stop.engine.request import Request, unbatched_pass

logger = logging.getLogger("langchain_llama_stop")

_PADDING = 64
"""Tokens of padding that a shared prefill may have in any case; half of its real tokens beyond.
Chosen, not tuned: so much padding costs less than a pass for each prompt."""


class Scheduler:
    """The requests of one model: those that wait for their prefill, and those that run.

    What fails is handled in `except` clauses: an error in a variable of a frame that its traceback
    leads to would keep the model alive until garbage is collected.
    """

    def __init__(self, model: Callable[[], Any]) -> None:
        """Starts with no request; `model` gives the model, as a weak reference does."""
        self._ref = model
        self._queue: list[Request] = []  # wait for their prefill, the first come first
        self._prefilling: list[Request] = []  # of the prefill that runs
        self._batch: Batch | None = None
        self._unbatchable: list[Request] = []
        self._just_prefilled = False  # whether the last step was a prefill
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
        batch = self._batch
        return len(batch.running()) if batch else 0

    @property
    def busy(self) -> bool:
        """Whether there is any request."""
        return bool(self._queue or self._batch or self._unbatchable)

    def add(self, request: Request) -> None:
        """Queues a request."""
        self._queue.append(request)

    def fail(self, error: BaseException) -> None:
        """Ends all requests with an error that no one of them has caused."""
        _end_all([*self._queue, *self._running()], error)
        self._queue, self._prefilling, self._batch, self._unbatchable = [], [], None, []

    def step(self) -> None:
        """One prefill of queued requests or one decode of all running ones."""
        self._remove_leaving()
        # In turns: running rows do not wait for more than one prefill.
        group = [] if self._batch and self._just_prefilled else self._next_group()
        self._just_prefilled = bool(group)
        if group:
            self._prefilling = group
            self._prefill(group)
            self._prefilling = []
        elif self._batch:
            self._decode(self._batch)
        for request in list(self._unbatchable):
            self._unbatched_step(request)
        self._unbatchable = [request for request in self._unbatchable if not request.finished]

    def _remove_leaving(self) -> None:
        """Ends the requests that are aborted, or whose time is up; their prefixes are cached."""
        batch = self._batch
        leaving = [request for request in (batch.running() if batch else ()) if request.leaves]
        for request in leaving:
            self._cache_prefix(batch, request)
        others = [*self._queue, *self._unbatchable]
        for request in [*leaving, *(request for request in others if request.leaves)]:
            request.end()
        self._queue = [request for request in self._queue if not request.finished]
        self._unbatchable = [request for request in self._unbatchable if not request.finished]
        if batch and leaving:
            with self._moving_rows(batch):
                self._batch = batch.compact(at_once=True)

    @contextmanager
    def _moving_rows(self, *batches: Batch | None) -> Iterator[None]:
        """Ends the batches' requests if an error leaves rows moved in some layers only."""
        try:
            yield
        except BaseException as error:
            _end_all([r for batch in batches if batch for r in batch.running()], error)
            if self._batch in batches:
                self._batch = None

    def _running(self) -> list[Request]:
        """The unfinished requests that are not in the queue."""
        batch = self._batch.running() if self._batch else ()
        return [r for r in (*batch, *self._prefilling, *self._unbatchable) if not r.finished]

    def _next_group(self) -> list[Request]:
        """The first requests of the queue that fit into the batch and into one padded prefill.

        Those that cannot be batched run from now on if they have room. Nobody overtakes a request
        of its own kind, or one that waits for memory.
        """
        group: list[Request] = []
        running = self._running()
        waiting: set[bool] = set()  # the kinds of which one has to wait
        for request in self._queue:
            if request.unbatchable in waiting:
                continue
            fits = request.unbatchable or _shares_prefill(group, request)
            if not (fits and _has_room(request, running)):
                waiting.add(request.unbatchable)
                if request.starved or len(waiting) == 2:
                    break
                continue
            running.append(request)
            (self._unbatchable if request.unbatchable else group).append(request)
        started = set(running)
        self._queue = [request for request in self._queue if request not in started]
        return group

    def _prefill(self, group: list[Request]) -> None:
        """Prefills requests; their rows join the running ones."""
        try:
            batch, logits, cache = prefill(self._model, group)
            self._prefix_cache = cache or self._prefix_cache
            for request, row in zip(group, logits.values, strict=True):
                if request.prefix_cache and not request.steps:
                    request.prompt_logits = row[-1].clone()
        except BaseException as error:
            self._prefill_failed(group, without_frames(error))
            return
        before = self._batch
        self._process_logits(batch, logits)
        with self._moving_rows(before, batch):
            if joined := batch.compact(at_once=True):
                if before and (running := before.compact(at_once=True)):
                    try:
                        running.join(joined)
                    except Exception as error:  # the running rows are as they were
                        self._join_failed(list(joined.running()), without_frames(error))
                    joined = running
                self._batch = joined

    def _prefill_failed(self, group: list[Request], failure: BaseException) -> None:
        """Lets requests try again, alone or with more memory; a last failure ends the request."""
        no_memory = out_of_memory(failure)
        for request in group:
            request.prefill_alone = True  # which also puts nothing into the prefix cache
        freed = no_memory and free_caches(self._model)
        if len(group) > 1 or freed:
            cause = type(failure).__name__
            logger.info("A prefill of %d requests failed, is tried again: %s", len(group), cause)
            self._queue[:0] = group
        elif no_memory:
            self._preempt(group, failure)
        else:
            group[0].end(failure)

    def _join_failed(self, group: list[Request], failure: BaseException) -> None:
        """Lets requests wait that could not join the running rows for lack of memory."""
        if out_of_memory(failure):
            free_caches(self._model)
            self._preempt(group, failure)
        else:
            _end_all(group, failure)

    def _preempt(self, group: list[Request], failure: BaseException) -> None:
        """Lets requests wait until fewer others run than now; those that share no passes, alone.

        Then they are prefilled again. Without others, they end: they would find no more memory.
        """
        others = len(set(self._running()).difference(group))
        if not others:
            for request in group:
                self._end(request, failure)
            return
        for request in group:
            request.starved, request.max_rows = True, others
            if request.unbatchable:
                request.max_rows = 1
                request.restart()
            most = request.max_rows - 1
            logger.info("Memory ran out: a request waits until at most %d others run.", most)
        self._prefilling = [r for r in self._prefilling if r not in group]
        self._unbatchable = [r for r in self._unbatchable if r not in group]
        self._queue[:0] = group

    def _end(self, request: Request, failure: BaseException) -> None:
        """Ends a request for which memory has run out; its caller is told what to do."""
        sequence, others = request.sequence, len(set(self._running()) - {request})
        error = answer_oom(len(sequence.ids), sequence.max_new_tokens, others)
        error.__cause__ = failure
        request.end(error)

    def _decode(self, batch: Batch) -> None:
        """One forward pass over the newest token of all rows."""
        newest = [[0 if r is None or r.finished else r.newest] for r in batch.requests]
        failed = False
        try:
            if len(newest) == 1 and not self._queue and (request := batch.requests[0]):
                newest[0] += request.decoder.new_draft()
            tokens = torch.tensor(newest, device=batch.mask.device)
            logits = batch.forward(self._model, tokens, keep=tokens.shape[1])
        except BaseException as error:
            failed = True
            self._decode_failed(batch, without_frames(error))
        else:
            self._process_logits(batch, logits)
        with self._moving_rows(batch):
            self._batch = batch.compact(at_once=failed)

    def _decode_failed(self, batch: Batch, failure: BaseException) -> None:
        """Without memory the newest request waits; any other failure ends it."""
        *_, newest = batch.running()
        if not out_of_memory(failure):
            newest.end(failure)
        elif not free_caches(self._model):  # else it is tried again
            self._preempt([newest], failure)
            batch.drop(newest)

    def _unbatched_step(self, request: Request) -> None:
        """A pass of a request that cannot share one."""
        try:
            logits = unbatched_pass(self._model, request)
        except BaseException as error:
            self._unbatched_failed(request, without_frames(error))
            return
        if request.steps < len(request.sequence.generated):
            request.steps += 1  # a pass that was made again
        elif failure := self._advance(request, logits, 0):
            self._preempt([request], failure)

    def _unbatched_failed(self, request: Request, failure: BaseException) -> None:
        """Without memory the request starts again, with more of it or alone."""
        if not out_of_memory(failure):
            request.end(failure)
        elif free_caches(self._model):
            request.restart()
        else:
            self._preempt([request], failure)

    def _process_logits(self, batch: Batch, logits: Logits) -> None:
        """Advances all requests by the logits of a pass, (rows, 1 or more, vocab)."""
        for request, row in batch.running().items():
            if failure := self._advance(request, logits, row):
                self._preempt([request], failure)
                batch.drop(request)
            elif request.finished:
                self._cache_prefix(batch, request)
            elif logits.values.shape[1] > 1:  # drops draft tokens that were wrong
                batch.truncate(request.sequence.length - 1)

    def _advance(self, request: Request, logits: Logits, row: int) -> BaseException | None:
        """Advances a request; an error is returned if it has to wait for memory first."""
        own = logits.values[row], logits.highest[row]
        failure = request.advance(*own)
        if failure and request.decoder.repeatable and free_caches(self._model):
            failure = request.advance(*own)
        if failure and not request.decoder.repeatable:
            self._end(request, failure)
            return None
        return failure

    def _cache_prefix(self, batch: Batch | None, request: Request) -> None:
        """Keeps what has been computed of a request in the prefix cache."""
        if request.failed or request.prompt_logits is None or not batch:
            return
        # Best effort: without memory the prefix is not cached.
        with suppress(Exception):
            cache, sequence = self._prefix_cache, request.sequence
            ids = request.ids[:-1] if sequence.generated else request.ids
            if cache and request.prefix_cache:
                index, logits = batch.requests.index(request), request.prompt_logits
                entry = batch.prefix(index, ids, len(sequence.ids), logits)
                cache.put(entry, request.prefix_cache)


def _has_room(request: Request, running: list[Request]) -> bool:
    """Whether a request may run beside others."""
    same_kind = sum(other.unbatchable == request.unbatchable for other in running)
    limits = [other.max_rows for other in (*running, request) if other.starved]
    return same_kind < request.max_rows and all(len(running) < most for most in limits)


def _shares_prefill(group: list[Request], request: Request) -> bool:
    """Whether a request may be prefilled together with a group."""
    if not group:
        return True
    lengths = [other.sequence.length for other in (*group, request)]
    padding = len(lengths) * max(lengths) - sum(lengths)
    alone = request.prefill_alone or group[-1].prefill_alone
    return not alone and padding <= _PADDING + sum(lengths) // 2


def _end_all(requests: Iterable[Request], error: BaseException) -> None:
    """Ends requests with an error that no one of them has caused."""
    for request in requests:
        request.end(own_copy(error))
