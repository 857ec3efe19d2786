"""Which conversations are trained on and which are held out; and self-distillation."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langchain_llama_stop._optional import Progress
from langchain_llama_stop.chat.template import chat_ids, chat_template
from langchain_llama_stop.ending.boundaries import may_end
from langchain_llama_stop.engine.config import context_window, eos_token_ids
from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.training.data import Conversation, after_thoughts
from langchain_llama_stop.training.examples import Example, check_template, encode_conversation
from langchain_llama_stop.training.options import FinetuneOptions

PROMPTS_AT_ONCE = 64
"""Prompts that are distilled between two messages of progress; chosen so that one comes often."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Data ready for training.

    Attributes:
        examples: What is trained on.
        held_out: What is measured on.
        dropped: Conversations left out: too long, or with a prompt that is held out.
    """

    examples: list[Example]
    held_out: list[Example]
    dropped: int


def encode_conversations(
    pipeline: Any, conversations: Sequence[Conversation], options: FinetuneOptions
) -> list[Example]:
    """Renders and encodes conversations, and leaves out those that are too long.

    Args:
        pipeline: The pipeline whose template and tokenizer are used.
        conversations: Each ends with an answer.
        options: `max_length` and `max_new_tokens` say what is too long.

    Returns:
        The others, in tokens.

    Raises:
        ValueError: If a conversation cannot be rendered, or a chat would begin answers otherwise.
    """
    tokenizer, eos = pipeline.tokenizer, eos_token_ids(pipeline, GenerationOptions())
    template = chat_template(tokenizer, pipeline.model.name_or_path)
    check_template(tokenizer, template)
    longest = min(options.max_length, context_window(pipeline.model) or options.max_length)
    encoded = (encode_conversation(tokenizer, c, template, eos) for c in conversations)
    return [
        e
        for e in encoded
        if len(e.ids) <= longest
        and all(end - begin <= options.max_new_tokens for begin, end in e.answers)
    ]


def prepare(
    pipeline: Any, conversations: Sequence[Conversation], options: FinetuneOptions
) -> TrainingData:
    """Encodes conversations, shuffles them and holds some out; refuses if too few are left."""
    fitting = encode_conversations(pipeline, conversations, options)
    if len(fitting) <= options.held_out:
        raise ValueError(
            f"More conversations have to be left than the {options.held_out} of `held_out`, but "
            f"of {len(conversations):,} only {len(fitting):,} have at most {options.max_length} "
            f"tokens (`max_length`) and no answer over {options.max_new_tokens} "
            "(`max_new_tokens`): raise these, lower `held_out`, or give more data."
        )
    random.Random(options.seed).shuffle(fitting)
    # A prompt that is held out is neither trained on in another row nor measured twice.
    held_out: dict[tuple[int, ...], Example] = {}
    for e in fitting:
        if len(held_out) < options.held_out:
            held_out.setdefault(e.prompt, e)
    examples = [e for e in fitting if e.prompt not in held_out]
    if not examples:
        raise ValueError(
            "`data` has to hold more prompts than are held out, but all others are repetitions."
        )
    dropped = len(conversations) - len(examples) - len(held_out)
    return TrainingData(examples, list(held_out.values()), dropped)


def distil(
    pipeline: Any, prompts: Sequence[Conversation], options: FinetuneOptions, progress: Progress
) -> list[Conversation]:
    """Lets the model answer prompts under the EOS reward, and returns what landed.

    Args:
        pipeline: The pipeline.
        prompts: Conversations that end with a question. Those that leave no room for an answer of
            `max_new_tokens` are left out.
        options: `max_new_tokens` is the budget of an answer.
        progress: Called before each batch.

    Returns:
        The conversations whose answers landed, answers included.

    Raises:
        ValueError: If none did.
    """
    template = chat_template(pipeline.tokenizer, pipeline.model.name_or_path)
    generation = GenerationOptions.parse(
        {"max_new_tokens": options.max_new_tokens, "temperature": 0}
    )
    window = context_window(pipeline.model) or math.inf
    encoded = [(p, chat_ids(pipeline.tokenizer, p, template=template)) for p in prompts]
    encoded = [(p, ids) for p, ids in encoded if len(ids) + options.max_new_tokens <= window]
    landed = []
    for begin in range(0, len(encoded), PROMPTS_AT_ONCE):
        part = encoded[begin : begin + PROMPTS_AT_ONCE]
        progress(f"Answering prompts {begin + 1} to {begin + len(part)} of {len(encoded)}")
        answers = generate(pipeline, [ids for _, ids in part], generation)
        for (prompt, _), answer in zip(part, answers, strict=True):
            text = after_thoughts(answer.text)
            if answer.eos_source and may_end(text, following="") and text:
                landed.append([*prompt, {"role": "assistant", "content": text}])
    if not landed:
        raise ValueError(
            f"`self_distil` has to bring answers that land, but none of {len(prompts)} did within "
            f"{options.max_new_tokens} tokens: raise `max_new_tokens`, or give `data`."
        )
    return landed
