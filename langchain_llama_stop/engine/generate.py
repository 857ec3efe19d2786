"""From prompts to answers: the only place that starts a generation.

`generate` and `stream_generate` share every step. Prompts become sequences; the sequences of one
batch become a request (`start`); the model's scheduler runs the passes that the request needs,
together with those of other calls; and each sequence takes its own tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_llama_stop.engine.admission import (
    Cancellation,
    Deadline,
    admitted,
    current_cancellation,
)
from langchain_llama_stop.engine.config import with_pipeline_stops
from langchain_llama_stop.engine.oom import one_answer_oom, out_of_memory
from langchain_llama_stop.engine.request import Request
from langchain_llama_stop.engine.scheduler import Scheduler, scheduler_of
from langchain_llama_stop.engine.sequence import GenerationResponse, Prompt, Sequence
from langchain_llama_stop.engine.start import start
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.detokenizer import TextBuilder

logger = logging.getLogger("langchain_llama_stop")


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of a streamed answer.

    Attributes:
        text: The new text; may be empty in the last chunk.
        response: The whole answer, in the last chunk only.
    """

    text: str
    response: GenerationResponse | None = None


def generate(
    pipeline: Any, prompts: Iterable[Prompt], options: GenerationOptions
) -> list[GenerationResponse]:
    """Answers prompts in left-padded batches.

    Args:
        pipeline: A transformers text-generation pipeline.
        prompts: The prompts, texts or ids; none of them empty. A hint goes into texts only.
        options: The options of the call.

    Returns:
        One answer per prompt, in the order of the prompts.

    Raises:
        ValueError: If a prompt is empty or leaves no room in the context window, or an option
            does not fit the model.
        torch.OutOfMemoryError: If memory runs out with one answer alone. Before that, batches are
            halved, and what they had decoded is decoded again.
        TimeoutError: If `timeout` runs out and `on_timeout` is "raise".
        ModelBusyError: If `max_calls` calls are at the model already.
    """
    if isinstance(prompts, str):
        raise ValueError(f"`prompts` has to be a list of strings, but is {prompts!r}.")
    options = with_pipeline_stops(pipeline, options)
    with admitted(pipeline.model, options.max_calls):
        return _generate(pipeline, prompts, options)


