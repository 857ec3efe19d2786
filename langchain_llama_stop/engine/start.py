"""How a batch starts: what chooses its tokens, what ends its answers, and the decode loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from langchain_llama_stop.ending.landing import Landing
from langchain_llama_stop.ending.logits_processor import InPlaceEosReward, ThinkingReward
from langchain_llama_stop.ending.reward import EosReward
from langchain_llama_stop.ending.stopping_criteria import AnswerBudget, StopSequenceCriteria
from langchain_llama_stop.engine.batch import left_padded
from langchain_llama_stop.engine.config import (
    eos_token_ids,
    generation_config,
    pipeline_callables,
    thinking_ids,
)
from langchain_llama_stop.engine.decode import Step, decode_steps
from langchain_llama_stop.engine.kv_cache import can_share
from langchain_llama_stop.engine.request import Request
from langchain_llama_stop.engine.sequence import Sequence
from langchain_llama_stop.engine.speculative import (
    LONG_PROMPT,
    LOOKUP_TOKENS,
    Drafter,
    DraftModel,
    PromptLookup,
)
from langchain_llama_stop.engine.streaming import settled_text, update_streamable
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.encoding import tokenizer_lock


def start(pipeline: Any, sequences: list[Sequence], options: GenerationOptions) -> Request:
    """Makes a request of one batch; after each step its sequences have taken their tokens."""
    model, tokenizer = pipeline.model, pipeline.tokenizer
    eos = eos_token_ids(pipeline, options)
    max_new_tokens = sequences[0].max_new_tokens
    config = generation_config(pipeline, options, max_new_tokens=max_new_tokens)
    config.eos_token_id = eos
    config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else eos[0]
    # 1. Left-padded prompts, (batch, width)
    ids, mask = left_padded([sequence.ids for sequence in sequences], config.pad_token_id)
    width = ids.shape[1]
    # 2. Fresh processors, criteria and landing: they know where the prompt and the budget end
    lengths = {"prompt_length": width, "max_new_tokens": sequences[0].budget}
    reward = build_reward(tokenizer, options, eos, **lengths)
    processors = build_processors(pipeline, options, eos, reward, **lengths)
    criteria = build_criteria(pipeline, options, **lengths)
    landing = build_landing(sequences, options, eos)
    # 3. The decode loop
    unbatchable = config.use_cache is False or not can_share(model.config)

    def on_step(step: Step) -> None:
        if landing:
            _judge_ends(landing, step, sequences)
        _append_tokens(step, sequences, eos, reward, config.do_sample)
        for i, sequence in enumerate(sequences):
            if landing and sequence.hit_limit and sequence.landed is None:
                sequence.land(landing, i)
            if sequence.builder and not sequence.finished:
                update_streamable(sequence)

    if model.generation_config.max_length and not model.generation_config.max_new_tokens:
        # The model's own setting is named: transformers warns where both are set in one call.
        config.max_length, config.max_new_tokens = width + max_new_tokens, None
    generators = None
    if options.seed is not None:
        generators = [torch.Generator(pipeline.device).manual_seed(options.seed) for _ in sequences]
    decode = partial(
        decode_steps,
        on_step=on_step,
        generators=generators,
        drafter=None if unbatchable else build_drafter(sequences, options, config.do_sample),
    )
    passes = model.generate(
        input_ids=ids.to(pipeline.device),
        attention_mask=mask.to(pipeline.device),
        generation_config=config,
        logits_processor=processors,
        stopping_criteria=criteria,
        custom_generate=decode,
    )
    return Request(
        passes,
        [sequence.ids for sequence in sequences],
        [sequence.generated for sequence in sequences],
        tokenizer=tokenizer,
        max_rows=options.batch_size,
        prefix_cache=0 if unbatchable else options.prefix_cache,
        unbatchable=unbatchable,
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


def build_landing(
    sequences: list[Sequence], options: GenerationOptions, eos: list[int]
) -> Landing | None:
    """The search for the best end of an answer that its budget cuts; None if not asked for."""
    reward = _eos_reward(options)
    if reward is None or not reward.hindsight:
        return None
    tokenizer, budget = sequences[0].pipeline.tokenizer, sequences[0].budget
    with tokenizer_lock(tokenizer):
        return Landing(
            tokenizer,
            rows=len(sequences),
            prompts=[sequence.ids for sequence in sequences],
            max_new_tokens=budget,
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
    """The processors of a batch: the pipeline's, the user's, grammar, EOS reward, thinking."""
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
    """The criteria of a batch: the pipeline's, the user's, the answer's budget, the stops."""
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


def build_drafter(
    sequences: list[Sequence], options: GenerationOptions, sampled: bool
) -> Drafter | None:
    """What drafts tokens, where that pays: one sequence, greedy, and something to look up."""
    if len(sequences) > 1 or sampled:
        return None
    if options.assistant_model is not None:
        return DraftModel(options.assistant_model)
    count = options.prompt_lookup_num_tokens
    if count is None and len(sequences[0].ids) >= LONG_PROMPT:
        count = LOOKUP_TOKENS
    return PromptLookup(count) if count else None


def _judge_ends(landing: Landing, step: Step, sequences: list[Sequence]) -> None:
    """Judges the ends that the answers have reached, before they take the step's tokens."""
    answers = [sequence.answer_ids(landing.zone) for sequence in sequences]
    if all(ids is None for ids in answers):
        return
    landing.record(answers, step.scores, step.best)
    for i, (sequence, ids) in enumerate(zip(sequences, answers, strict=True)):
        if sequence.builder and ids is not None:  # a stream holds back what landing may cut
            if landing.newest_is_best(i, ids) or sequence.safe_prefix is None:
                sequence.safe_prefix = settled_text(sequence)


def _append_tokens(
    step: Step,
    sequences: list[Sequence],
    eos: list[int],
    reward: InPlaceEosReward | None,
    sampled: bool,
) -> None:
    """Gives each sequence its token of a step."""
    for i, sequence in enumerate(sequences):
        if sequence.finished:
            continue
        if step.tokens[i] in eos:
            sequence.eos_source = (
                reward.eos_source(step.input_ids[i], step.logits[i].float(), sampled)
                if reward
                else "model"
            )
        if sequence.options.logprobs:
            sequence.record_logprob(step.tokens[i], step.logits[i].float().log_softmax(dim=-1))
        sequence.append(step.tokens[i], step.finished[i])
