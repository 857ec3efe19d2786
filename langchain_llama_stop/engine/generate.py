"""From prompts to answers: the only place that starts a generation.

Each prompt becomes a sequence, each sequence a request at the model's engine (`thread.py`), which
runs the passes for all calls together. `generate` and `stream_generate` drain the same pieces.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from langchain_llama_stop.engine.admission import (
    Cancellation,
    Deadline,
    admitted,
    current_cancellation,
)
from langchain_llama_stop.engine.config import with_pipeline_stops
from langchain_llama_stop.engine.outbox import Outbox
from langchain_llama_stop.engine.request import Request
from langchain_llama_stop.engine.sequence import GenerationResponse, Prompt, Sequence
from langchain_llama_stop.engine.start import start
from langchain_llama_stop.engine.thread import check_caller, engine_of
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.detokenizer import TextBuilder

logger = logging.getLogger("langchain_llama_stop")


@dataclass(frozen=True, slots=True)
class TextChunk:
    """A piece of a streamed answer.

    Attributes:
        text: The new text; may be empty in the last chunk.
        response: The whole answer, in the last chunk only.
        ids: The answer's ids so far, which the engine adds to.
    """

    text: str
    response: GenerationResponse | None = None
    ids: list[int] = field(default_factory=list, repr=False)


def generate(
    pipeline: Any, prompts: Iterable[Prompt], options: GenerationOptions
) -> list[GenerationResponse]:
    """Answers prompts; up to `batch_size` of them share their forward passes.

    Args:
        pipeline: A transformers text-generation pipeline.
        prompts: The prompts, texts or ids; none of them empty. A hint goes into texts only.
        options: The options of the call.

    Returns:
        One answer per prompt, in the order of the prompts.

    Raises:
        ValueError: If a prompt is empty or leaves no room in the context window, or an option
            does not fit the model.
        torch.OutOfMemoryError: If memory runs out with one answer alone. Before that, fewer
            sequences run at once, and the others wait.
        TimeoutError: If `timeout` runs out and `on_timeout` is "raise".
        RuntimeError: If a processor or criterion calls the model that it belongs to.
        ModelBusyError: If `max_calls` calls are at the model already.
    """
    if isinstance(prompts, str):
        raise ValueError(f"`prompts` has to be a list of strings, but is {prompts!r}.")
    options = with_pipeline_stops(pipeline, options)
    with admitted(pipeline.model, options.max_calls):
        deadline = Deadline(options.timeout)
        sequences = [Sequence(pipeline, prompt, options) for prompt in prompts]
        for _ in _pieces(pipeline, sequences, options, deadline):
            pass  # only streams get their answers in pieces
        return [sequence.response() for sequence in sequences]


def stream_generate(
    pipeline: Any, prompt: Prompt, options: GenerationOptions
) -> Iterator[TextChunk]:
    """Answers one prompt, piece by piece.

    The model works whether the iterator is pulled or not. Closing the iterator ends the answer.

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
        deadline = Deadline(options.timeout)
        sequence = Sequence(pipeline, prompt, options)
        sequence.builder = TextBuilder(sequence.detokenizer)
        if sequence.echo:
            yield TextChunk(sequence.echo)
        sent = len(sequence.echo)
        for text in _pieces(pipeline, [sequence], options, deadline):
            yield TextChunk(text, ids=sequence.generated)
            sent += len(text)
        response = sequence.response()
        yield TextChunk(response.text[sent:], response)


def _pieces(
    pipeline: Any, sequences: list[Sequence], options: GenerationOptions, deadline: Deadline
) -> Iterator[str]:
    """Answers sequences; yields the texts of streamed ones as they come.

    Closed, interrupted, or left by an error of one of them, it aborts all of them, and the calls
    that their processors make.
    """
    engine, outbox, cancellation = engine_of(pipeline.model), Outbox(), current_cancellation()
    inside = Cancellation(min(deadline.until, cancellation.until))
    # The longest first: they need most memory. Those of one length need no padding together.
    upcoming = sorted(sequences, key=lambda s: (s.budget, len(s.ids)), reverse=True)
    requests: list[Request] = []
    running, most = 0, options.batch_size

    def leave() -> None:
        engine.abort(requests)
        inside.cancel()

    try:
        with cancellation.aborting(leave):
            while (upcoming or running) and not deadline.passed:
                cancellation.check()
                check_caller(engine)
                # A prefill holds up the running rows, so that it has to add a quarter of a batch,
                # and more than one row, if so many are left. Chosen, not tuned.
                if upcoming and (not running or most - running >= max(2, most // 4)):
                    batch = upcoming[: most - running]
                    del upcoming[: len(batch)]
                    new = [start(pipeline, s, options, outbox, inside) for s in batch]
                    requests += new
                    engine.add(new)
                    running += len(new)
                    cancellation.check()
                text, error = outbox.get(inside.until) or ("", None)
                if error:
                    try:
                        raise error
                    finally:
                        del error  # whose traceback refers to this frame
                running -= text is None
                if text:
                    yield text
    finally:
        leave()
    cancellation.check()
    if options.on_timeout == "cut":  # an error waits for no processor
        for request in requests:
            request.wait_until_left()
    finished, count = sum(r.finished and r.sequence.finished for r in requests), len(sequences)
    if finished < count:
        if options.on_timeout == "raise":
            raise deadline.error(finished, count)
        logger.warning("`timeout` ran out: %d of %d answers are cut.", count - finished, count)
