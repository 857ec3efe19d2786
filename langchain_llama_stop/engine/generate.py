"""From prompts to answers: the only place that calls the model.

`generate` and `stream_generate` share every step: prompts become rows, rows become jobs of one
batch each, the model's scheduler runs the passes that `decoding.decode_steps` asks for, together
with those of other calls, and each row follows its own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from langchain_llama_stop.ending.landing import Landing
from langchain_llama_stop.ending.logits_processor import (
    EosTokenRewardLogitsProcessor,
    InPlaceEosReward,
    ThinkingReward,
)
from langchain_llama_stop.ending.stopping_criteria import AnswerBudget, StopSequenceCriteria
from langchain_llama_stop.engine.admission import Deadline, admitted, current
from langchain_llama_stop.engine.batch import left_padded
from langchain_llama_stop.engine.config import (
    eos_token_ids,
    generation_config,
    pipeline_callables,
    thinking_ids,
    with_pipeline_stops,
)
from langchain_llama_stop.engine.decode import Step, decode_steps
from langchain_llama_stop.engine.kv_cache import can_share
from langchain_llama_stop.engine.oom import one_answer_oom, out_of_memory
from langchain_llama_stop.engine.request import Job
from langchain_llama_stop.engine.scheduler import Scheduler
from langchain_llama_stop.engine.sequence import GenerationResponse, Prompt, Row
from langchain_llama_stop.engine.speculative import (
    LONG_PROMPT,
    LOOKUP_TOKENS,
    Assistant,
    Guesser,
    PromptLookup,
)
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.detokenizer import TextBuilder
from langchain_llama_stop.tokens.encoding import tokenizer_lock


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
    pipeline: Any, prompts: Sequence[Prompt], options: GenerationOptions
) -> list[GenerationResponse]:
    """Answers prompts in left-padded batches.

    Args:
        pipeline: A transformers text-generation pipeline.
        prompts: The prompts, texts or ids; none of them empty. A hint goes into texts only.
        options: What is asked for.

    Returns:
        One answer per prompt, in the order of the prompts.

    Raises:
        ValueError: If a prompt is empty or leaves no room in the context window, or an option
            does not fit the model.
        torch.OutOfMemoryError: If memory runs out with one answer alone; before that batches are
            halved, and what they had decoded is decoded again.
        TimeoutError: If `timeout` runs out and `on_timeout` is "raise".
        ModelBusyError: If `max_calls` calls are at the model already.
    """
    if isinstance(prompts, str):
        raise ValueError(f"`prompts` has to be a list of strings, but is {prompts!r}.")
    options = with_pipeline_stops(pipeline, options)
    with admitted(pipeline.model, options.max_calls):
        return _answers(pipeline, prompts, options)


def _answers(
    pipeline: Any, prompts: Sequence[Prompt], options: GenerationOptions
) -> list[GenerationResponse]:
    deadline, cancellation = Deadline(options.timeout), current()
    rows = [Row(pipeline, prompt, options) for prompt in prompts]
    scheduler, jobs = Scheduler.of(pipeline.model), dict[Job, list[Row]]()
    drive = partial(scheduler.drive, until=deadline.until)
    # The longest first: they need most memory.
    waiting = sorted(rows, key=_size)
    try:
        while (waiting or any(not job.over for job in jobs)) and not deadline.passed:
            cancellation.check()
            most = options.batch_size
            running = [job for job in jobs if not job.over]
            room = most - sum(job.running for job in running)
            enough = min(most, max(2, most // 4))  # places for a new batch
            try:
                if waiting and (not running or room >= enough):
                    batch = _next_batch(waiting, room)
                    job = _prepare(pipeline, batch, options)
                    jobs[job] = batch
                    scheduler.submit(job)
                    cancellation.add(partial(scheduler.leave, job))
                    drive(job, since=0)  # until it has been read
                elif waiting:
                    drive(running[0], since=running[0].steps)
                else:
                    drive(running[0])
            except Exception as error:
                if not any(job.error is error for job in jobs):
                    raise
            # Also of jobs that others have driven meanwhile.
            lost = {job: batch for job, batch in jobs.items() if job.error}
            if lost:
                options = _smaller(lost, options)
                again = {r: Row(pipeline, r.prompt, options) for b in lost.values() for r in b}
                rows = [again.get(row, row) for row in rows]
                waiting = sorted([*waiting, *again.values()], key=_size)
                jobs = {job: batch for job, batch in jobs.items() if job not in lost}
    finally:
        for job in jobs:
            scheduler.leave(job)
    cancellation.check()
    for job in jobs:  # who leads may be at a step of one that was left in the midst of it
        scheduler.drive(job)
    _check_time(deadline, rows, options)
    return [row.response() for row in rows]


def _smaller(lost: dict[Job, list[Row]], options: GenerationOptions) -> GenerationOptions:
    """Halves the batches of a call that memory has not sufficed for.

    Raises:
        Exception: What has ended a job, if it was something else, or one answer by itself.
    """
    for job, batch in lost.items():
        assert job.error is not None
        if not out_of_memory(job.error):
            raise job.error
        if len(batch) == 1:
            raise one_answer_oom(len(batch[0].ids), batch[0].limit) from job.error
    most = min(options.batch_size, *map(len, lost.values()))
    return options.replaced(batch_size=max(1, most // 2))


def _check_time(deadline: Deadline, rows: list[Row], options: GenerationOptions) -> None:
    """Raises if the time ran out and that is to be an error."""
    finished = sum(row.finished for row in rows)
    if finished < len(rows) and deadline.passed and options.on_timeout == "raise":
        raise deadline.error(finished, len(rows))


def stream_generate(
    pipeline: Any, prompt: Prompt, options: GenerationOptions
) -> Iterator[TextChunk]:
    """Answers one prompt, piece by piece.

    The model works while the iterator is pulled, or for others: closing it ends the answer.

    Args:
        pipeline: A transformers text-generation pipeline.
        prompt: The prompt.
        options: What is asked for.

    Yields:
        Chunks whose texts add up to what `generate` returns.

    Raises:
        ValueError: As `generate`.
    """
    options = with_pipeline_stops(pipeline, options)
    with admitted(pipeline.model, options.max_calls):
        yield from _pieces(pipeline, prompt, options)


def _pieces(pipeline: Any, prompt: Prompt, options: GenerationOptions) -> Iterator[TextChunk]:
    deadline = Deadline(options.timeout)
    row = Row(pipeline, prompt, options)
    row.builder = TextBuilder(row.detokenizer)
    if row.prefix:
        yield TextChunk(row.prefix)
    scheduler, job = Scheduler.of(pipeline.model), _prepare(pipeline, [row], options)
    cancellation, emitted, steps = current(), 0, 0
    scheduler.submit(job)
    try:
        cancellation.add(partial(scheduler.leave, job))
        while not job.over and not deadline.passed:
            scheduler.drive(job, since=steps, until=deadline.until)
            # Another caller may be at the next step already: only what is ready is read.
            steps, text = job.steps, row.ready
            if not job.over and len(text) > emitted:
                yield TextChunk(text[emitted:])
                emitted = len(text)
    except Exception as error:
        if error is job.error and out_of_memory(error):
            raise one_answer_oom(len(row.ids), row.limit) from error
        raise
    finally:
        scheduler.leave(job)
    cancellation.check()
    scheduler.drive(job)
    _check_time(deadline, [row], options)
    response = row.response()
    yield TextChunk(response.text[len(row.prefix) + emitted :], response)


def _size(row: Row) -> tuple[int, int]:
    """By what rows are sorted."""
    return row.budget, len(row.ids)


def _next_batch(waiting: list[Row], most: int) -> list[Row]:
    """Takes the last rows, as far as they have one budget."""
    batch = [waiting.pop()]
    while waiting and len(batch) < most and waiting[-1].budget == batch[0].budget:
        batch.append(waiting.pop())
    return batch


def _prepare(pipeline: Any, rows: list[Row], options: GenerationOptions) -> Job:
    """Prepares the decoding of one batch; after each step the rows have taken their tokens."""
    model, tokenizer = pipeline.model, pipeline.tokenizer
    budget = rows[0].budget
    eos = eos_token_ids(pipeline, options)
    limit = rows[0].limit
    config = generation_config(pipeline, options, max_new_tokens=limit)
    config.eos_token_id = eos
    config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    # 1. Left-padded prompts, (batch, width)
    device = pipeline.device
    ids, mask = left_padded([row.ids for row in rows], config.pad_token_id)
    width = ids.shape[1]
    # 2. Fresh processors and criteria, which are told where the prompt ends
    user_processors, user_criteria = pipeline_callables(pipeline)
    processors = LogitsProcessorList([*user_processors, *options.logits_processor])
    criteria = StoppingCriteriaList([*user_criteria, *options.stopping_criteria])
    reward = landing = None
    if grammar := options.answer_grammar:
        from langchain_llama_stop.grammar.processor import GrammarProcessor

        with tokenizer_lock(tokenizer):
            constraint = GrammarProcessor(
                tokenizer, grammar, prompt_length=width, max_new_tokens=budget, eos_token_ids=eos
            )
        processors.append(constraint)
    # A grammar says itself where the answer ends.
    wanted = options.eos_reward if grammar is None or grammar.unconstrained else None
    if wanted and wanted.hindsight:
        with tokenizer_lock(tokenizer):
            landing = Landing(
                tokenizer,
                rows=len(rows),
                max_new_tokens=budget,
                eos_token_ids=eos,
                reward=wanted,
            )
    elif wanted:
        reward = InPlaceEosReward(
            tokenizer,
            max_new_tokens=budget,
            prompt_length=width,
            eos_token_id=eos,
            reward=wanted,
        )
        processors.append(reward)
    if options.thinking_tokens:
        lengths: dict[str, Any] = {"prompt_length": width, "thinking_ids": thinking_ids(tokenizer)}
        processors.append(
            ThinkingReward(tokenizer, thinking_tokens=options.thinking_tokens, **lengths)
        )
        criteria.append(AnswerBudget(max_new_tokens=budget, **lengths))
    if options.stop or options.stop_token_ids:
        criteria.append(
            StopSequenceCriteria(
                tokenizer,
                stop=options.stop,
                stop_token_ids=options.stop_token_ids,
                prompt_length=width,
            )
        )
    generators = None
    if options.seed is not None:
        generators = [torch.Generator(device).manual_seed(options.seed) for _ in rows]
    alone = config.use_cache is False or not can_share(model.config)

    # 3. Steps
    def on_step(step: Step) -> None:
        if landing:
            _look(landing, step, rows)
        _accept(step, rows, eos, reward, config.do_sample)
        for i, row in enumerate(rows):
            if landing and row.cut and row.landed is None:
                row.land(landing, i)
            if row.builder and not row.finished:
                row.ready = row.emittable()

    if model.generation_config.max_length and not model.generation_config.max_new_tokens:
        # Said in the model's own terms: transformers warns of both in one call.
        config.max_length, config.max_new_tokens = width + limit, None
    decode = partial(
        decode_steps,
        on_step=on_step,
        generators=generators,
        guesser=None if alone else _guesser(rows, options, config.do_sample),
    )
    passes = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        generation_config=config,
        logits_processor=processors,
        stopping_criteria=criteria,
        custom_generate=decode,
    )
    return Job(
        passes,
        [row.ids for row in rows],
        [row.generated for row in rows],
        tokenizer=tokenizer,
        most_rows=options.batch_size,
        prefix_cache=0 if alone else options.prefix_cache,
        alone=alone,
    )


def _guesser(rows: list[Row], options: GenerationOptions, sampled: bool) -> Guesser | None:
    """What guesses tokens ahead, where that pays: one row, greedy, and something to look up."""
    if len(rows) > 1 or sampled:
        return None
    if options.assistant_model is not None:
        return Assistant(options.assistant_model)
    count = options.prompt_lookup_num_tokens
    if count is None and len(rows[0].ids) >= LONG_PROMPT:
        count = LOOKUP_TOKENS
    return PromptLookup(count) if count else None


def _look(landing: Landing, step: Step, rows: list[Row]) -> None:
    """Judges the places that the rows have reached, before they take the step's tokens."""
    said = [row.said(landing.zone) for row in rows]
    if all(ids is None for ids in said):
        return
    landing.record(said, step.scores, step.best)
    for i, (row, ids) in enumerate(zip(rows, said, strict=True)):
        if row.builder and ids is not None:  # judged now: a stream holds back what may go
            if landing.newest_is_best(i, ids) or row.released is None:
                row.released = row.settled()


def _accept(
    step: Step,
    rows: list[Row],
    eos: list[int],
    reward: EosTokenRewardLogitsProcessor | None,
    sampled: bool,
) -> None:
    """Hands a step's tokens to the rows."""
    for i, row in enumerate(rows):
        if row.finished:
            continue
        if step.tokens[i] in eos:
            row.eos_source = (
                reward.eos_source(step.input_ids[i], step.logits[i].float(), sampled)
                if reward
                else "model"
            )
        if row.options.logprobs:
            row.rate(step.tokens[i], step.logits[i].float().log_softmax(dim=-1))
        row.accept(step.tokens[i], step.finished[i])
