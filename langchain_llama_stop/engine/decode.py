"""The decode loop: what becomes of the scores of each forward pass, until every row has finished.

`generate` of transformers prepares everything (generation config, processors, criteria) and then
calls a decoding method; `custom_generate` lets that method be ours. Ours is a generator that asks
for forward passes and is sent their scores: who runs them, and for whom besides, is the
scheduler's affair.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from langchain_llama_stop.engine.speculative import Guesser

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


class Step(NamedTuple):
    """One more token for each row.

    Attributes:
        tokens: The chosen token of each row, (batch,); padding for rows that had finished before.
        finished: Which rows have now finished, (batch,).
        input_ids: Prompt and answer before this step, (batch, prompt_length + generated).
        logits: The model's own scores, (batch, vocab); zeros for rows that had finished before.
        scores: The same after all processors but those of sampling (temperature and the like):
            what is forbidden is -inf, (batch, vocab).
        best: The highest of each row's `scores`, (batch,); None where sampling did not need it.
    """

    tokens: list[int]
    finished: list[bool]
    input_ids: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor
    best: torch.Tensor | None


class Pass(NamedTuple):
    """A forward pass that is asked for.

    Attributes:
        rows: The rows that have not finished.
        tokens: Their newest token, and guesses behind it which may be left out, (rows, 1 or more).
        input_ids: Prompt and answer so far, without the guesses, (batch, length).
        model_kwargs: What transformers has prepared for the pass, of the first one only.
    """

    rows: list[int]
    tokens: torch.Tensor
    input_ids: torch.Tensor
    model_kwargs: dict[str, Any]


Passes = Generator[Pass, torch.Tensor, None]
"""Asks for passes; is sent scores behind the tokens, (rows, 1 or more, vocab)."""


def decode_steps(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    on_step: Callable[[Step], None],
    generators: Sequence[torch.Generator] | None = None,
    guesser: Guesser | None = None,
    **model_kwargs: Any,
) -> Passes:
    """Decodes a batch greedily or by sampling; the decoding method for `custom_generate`.

    Args:
        model: The `PreTrainedModel`.
        input_ids: The left-padded prompts, (batch, prompt_length).
        logits_processor: All processors, as `generate` has put them together.
        stopping_criteria: All criteria, EOS and length among them.
        generation_config: As `generate` has completed it.
        on_step: Told of each step.
        generators: One source of randomness per row; torch's global one if None.
        guesser: Guesses tokens ahead; one row and greedy only.
        **model_kwargs: What the forward pass takes: attention mask, position ids, cache.

    Yields:
        The passes that are wanted: the prompts first, then each time the newest token of each row
        that has not finished.
    """
    last = list(takewhile(lambda p: isinstance(p, WARPERS), reversed(logits_processor)))
    processors: Any = LogitsProcessorList(logits_processor[: len(logits_processor) - len(last)])
    warpers: Any = LogitsProcessorList(reversed(last))
    pad, batch = generation_config.pad_token_id, input_ids.shape[0]
    running = torch.ones(batch, dtype=torch.bool, device=input_ids.device)
    where: torch.Tensor | None = None  # of the rows in the pass, where they are not all
    guesses = input_ids[:, :0]  # (batch, guessed)
    logits = yield Pass(list(range(batch)), input_ids, input_ids, model_kwargs)
    while True:
        guessed = logits.shape[1] - 1
        for position in range(1 + guessed):
            # 1. Scores, (batch, vocab)
            own = logits[:, position].to(input_ids.device)
            if where is not None:
                own = own.new_zeros(batch, own.shape[1]).index_copy_(0, where, own)
            scores = processors(input_ids, own.to(copy=True, dtype=torch.float32))
            # 2. Choice, (batch,)
            best = None
            if generation_config.do_sample:
                probabilities = torch.softmax(warpers(input_ids, scores), dim=-1)
                _check(~probabilities[:, 0].isnan() | ~running, own, input_ids)
                tokens = _draw(probabilities, generators)
            else:
                best, tokens = scores.max(dim=-1)
                _check((best > -torch.inf) | ~running, own, input_ids)
            tokens = torch.where(running, tokens, pad)
            # 3. Stop
            before, input_ids = input_ids, torch.cat([input_ids, tokens[:, None]], dim=-1)
            running = running & ~stopping_criteria(input_ids, None)
            chosen, finished = tokens.tolist(), (~running).tolist()
            on_step(Step(chosen, finished, before, own, scores, best))
            if all(finished):
                return
            if position < guessed and tokens[0] != guesses[0, position]:
                break
        # 4. The next pass
        rows = [i for i in range(batch) if not finished[i]]
        newest = input_ids[:, -1:]
        if len(rows) < batch:
            where = torch.tensor(rows, device=input_ids.device)
            newest = newest[where]
        if guesser:
            left = stopping_criteria.max_length - input_ids.shape[1] - 1
            guesses = guesser(input_ids, guessed, position, left)
            newest = torch.cat([newest, guesses], dim=-1)
        logits = yield Pass(rows, newest, input_ids, {})


def _check(sound: torch.Tensor, own: torch.Tensor, input_ids: torch.Tensor) -> None:
    """Refuses rows, (batch,), that no token can be chosen for; `own` are the model's scores."""
    if bool(sound.all()):
        return
    row = int((~sound).nonzero()[0, 0])
    whose = "The model's scores" if bool(own[row].isnan().any()) else "The scores"
    raise FloatingPointError(
        f"{whose} for the next token are not numbers, or forbid every token, in row {row} behind "
        f"{input_ids.shape[1]} tokens: load the model with `dtype='float32'` or 'bfloat16' "
        "(float16 overflows in many models), and look at your own `logits_processor`."
    )


def _draw(
    probabilities: torch.Tensor, generators: Sequence[torch.Generator] | None
) -> torch.Tensor:
    """Draws one token per row out of (batch, vocab); the result is (batch,)."""
    if generators is None:
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    rows = zip(probabilities, generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in rows])
