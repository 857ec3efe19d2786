"""What is trained on and what is held out; the model's own answers where there are no others."""

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
from langchain_llama_stop.training.data import Conversation, behind_thoughts
from langchain_llama_stop.training.examples import Example, check_template, example
from langchain_llama_stop.training.options import FinetuneOptions


@dataclass(frozen=True, slots=True)
class Prepared:
    """Data ready for training.

    Attributes:
        examples: What is trained on.
        held_out: What is measured on.
        dropped: Conversations left out, as too long or for repeating a prompt that is held out.
    """

    examples: list[Example]
    held_out: list[Example]
    dropped: int


def encode(
    pipeline: Any, talks: Sequence[Conversation], settings: FinetuneOptions
) -> list[Example]:
    """Renders conversations, and leaves out those that are too long.

    Args:
        pipeline: The pipeline.
        talks: The conversations; each ends with an answer.
        settings: The settings.

    Returns:
        The others, in tokens.

    Raises:
        ValueError: If a conversation cannot be rendered, or a chat would begin answers otherwise.
    """
    tokenizer, eos = pipeline.tokenizer, eos_token_ids(pipeline, GenerationOptions())
    template = chat_template(tokenizer, pipeline.model.name_or_path)
    check_template(tokenizer, template)
    most = min(settings.max_length, context_window(pipeline.model) or settings.max_length)
    found = (example(tokenizer, talk, template, eos) for talk in talks)
    return [
        e
        for e in found
        if len(e.ids) <= most
        and all(end - begin <= settings.max_new_tokens for begin, end in e.answers)
    ]


def prepare(pipeline: Any, talks: Sequence[Conversation], settings: FinetuneOptions) -> Prepared:
    """Renders conversations, and holds some back.

    Args:
        pipeline: The pipeline.
        talks: The conversations; each ends with an answer.
        settings: The settings.

    Returns:
        The examples.

    Raises:
        ValueError: As `encode`, or if too few are left.
    """
    kept = encode(pipeline, talks, settings)
    if len(kept) <= settings.held_out:
        raise ValueError(
            f"More conversations have to be left than the {settings.held_out} of `held_out`, but "
            f"of {len(talks):,} only {len(kept):,} have at most {settings.max_length} tokens "
            f"(`max_length`) and no answer over {settings.max_new_tokens} (`max_new_tokens`): "
            "raise these, lower `held_out`, or give more data."
        )
    random.Random(settings.seed).shuffle(kept)
    # A prompt that is held out is neither trained on in another row nor measured twice.
    held_out: dict[tuple[int, ...], Example] = {}
    for e in kept:
        if len(held_out) < settings.held_out:
            held_out.setdefault(e.prompt, e)
    examples = [e for e in kept if e.prompt not in held_out]
    if not examples:
        raise ValueError(
            "`data` has to hold more prompts than are held out, but all others are repetitions."
        )
    return Prepared(examples, list(held_out.values()), len(talks) - len(examples) - len(held_out))


def distil(
    pipeline: Any, prompts: Sequence[Conversation], settings: FinetuneOptions, tell: Progress
) -> list[Conversation]:
    """Lets a model answer prompts under the EOS reward.

    Args:
        pipeline: The pipeline.
        prompts: Conversations that end with a question; those that leave no room for an answer
            are left out.
        settings: Their budget is used.
        tell: Told how it gets on.

    Returns:
        The conversations whose answers landed, with these.

    Raises:
        ValueError: If none did.
    """
    template = chat_template(pipeline.tokenizer, pipeline.model.name_or_path)
    options = GenerationOptions.parse({"max_new_tokens": settings.max_new_tokens, "temperature": 0})
    window = context_window(pipeline.model) or math.inf
    encoded = [(p, chat_ids(pipeline.tokenizer, p, template=template)) for p in prompts]
    encoded = [(p, ids) for p, ids in encoded if len(ids) + settings.max_new_tokens <= window]
    landed = []
    for begin in range(0, len(encoded), 64):
        part = encoded[begin : begin + 64]
        tell(f"Answering prompts {begin + 1} to {begin + len(part)} of {len(encoded)}")
        answers = generate(pipeline, [ids for _, ids in part], options)
        for (prompt, _), answer in zip(part, answers, strict=True):
            text = behind_thoughts(answer.text)
            if answer.eos_source and may_end(text) and text:
                landed.append([*prompt, {"role": "assistant", "content": text}])
    if not landed:
        raise ValueError(
            f"`self_distil` has to bring answers that land, but none of {len(prompts)} did within "
            f"{settings.max_new_tokens} tokens: raise `max_new_tokens`, or give `data`."
        )
    return landed