def _generate(
    pipeline: Any, prompts: Iterable[Prompt], options: GenerationOptions
) -> list[GenerationResponse]:
    deadline, cancellation = Deadline(options.timeout), current_cancellation()
    sequences = [Sequence(pipeline, prompt, options) for prompt in prompts]
    scheduler, requests = scheduler_of(pipeline.model), dict[Request, list[Sequence]]()
    run_until = partial(scheduler.run_until, until=deadline.until)
    # The longest first: they need most memory.
    waiting = sorted(sequences, key=_size)
    try:
        while (waiting or any(not r.finished for r in requests)) and not deadline.passed:
            cancellation.check()
            running = [request for request in requests if not request.finished]
            most = options.batch_size
            room = most - sum(request.running_rows for request in running)
            # A prefill holds up the running rows, so that it has to add a quarter of a batch, and
            # more than one row. Chosen, not tuned.
            enough = min(most, max(2, most // 4))
            try:
                if waiting and (not running or room >= enough):
                    batch = _next_batch(waiting, room)
                    request = start(pipeline, batch, options)
                    requests[request] = batch
                    scheduler.add_request(request)
                    cancellation.add(partial(scheduler.abort, request))
                    run_until(request, since=0)  # until its prefill
                elif waiting:
                    run_until(running[0], since=running[0].steps)
                else:
                    run_until(running[0])
            except Exception as error:
                if not any(request.error is error for request in requests):
                    raise
            # Another caller may have run any of the requests, so that all of them are looked at.
            failed = {r: batch for r, batch in requests.items() if r.error}
            if failed:
                options = _with_half_batches(failed, options)
                again = {
                    s: Sequence(pipeline, s.prompt, options)
                    for batch in failed.values()
                    for s in batch
                }
                sequences = [again.get(sequence, sequence) for sequence in sequences]
                waiting = sorted([*waiting, *again.values()], key=_size)
                requests = {r: batch for r, batch in requests.items() if r not in failed}
    finally:
        for request in requests:
            scheduler.abort(request)
    _finish(scheduler, list(requests), cancellation)
    _check_time(deadline, sequences, options)
    return [sequence.response() for sequence in sequences]


def _size(sequence: Sequence) -> tuple[int, int]:
    """The sort key of sequences: those of one budget stand together."""
    return sequence.budget, len(sequence.ids)


def _next_batch(waiting: list[Sequence], most: int) -> list[Sequence]:
    """Takes sequences of one budget from the end of the list."""
    batch = [waiting.pop()]
    while waiting and len(batch) < most and waiting[-1].budget == batch[0].budget:
        batch.append(waiting.pop())
    return batch


def _with_half_batches(
    failed: dict[Request, list[Sequence]], options: GenerationOptions
) -> GenerationOptions:
    """Halves the batches of a call whose requests ran out of memory.

    Raises:
        Exception: What has ended a request, if it was another error or it had one sequence only.
    """
    for request, batch in failed.items():
        assert request.error is not None
        if not out_of_memory(request.error):
            raise request.error
        if len(batch) == 1:
            prompt_tokens, max_new_tokens = len(batch[0].ids), batch[0].max_new_tokens
            raise one_answer_oom(prompt_tokens, max_new_tokens) from request.error
    half = max(1, min(options.batch_size, *map(len, failed.values())) // 2)
    logger.info("Memory ran out: the call continues with batches of %d.", half)
    return options.replaced(batch_size=half)


def stream_generate(
    pipeline: Any, prompt: Prompt, options: GenerationOptions
) -> Iterator[TextChunk]:
    """Answers one prompt, piece by piece.

    The model works while the iterator is pulled, or for other calls. Closing the iterator ends the
    answer.

    Args:
        pipeline: A transformers text-generation pipeline.
        prompt: The prompt, a text or ids.
        options: The options of the call.

    Yields:
        Chunks whose texts add up to what `generate` returns.

    Raises:
        ValueError: As `generate`; so are the other errors.
    """
    options = with_pipeline_stops(pipeline, options)
    with admitted(pipeline.model, options.max_calls):
        yield from _stream(pipeline, prompt, options)


def _stream(pipeline: Any, prompt: Prompt, options: GenerationOptions) -> Iterator[TextChunk]:
    deadline = Deadline(options.timeout)
    sequence = Sequence(pipeline, prompt, options)
    sequence.builder = TextBuilder(sequence.detokenizer)
    if sequence.echo:
        yield TextChunk(sequence.echo)
    scheduler, request = scheduler_of(pipeline.model), start(pipeline, [sequence], options)
    cancellation, sent, steps = current_cancellation(), 0, 0
    scheduler.add_request(request)
    try:
        cancellation.add(partial(scheduler.abort, request))
        while not request.finished and not deadline.passed:
            scheduler.run_until(request, since=steps, until=deadline.until)
            # Another caller may be in the next step already: only `streamable` is safe to read.
            steps, text = request.steps, sequence.streamable
            if not request.finished and len(text) > sent:
                yield TextChunk(text[sent:])
                sent = len(text)
    except Exception as error:
        if error is request.error and out_of_memory(error):
            raise one_answer_oom(len(sequence.ids), sequence.max_new_tokens) from error
        raise
    finally:
        scheduler.abort(request)
    _finish(scheduler, [request], cancellation)
    _check_time(deadline, [sequence], options)
    response = sequence.response()
    yield TextChunk(response.text[len(sequence.echo) + sent :], response)


def _finish(scheduler: Scheduler, requests: list[Request], cancellation: Cancellation) -> None:
    """Waits until no thread works at aborted requests: `abort` may return before that."""
    cancellation.check()
    for request in requests:
        scheduler.run_until(request)


def _check_time(deadline: Deadline, sequences: list[Sequence], options: GenerationOptions) -> None:
    """Raises, or warns, if the time ran out before all answers were finished."""
    finished, count = sum(sequence.finished for sequence in sequences), len(sequences)
    if finished < count and deadline.passed:
        if options.on_timeout == "raise":
            raise deadline.error(finished, count)
        logger.warning("`timeout` ran out: %d of %d answers are cut.", count - finished, count)
