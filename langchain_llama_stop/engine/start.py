"""How a request starts: what chooses its tokens, and what ends its answer."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from langchain_llama_stop.ending.landing import Landing
from langchain_llama_stop.ending.logits_processor import InPlaceEosReward, ThinkingReward
from langchain_llama_stop.ending.reward import EosReward
from langchain_llama_stop.ending.stopping_criteria import AnswerBudget, StopSequenceCriteria
from langchain_llama_stop.engine.admission import CURRENT, Cancellation
from langchain_llama_stop.engine.config import (
    eos_token_ids,
    generation_config,
    pipeline_callables,
    thinking_ids,
    vocabulary_size,
)
from langchain_llama_stop.engine.decode import Decoder, prepared
from langchain_llama_stop.engine.forward import can_batch, keeps_state
from langchain_llama_stop.engine.outbox import Outbox
from langchain_llama_stop.engine.request import Request
from langchain_llama_stop.engine.sequence import Sequence
from langchain_llama_stop.engine.speculative import (
    LONG_PROMPT,
    LOOKUP_TOKENS,
    Drafter,
    DraftModel,
    PromptLookup,
)
from langchain_llama_stop.engine.thread import INSIDE, engine_of
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.encoding import tokenizer_lock


def start(
    pipeline: Any,
    sequence: Sequence,
    options: GenerationOptions,
    outbox: Outbox,
    inside: Cancellation,
) -> Request:
    """Makes the request of one sequence.

    Args:
        pipeline: The pipeline.
        sequence: The sequence.
        options: The options of the call.
        outbox: Where the answer goes to.
        inside: Cancels the calls that its processors make. The request leaves at its `until`.
    """
    model, tokenizer = pipeline.model, pipeline.tokenizer
    eos = eos_token_ids(pipeline, options)
    prompt_length, max_new_tokens = len(sequence.ids), sequence.max_new_tokens
    config = generation_config(pipeline, options, max_new_tokens=max_new_tokens)
    config.eos_token_id = eos
    pad = tokenizer.pad_token_id  # one that was added without resizing has no embedding
    config.pad_token_id = pad if pad is not None and pad < vocabulary_size(model) else eos[0]
    if model.generation_config.max_length and not model.generation_config.max_new_tokens:
        # The model's own setting is named: transformers warns where both are set in one call.
        config.max_length, config.max_new_tokens = prompt_length + max_new_tokens, None
    # 1. Fresh processors, criteria and landing: they know where the prompt and the budget end
    lengths = {"prompt_length": prompt_length, "max_new_tokens": sequence.budget}
    sequence.eos = tuple(eos)
    sequence.reward = build_reward(tokenizer, options, eos, **lengths)
    sequence.landing = build_landing(sequence, options, eos)
    processors = build_processors(pipeline, options, eos, sequence.reward, **lengths)
    criteria = build_criteria(pipeline, options, **lengths)
    # 2. transformers adds its own, and checks the settings
    ids = torch.tensor([sequence.ids], device=pipeline.device)
    arguments = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "generation_config": config,
        "logits_processor": processors,
        "stopping_criteria": criteria,
        "custom_generate": prepared,
    }
    try:
        made = model.generate(**arguments)
    except (TypeError, LookupError, AttributeError) as error:  # a value of a wrong form
        raise ValueError(
            "The generation settings have to be what transformers' `generate` takes, but it "
            f"raises {error!r}: correct `pipeline_kwargs`, the pipeline's settings or "
            "`model.generation_config`."
        ) from error
    # 3. What chooses the tokens
    unbatchable = config.use_cache is False or not can_batch(model, prompt_length + max_new_tokens)
    generator = None
    if options.seed is not None:
        generator = torch.Generator(pipeline.device).manual_seed(options.seed)
    drafter = None if unbatchable else build_drafter(sequence, options, config.do_sample)
    decoder = Decoder(
        sequence,
        made,
        device=pipeline.device,
        given_criteria=criteria,
        generator=generator,
        drafter=drafter,
    )
    context = copy_context()
    context.run(INSIDE.set, (*INSIDE.get(), engine_of(model)))
    context.run(CURRENT.set, inside)
    return Request(
        sequence,
        decoder,
        outbox,
        context,
        until=inside.until,
        max_rows=1 if keeps_state(model) else options.batch_size,
        prefix_cache=0 if unbatchable else options.prefix_cache,
        unbatchable=unbatchable,
        model_kwargs=made.model_kwargs if unbatchable else {},
        fresh_kwargs=lambda: model.generate(**arguments).model_kwargs,
    )


def build_reward(
    tokenizer: Any,
    options: GenerationOptions,
    eos: list[int],
    *,
    prompt_length: int,
    max_new_tokens: int,
) -> InPlaceEosReward | None:
    """The EOS reward that acts at each step; None without one, or where landing takes its place."""
    reward = _eos_reward(options)
    if reward is None or reward.hindsight:
        return None
    return InPlaceEosReward(
        tokenizer,
        max_new_tokens=max_new_tokens,
        prompt_length=prompt_length,
        eos_token_id=eos,
        reward=reward,
    )


def build_landing(sequence: Sequence, options: GenerationOptions, eos: list[int]) -> Landing | None:
    """The search for the best end of an answer that its budget cuts; None if not asked for."""
    reward = _eos_reward(options)
    if reward is None or not reward.hindsight:
        return None
    tokenizer = sequence.pipeline.tokenizer
    with tokenizer_lock(tokenizer):
        return Landing(
            tokenizer,
            prompt=sequence.ids,
            max_new_tokens=sequence.budget,
            eos_token_ids=eos,
            reward=reward,
        )


def _eos_reward(options: GenerationOptions) -> EosReward | None:
    """The EOS reward of a call; none where a grammar decides where the answer ends."""
    grammar = options.answer_grammar
    return options.eos_reward if grammar is None or grammar.unconstrained else None


def build_processors(
    pipeline: Any,
    options: GenerationOptions,
    eos: list[int],
    reward: InPlaceEosReward | None,
    *,
    prompt_length: int,
    max_new_tokens: int,
) -> LogitsProcessorList:
    """The processors of a request: the pipeline's, the user's, grammar, EOS reward, thinking."""
    tokenizer = pipeline.tokenizer
    processors = LogitsProcessorList([*pipeline_callables(pipeline)[0], *options.logits_processor])
    if grammar := options.answer_grammar:
        from langchain_llama_stop.grammar.processor import GrammarProcessor

        with tokenizer_lock(tokenizer):
            constraint = GrammarProcessor(
                tokenizer,
                grammar,
                prompt_length=prompt_length,
                max_new_tokens=max_new_tokens,
                eos_token_ids=eos,
            )
        processors.append(constraint)
    if reward:
        processors.append(reward)
    if options.thinking_tokens:
        thinking = ThinkingReward(
            tokenizer,
            thinking_tokens=options.thinking_tokens,
            prompt_length=prompt_length,
            thinking_ids=thinking_ids(tokenizer),
        )
        processors.append(thinking)
    return processors


def build_criteria(
    pipeline: Any, options: GenerationOptions, *, prompt_length: int, max_new_tokens: int
) -> StoppingCriteriaList:
    """The criteria of a request: the pipeline's, the user's, the answer's budget, the stops."""
    tokenizer = pipeline.tokenizer
    criteria = StoppingCriteriaList([*pipeline_callables(pipeline)[1], *options.stopping_criteria])
    if options.thinking_tokens:  # not the same as the budget of all that is decoded
        budget = AnswerBudget(
            max_new_tokens=max_new_tokens,
            prompt_length=prompt_length,
            thinking_ids=thinking_ids(tokenizer),
        )
        criteria.append(budget)
    if options.stop or options.stop_token_ids:
        stops = StopSequenceCriteria(
            tokenizer,
            stop=options.stop,
            stop_token_ids=options.stop_token_ids,
            prompt_length=prompt_length,
        )
        criteria.append(stops)
    return criteria


def build_drafter(sequence: Sequence, options: GenerationOptions, sampled: bool) -> Drafter | None:
    """What drafts tokens, where that pays: greedy, and something to look up."""
    if sampled:
        return None
    if options.assistant_model is not None:
        return DraftModel(options.assistant_model)
    count = options.prompt_lookup_num_tokens
    if count is None and len(sequence.ids) >= LONG_PROMPT:
        count = LOOKUP_TOKENS
    return PromptLookup(count) if count else None
