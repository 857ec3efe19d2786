"""Which requests run in the next forward pass of a model.

A step is one prefill of waiting requests, or one decode of all running ones. Rows join between two
steps and leave when they are finished. Nothing here knows of threads: `thread.py` calls `step`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

from langchain_llama_stop.engine.batch import Batch, prefill
from langchain_llama_stop.engine.oom import (
    free_caches,
    one_answer_oom,
    out_of_memory,
    without_frames,
)
from langchain_llama_stop.engine.prefix_cache import PrefixCache
from langchain_llama_stop.engine.request import Request, unbatched_pass

logger = logging.getLogger("langchain_llama_stop")

_PADDING = 64
"""Tokens of padding that a shared prefill may have in any case; half of its real tokens beyond.
Chosen, not tuned: so much padding costs less than a pass for each prompt."""


class Scheduler:
    """The requests of one model: those that wait for their prefill, and those that run."""

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
        running = self._batch.running() if self._batch else ()
        for request in [*self._queue, *self._prefilling, *running, *self._unbatchable]:
            request.end(error)
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
        for request in self._unbatchable:
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
            for batch in batches:
                for request in batch.running() if batch else ():
                    request.end(error)
            if self._batch in batches:
                self._batch = None

    def _next_group(self) -> list[Request]:
        """The first requests of the queue that fit into the batch and into one padded prefill."""
        while (
            self._queue
            and self._queue[0].unbatchable
            and len(self._unbatchable) < self._queue[0].max_rows
        ):
            self._unbatchable.append(self._queue.pop(0))
        if not self._queue:
            return []
        running = self.running_rows
        group: list[Request] = []
        lengths: list[int] = []
        for request in self._queue:
            lengths = [*lengths, request.sequence.length]
            padding = len(lengths) * max(lengths) - sum(lengths)
            if (
                request.unbatchable
                or ((running or group) and running + len(lengths) > request.max_rows)
                or (group and (request.prefill_alone or group[-1].prefill_alone))
                or (group and padding > _PADDING + sum(lengths) // 2)
            ):
                break
            group.append(request)
        del self._queue[: len(group)]
        return group

    def _prefill(self, group: list[Request]) -> None:
        """Prefills requests; their rows join the running ones."""
        failure = None
        try:
            batch, logits, cache = prefill(self._model, group)
            self._prefix_cache = cache or self._prefix_cache
            for request, row in zip(group, logits, strict=True):
                if request.prefix_cache and not request.steps:
                    request.prompt_logits = row[-1].clone()
        except BaseException as error:
            failure = without_frames(error)
        if failure:
            return self._prefill_failed(group, failure)
        before = self._batch
        self._process_logits(batch, logits)
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

    def _prefill_failed(self, group: list[Request], failure: BaseException) -> None:
        """Lets requests try again, alone or with more memory; a last failure ends the request."""
        no_memory, first_try = out_of_memory(failure), not group[0].prefill_alone
        for request in group:
            request.prefill_alone = True
        freed = no_memory and first_try and free_caches(self._model)
        if len(group) > 1 or freed:
            cause = type(failure).__name__
            logger.info("A prefill of %d requests failed, is tried again: %s", len(group), cause)
            self._queue[:0] = group
        elif self._batch and no_memory:
            self._preempt(group, self.running_rows)
        else:
            self._end(group[0], failure)

    def _join_failed(self, group: list[Request], running: Batch, failure: BaseException) -> None:
        """Lets requests wait that could not join the running rows for lack of memory."""
        if out_of_memory(failure):
            free_caches(self._model)
            self._preempt(group, len(running.running()))
        else:
            for request in group:
                request.end(failure)

    def _preempt(self, group: list[Request], running: int) -> None:
        """Lets requests wait until fewer than `running` rows run; then they are prefilled again."""
        most = max(1, running)
        for request in group:
            request.max_rows = most
            logger.info("Memory ran out: a request waits until at most %d others run.", most - 1)
        self._queue[:0] = group

    def _end(self, request: Request, failure: BaseException) -> None:
        """Ends a request by an error of the model; its caller is told what to do about memory."""
        if out_of_memory(failure):
            sequence = request.sequence
            error = one_answer_oom(len(sequence.ids), sequence.max_new_tokens)
            error.__cause__ = failure
            failure = error
        request.end(failure)

    def _decode(self, batch: Batch) -> None:
        """One forward pass over the newest token of all rows."""
        newest = [[0 if r is None or r.finished else r.newest] for r in batch.requests]
        failure = None
        try:
            if len(newest) == 1 and not self._queue and (request := batch.requests[0]):
                newest[0] += request.decoder.new_draft()
            tokens = torch.tensor(newest, device=batch.mask.device)
            logits = batch.forward(self._model, tokens, keep=tokens.shape[1])
        except BaseException as error:
            failure = without_frames(error)
        if failure:
            self._decode_failed(batch, failure)
        else:
            self._process_logits(batch, logits)
        with self._moving_rows(batch):
            self._batch = batch.compact()

    def _decode_failed(self, batch: Batch, failure: BaseException) -> None:
        """Without memory the newest request waits; any other failure ends it."""
        no_memory = out_of_memory(failure)
        if no_memory and free_caches(self._model):
            return  # and try again
        *older, newest = batch.running()
        if no_memory and older:
            self._preempt([newest], len(older))
            batch.requests = [None if r is newest else r for r in batch.requests]
            batch.compact(at_once=True)
        else:
            self._end(newest, failure)

    def _unbatched_step(self, request: Request) -> None:
        """A pass of a request that cannot share one."""
        try:
            logits = unbatched_pass(self._model, request).float()
            greedy = _greedy(logits[None])[0]
        except BaseException as error:
            self._end(request, without_frames(error))
        else:
            request.advance(logits, greedy)

    def _process_logits(self, batch: Batch, logits: torch.Tensor) -> None:
        """Advances all requests by the logits of a pass, (rows, 1 or more, vocab), float32."""
        running = batch.running()
        greedy = _greedy(logits)
        for request, row in running.items():
            request.advance(logits[row], greedy[row])
            if request.finished:
                self._cache_prefix(batch, request)
            elif logits.shape[1] > 1:  # drops draft tokens that were wrong
                batch.truncate(request.sequence.length - 1)

    def _cache_prefix(self, batch: Batch | None, request: Request) -> None:
        """Keeps what has been computed of a request in the prefix cache."""
        if request.error or request.prompt_logits is None or not batch:
            return
        # Best effort: without memory the prefix is not cached.
        with suppress(Exception):
            cache, sequence = self._prefix_cache, request.sequence
            ids = request.ids[:-1] if sequence.generated else request.ids
            if cache and request.prefix_cache:
                index, logits = batch.requests.index(request), request.prompt_logits
                entry = batch.prefix(index, ids, len(sequence.ids), logits)
                cache.put(entry, request.prefix_cache)


def _greedy(logits: torch.Tensor) -> list[list[tuple[int, float]]]:
    """The highest logit at each position of (rows, positions, vocab): its id and its value."""
    best, tokens = logits.max(dim=-1)
    pairs = zip(tokens.tolist(), best.tolist(), strict=True)
    return [list(zip(ids, values, strict=True)) for ids, values in pairs]
