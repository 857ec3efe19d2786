"""Who runs the model, and for whom: the forward passes of all calls on one model are shared.

Each call decodes its own rows with its own options; what it has in common with others is the
forward pass. There is no thread of ours: of all callers that wait for their answers, one leads. It
runs the passes for all of them, until it has what it wanted, and the next one takes over. Rows
join between two passes and leave when they have finished.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import ref

import torch
from transformers import PreTrainedModel

from langchain_llama_stop.engine.admission import cancelled_by
from langchain_llama_stop.engine.batch import Batch
from langchain_llama_stop.engine.oom import free_caches, out_of_memory, without_frames
from langchain_llama_stop.engine.prefill import read_jobs
from langchain_llama_stop.engine.prefix_cache import PrefixCache
from langchain_llama_stop.engine.request import Job, pass_alone
from langchain_llama_stop.tokens.weak_cache import cached_per_object

_PADDING = 64  # tokens of padding that reading several prompts at once may cost in any case


def _neutral(method: Callable[[Scheduler], None]) -> Callable[[Scheduler], None]:
    """Lets what the leader does for all not depend on its own modes.

    The buffers that one caller makes are written to by the next, so that the mode has to be one for
    all. It is inference mode: without it a step takes an eighth longer where the host is the limit.
    """
    return torch.inference_mode()(method)


class Scheduler:
    """Runs the forward passes of one model."""

    def __init__(self, model: Any) -> None:
        """Begins with nothing to do.

        Args:
            model: The model.
        """
        self._ref = ref(model)
        # Over what follows, up to the blank line. Entered anew where, in the midst of it, an
        # abandoned stream is collected and leaves.
        self._mutex = threading.RLock()
        self._leader = 0  # the thread that leads; 0 if none does
        self._waiting: list[Job] = []  # the first come first
        self._left: list[Job] = []
        self._sleepers: dict[Job, tuple[threading.Condition, int | None]] = {}

        # The leader's own.
        self._batch: Batch | None = None
        self._has_read = False  # whether the last step has read prompts
        self._alone: list[Job] = []
        self._prefixes: PrefixCache | None = None  # as it was when prompts were last read

    @property
    def _model(self) -> Any:
        """The model, which lives as long as somebody wants something of it."""
        return self._ref()

    @property
    def _led(self) -> bool:
        """Whether somebody leads."""
        return self._leader != 0

    @classmethod
    def of(cls, model: PreTrainedModel) -> Scheduler:
        """Returns the scheduler of a model."""
        return _scheduler(model)

    def submit(self, job: Job) -> None:
        """Takes a job; somebody has to `drive` it, and to `leave` it in the end."""
        with self._mutex:
            self._waiting.append(job)

    def drive(self, job: Job, since: int | None = None, until: float = math.inf) -> None:
        """Returns when a job is over, or has got on, or the time is over.

        Args:
            job: The job.
            since: The `steps` that the caller has seen; None to wait for the end.
            until: The time by `time.monotonic`.

        Raises:
            BaseException: What has ended the job, or has come up while the caller led.
        """
        if self._leader == threading.get_ident():
            raise RuntimeError(
                "The model has to be called from outside of its own processors and criteria, but "
                "was called from inside: call it in a callback, or another model."
            )

        def done() -> bool:
            return _done(job, since) or time.monotonic() >= until

        with self._mutex:
            try:
                while self._led and not done():
                    turn = threading.Condition(self._mutex)
                    self._sleepers[job] = (turn, since)
                    turn.wait(None if until == math.inf else max(0.0, until - time.monotonic()))
                if lead := not done():
                    self._leader = threading.get_ident()
            finally:
                self._sleepers.pop(job, None)
                if not self._led:  # it may have been this caller's turn
                    self._wake()
        if lead:
            try:
                with cancelled_by(None):  # what is done here may be another call's
                    while not done():
                        self._step()
                        with self._mutex:
                            self._wake()
            finally:
                self._hand_over()
        if job.error:
            raise job.error

    def leave(self, job: Job) -> None:
        """Takes a job out, whether it is over or not; from any thread."""
        with self._mutex:
            if job in self._waiting:
                self._waiting.remove(job)
                job.end()
                self._wake()
            if job.over:
                return
            self._left.append(job)
            if self._led:
                return  # who leads will see to it
            self._leader = threading.get_ident()
        self._hand_over()

    def _wake(self) -> None:
        """Wakes those who have what they wait for and, if nobody leads, one who has not."""
        successor = self._led
        for job, (turn, since) in self._sleepers.items():
            if _done(job, since):
                turn.notify()
            elif not successor:
                successor = True
                turn.notify()

    def _hand_over(self) -> None:
        """Gives the lead up, once nothing is left to be taken out."""
        leads = True
        while leads:
            try:
                self._take_out()
            except BaseException:
                self._give_up()
                raise
            with self._mutex:
                leads = bool(self._left)
                if not leads:
                    self._give_up()

    def _give_up(self) -> None:
        with self._mutex:
            self._leader = 0
            self._wake()

    @_neutral
    def _take_out(self) -> None:
        """Takes out the jobs that were left."""
        with self._mutex:
            left = [job for job in self._left if not job.over]
            self._left.clear()
            self._waiting = [job for job in self._waiting if job not in left]
        if left:
            for job in left:
                self._keep(self._batch, job)
                job.end()
            self._alone = [job for job in self._alone if not job.over]
            with self._whole(self._batch):
                self._batch = self._batch and self._batch.compact(at_once=True)

    @contextmanager
    def _whole(self, *batches: Batch | None) -> Iterator[None]:
        """Ends the jobs of batches whose rows could not be moved: some layers have, others not."""
        try:
            yield
        except BaseException as error:
            for batch in batches:
                for job, _ in batch.owners if batch else ():
                    if not job.over:
                        job.end(error)
            if self._batch in batches:
                self._batch = None
            if not isinstance(error, Exception):
                raise

    @_neutral
    def _step(self) -> None:
        """Reads prompts that have come, or else gets on with all rows by one pass."""
        self._take_out()
        # In turns: rows that are at work do not wait for more than one reading.
        group = [] if self._batch and self._has_read else self._next_to_read()
        self._has_read = bool(group)
        if group:
            self._read(group)
        elif self._batch:
            self._pass(self._batch)
        try:
            for job in self._alone:
                try:
                    job.get_on(pass_alone(self._model, job))
                except Exception as error:
                    job.end(without_frames(error))
                except BaseException as error:
                    job.end(error)
                    raise
        finally:
            self._alone = [job for job in self._alone if not job.over]

    def _next_to_read(self) -> list[Job]:
        """The first jobs that wait, as far as there is room and their lengths go together."""
        with self._mutex:
            while self._waiting and self._waiting[0].alone:
                self._alone.append(self._waiting.pop(0))
            running = sum(job.wants(row) for job, row in self._batch.owners) if self._batch else 0
            group: list[Job] = []
            lengths: list[int] = []
            for job in list(self._waiting):
                rows = [*lengths, *map(len, job.unread().values())]
                padding = len(rows) * max(rows) - sum(rows)
                if (
                    job.alone
                    or (running and running + len(rows) > job.most_rows)
                    or (group and len(rows) > job.most_rows)
                    or (group and (job.apart or group[-1].apart))
                    or (group and padding > _PADDING + sum(rows) // 2)
                ):
                    break
                group.append(job)
                lengths = rows
            self._waiting = [job for job in self._waiting if job not in group]
            return group

    def _read(self, group: list[Job]) -> None:
        """Reads the prompts of jobs; their rows join those that are at work."""
        failure = None
        try:
            batch, logits, cache = read_jobs(self._model, group)
            self._prefixes = cache or self._prefixes
        except Exception as error:
            failure = without_frames(error)
        except BaseException:
            self._put_back(group)
            raise
        if failure:
            return self._not_read(group, failure)
        with self._whole(batch):
            for job in group:
                rows = [i for i, (owner, _) in enumerate(batch.owners) if owner is job]
                if len(rows) == 1 and job.prefix_cache and not job.steps:
                    job.first = logits[rows[0], -1].clone()
        before = self._batch
        try:
            self._deliver(batch, logits)
        finally:  # all have their scores: where one was interrupted, the others get on
            with self._whole(before, batch):
                if read := batch.compact(at_once=True):
                    if before and (running := before.compact(at_once=True)):
                        failure = None
                        try:
                            running.join(read)
                        except Exception as error:  # which leaves those that run as they are
                            failure = without_frames(error)
                        if failure:
                            self._not_joined(list(read.places()), running, failure)
                        read = running
                    self._batch = read

    def _not_read(self, group: list[Job], failure: Exception) -> None:
        """Lets jobs whose prompts could not be read try again: apart, with more room; or not."""
        short, anew = out_of_memory(failure), not group[0].apart
        for job in group:
            job.apart = True
        freed = short and anew and free_caches(self._model)
        if len(group) > 1 or freed:
            self._put_back(group)
        elif self._batch and short:
            self._wait_for_room(group, self._batch)
        else:
            group[0].end(failure)

    def _not_joined(self, group: list[Job], running: Batch, failure: Exception) -> None:
        """Lets jobs wait that could not join the rows at work for lack of memory."""
        if out_of_memory(failure):
            free_caches(self._model)
            self._wait_for_room(group, running)
        else:
            for job in group:
                job.end(failure)

    def _wait_for_room(self, group: list[Job], running: Batch) -> None:
        """Lets jobs wait until fewer rows run than now; what they had is read again then."""
        rows = sum(map(len, running.places().values()))
        for job in group:
            job.most_rows = max(1, rows + job.running - 1)
        self._put_back(group)

    def _put_back(self, group: list[Job]) -> None:
        with self._mutex:
            self._waiting[:0] = group

    def _pass(self, batch: Batch) -> None:
        """Gets on with all rows by one pass."""
        ((first, _), *others) = batch.owners
        if not others and not self._waiting and first.wanted:
            tokens = first.wanted.tokens  # the guesses too: (1, 1 or more)
        else:
            tokens = batch.mask.new_zeros(len(batch.owners), 1)
            for job, rows in batch.places().items():
                assert job.wanted is not None
                tokens[rows] = job.wanted.tokens[:, :1].to(tokens.device)
        failure = None
        try:
            logits = batch.forward(self._model, tokens, keep=tokens.shape[1])
        except Exception as error:
            failure = without_frames(error)
        if failure:
            self._not_passed(batch, failure)
        else:
            self._deliver(batch, logits)
        with self._whole(batch):
            self._batch = batch.compact()

    def _not_passed(self, batch: Batch, failure: Exception) -> None:
        """With the newest job it was too much, or it is a fault that each job will meet."""
        short = out_of_memory(failure)
        if short and free_caches(self._model):
            return  # and try again
        *before, newest = batch.places()
        if short and before:
            # Its rows are nobody's from here on, and are taken out with the finished ones.
            batch.owners = [(j, -1 if j is newest else row) for j, row in batch.owners]
            batch.compact(at_once=True)
            self._wait_for_room([newest], batch)
        else:
            newest.end(failure)

    def _deliver(self, batch: Batch, logits: torch.Tensor) -> None:
        """Hands the scores of a pass to all jobs; what interrupts one is raised afterwards."""
        interrupt: BaseException | None = None
        for job, rows in batch.places().items():
            try:
                job.get_on(logits if len(rows) == len(logits) else logits[rows])
            except BaseException as error:  # else the next pass would repeat the others' tokens
                job.end(error)
                interrupt = interrupt or error
            if job.over:
                self._keep(batch, job)
            elif logits.shape[1] > 1:  # wrong guesses
                batch.truncate(len(job.prompts[0]) + len(job.answers[0]) - 1)
        if interrupt:
            raise interrupt

    def _keep(self, batch: Batch | None, job: Job) -> None:
        """Keeps what is known of a single row for prompts that begin the same way."""
        if job.error or job.first is None or batch is None or (job, 0) not in batch.owners:
            return
        # Nothing is lost but time where there is no memory to keep it.
        with suppress(Exception):
            row, prompt, cache = batch.owners.index((job, 0)), job.prompts[0], self._prefixes
            ids = [*prompt, *job.answers[0]][:-1] if job.answers[0] else prompt
            if cache and job.prefix_cache:
                entry = batch.prefix(row, ids, len(prompt), job.first)
                cache.put(entry, job.prefix_cache)


@cached_per_object
def _scheduler(model: PreTrainedModel) -> Scheduler:
    """The scheduler of a model."""
    return Scheduler(model)


def _done(job: Job, since: int | None) -> bool:
    return job.over or (since is not None and job.steps > since)
