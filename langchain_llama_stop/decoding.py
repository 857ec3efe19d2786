"""The decode loop: one forward pass per step, pulled by whoever wants the tokens.

`generate` of transformers prepares everything (generation config, processors, criteria, cache) and
then calls a decoding method; `custom_generate` lets that method be ours. Ours is a generator: a
stream pulls it, a batch exhausts it, and closing it ends the model's work at once. No thread, no
queue, so that an exception reaches the caller as itself.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import (
    Cache,
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MinPLogitsWarper,
    PreTrainedModel,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
"""What the forward pass calls its keys and values: transformers 5.24 has renamed them."""

WARPERS = (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
"""The processors of sampling: transformers puts them behind all others."""

_LOCKS: WeakKeyDictionary[PreTrainedModel, threading.RLock] = WeakKeyDictionary()
_LOCKS_GUARD = threading.Lock()


class Step(NamedTuple):
    """One more token for each row.

    Attributes:
        tokens: The chosen token of each row, (batch,); padding for rows that had finished before.
        finished: Which rows have now finished, (batch,).
        input_ids: Prompt and answer before this step, (batch, prompt_length + generated).
        logits: The model's own scores, (batch, vocab).
        scores: The same after all processors but those of sampling (temperature and the like):
            what is forbidden is -inf, (batch, vocab).
    """

    tokens: list[int]
    finished: list[bool]
    input_ids: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor


def model_lock(model: PreTrainedModel) -> threading.RLock:
    """Returns the lock of a model, held for a step at a time.

    Threads take turns: two forward passes at once would share the same cores and finish later,
    and fast tokenizers may not be used by two threads.

    Args:
        model: The model.

    Returns:
        Its lock; the same for each call.
    """
    with _LOCKS_GUARD:
        return _LOCKS.setdefault(model, threading.RLock())


def decode_steps(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    generators: list[torch.Generator] | None = None,
    lookup: int = 0,
    **model_kwargs: Any,
) -> Iterator[Step]:
    """Decodes a batch greedily or by sampling; the decoding method for `custom_generate`.

    Args:
        model: The `PreTrainedModel`.
        input_ids: The left-padded prompts, (batch, prompt_length).
        logits_processor: All processors, as `generate` has put them together.
        stopping_criteria: All criteria, EOS and length among them.
        generation_config: As `generate` has completed it.
        generators: One source of randomness per row; torch's global one if None.
        lookup: Tokens to guess ahead from the text so far; one row and greedy only.
        **model_kwargs: What the forward pass takes: attention mask, position ids, cache.

    Yields:
        One `Step` per token, until every row has finished.
    """
    lock = model_lock(model)
    last = list(takewhile(lambda p: isinstance(p, WARPERS), reversed(logits_processor)))
    processors: Any = LogitsProcessorList(logits_processor[: len(logits_processor) - len(last)])
    warpers: Any = LogitsProcessorList(reversed(last))
    pad = generation_config.pad_token_id
    running = torch.ones(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
    cache: Cache | None = model_kwargs.get(CACHE)
    # The first pass reads the prompt, or what a reused cache does not hold of it yet.
    unread = input_ids.shape[1] - cache.get_seq_length() if cache is not None else 0
    guesses = input_ids[:, :0]  # (batch, guessed): more than none only when looking ahead
    first = True
    while True:
        # Neither the lock nor torch's thread-local gradient mode may be held across a yield.
        with lock, torch.no_grad():
            # 1. Forward: the unread tokens and the guesses behind them
            guessed = guesses.shape[1]
            if lookup:
                model_kwargs |= {"logits_to_keep": 1 + guessed, "position_ids": None}
            inputs = model.prepare_inputs_for_generation(
                torch.cat([input_ids, guesses], dim=-1) if guessed else input_ids,
                next_sequence_length=unread + guessed if unread else None,
                is_first_iteration=first,
                **model_kwargs,
            )
            outputs = model(**inputs, return_dict=True)
            model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs)
            logits = outputs.logits[:, -1 - guessed :]  # (batch, 1 + guessed, vocab)
            del outputs
            first = False
            if model_kwargs["use_cache"]:  # else every pass reads everything
                unread = 1
            steps = []
            for position in range(1 + guessed):
                # 2. Scores
                own = logits[:, position]
                scores = own.to(copy=True, dtype=torch.float32, device=input_ids.device)
                scores = processors(input_ids, scores)
                # 3. Choice
                if generation_config.do_sample:
                    tokens = _sample(warpers(input_ids, scores), generators)
                else:
                    tokens = scores.argmax(dim=-1)  # (batch,)
                tokens = torch.where(running, tokens, pad)
                # 4. Stop
                before, input_ids = input_ids, torch.cat([input_ids, tokens[:, None]], dim=-1)
                running = running & ~stopping_criteria(input_ids, None)
                steps.append(Step(tokens.tolist(), (~running).tolist(), before, own, scores))
                if all(steps[-1].finished):
                    break
                if position < guessed and tokens[0] != guesses[0, position]:
                    break
            # 5. Guesses: the wrong ones leave the cache, new ones are looked up
            if lookup:
                if wrong := guessed - (len(steps) - 1):
                    model_kwargs[CACHE].crop(-wrong)
                left = stopping_criteria.max_length - input_ids.shape[1] - 1
                guesses = look_up(input_ids, min(lookup, left))
        yield from steps
        if all(steps[-1].finished):
            return


def look_up(input_ids: torch.Tensor, count: int) -> torch.Tensor:
    """Guesses the next tokens: what followed the last time the newest tokens stood in the text.

    Prompt lookup decoding, after A. Saxena (2023): an answer that quotes its context needs no
    second model to guess ahead.

    Args:
        input_ids: Prompt and answer so far, (1, length).
        count: Tokens to guess at most.

    Returns:
        The guesses, (1, 0 to count).
    """
    ids = input_ids[0]
    for size in (3, 2):
        if count < 1 or len(ids) <= size:
            continue
        windows = ids[:-1].unfold(0, size, 1)  # (length - size, size): all but the last itself
        found = (windows == ids[-size:]).all(dim=1).nonzero()
        if len(found):
            begin = int(found[-1]) + size
            return input_ids[:, begin : begin + count]
    return input_ids[:, :0]


def _sample(scores: torch.Tensor, generators: list[torch.Generator] | None) -> torch.Tensor:
    """Draws one token per row; scores are (batch, vocab), the result is (batch,)."""
    probabilities = torch.softmax(scores, dim=-1)
    if generators is None:
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    rows = zip(probabilities, generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in rows])
