"""The decode loop: from the logits of each forward pass to tokens, until every row is finished.

`generate` of transformers prepares everything (generation config, processors, criteria) and then
calls a decoding method; with `custom_generate` that method is ours. It is a generator that yields
the forward passes that it needs and is sent their logits. The scheduler decides who runs them, and
which requests share them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from itertools import takewhile
from typing import Any, NamedTuple

import torch
import transformers
from transformers import GenerationConfig, LogitsProcessorList

from langchain_llama_stop.engine.speculative import Drafter

WARPERS = (
    transformers.EpsilonLogitsWarper,
    transformers.EtaLogitsWarper,
    transformers.MinPLogitsWarper,
    transformers.TemperatureLogitsWarper,
    transformers.TopHLogitsWarper,
    transformers.TopKLogitsWarper,
    transformers.TopPLogitsWarper,
    transformers.TypicalLogitsWarper,
)
"""The processors of sampling: transformers puts them after all others."""


class Step(NamedTuple):
    """One more token for each row.

    Attributes:
        tokens: The chosen token of each row, (batch,); padding for rows that were finished before.
        finished: Which rows are finished now, (batch,).
        input_ids: Prompt and answer before this step, (batch, prompt_length + generated).
        logits: The model's own logits, (batch, vocab); zeros for rows that were finished before.
        scores: The logits after all processors but those of sampling (temperature and the like):
            -inf for tokens that are forbidden, (batch, vocab).
        best: The highest of each row's `scores`, (batch,); None where sampling did not need it.
    """

    tokens: list[int]
    finished: list[bool]
    input_ids: torch.Tensor
    logits: torch.Tensor
    scores: torch.Tensor
    best: torch.Tensor | None


class Pass(NamedTuple):
    """A forward pass that the decode loop needs.

    Attributes:
        rows: The rows that are not finished.
        tokens: Their newest token, and draft tokens that may be left out, (rows, 1 or more).
        input_ids: Prompt and answer so far, without the draft, (batch, length).
        model_kwargs: What transformers has prepared for the pass, of the first one only.
    """

    rows: list[int]
    tokens: torch.Tensor
    input_ids: torch.Tensor
    model_kwargs: dict[str, Any]


Passes = Generator[Pass, torch.Tensor, None]
"""Yields passes; is sent the logits after their tokens, (rows, 1 or more, vocab)."""


def decode_steps(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    on_step: Callable[[Step], None],
    generators: list[torch.Generator] | None = None,
    drafter: Drafter | None = None,
    **model_kwargs: Any,
) -> Passes:
    """Decodes a batch greedily or by sampling; the decoding method for `custom_generate`.

    Args:
        model: Not used here: the scheduler runs it.
        input_ids: The left-padded prompts, (batch, prompt_length).
        logits_processor: All processors, as `generate` has put them together.
        stopping_criteria: All criteria, EOS and length among them.
        generation_config: As `generate` has completed it.
        on_step: Called after each step.
        generators: One source of randomness per row; torch's global one if None.
        drafter: Drafts tokens; one row and greedy decoding only.
        **model_kwargs: What the forward pass takes: attention mask, position ids, cache.

    Yields:
        The passes that are needed: the prompts first, then each time the newest token of each row
        that is not finished.
    """
    sampling = list(takewhile(lambda p: isinstance(p, WARPERS), reversed(logits_processor)))
    count = len(logits_processor) - len(sampling)
    processors: Any = LogitsProcessorList(logits_processor[:count])
    warpers: Any = LogitsProcessorList(reversed(sampling))
    pad, batch = generation_config.pad_token_id, input_ids.shape[0]
    running = torch.ones(batch, dtype=torch.bool, device=input_ids.device)
    in_pass: torch.Tensor | None = None  # indices of the rows in the pass, if these are not all
    draft = input_ids[:, :0]  # (batch, drafted)
    logits = yield Pass(list(range(batch)), input_ids, input_ids, model_kwargs)
    while True:
        drafted = logits.shape[1] - 1
        for position in range(1 + drafted):
            # 1. Scores, (batch, vocab)
            own = logits[:, position].to(input_ids.device)
            if in_pass is not None:
                own = own.new_zeros(batch, own.shape[1]).index_copy_(0, in_pass, own)
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
            if position < drafted and tokens[0] != draft[0, position]:
                break
        # 4. The next pass
        rows = [i for i in range(batch) if not finished[i]]
        newest = input_ids[:, -1:]
        if len(rows) < batch:
            in_pass = torch.tensor(rows, device=input_ids.device)
            newest = newest[in_pass]
        if drafter:
            room = stopping_criteria.max_length - input_ids.shape[1] - 1
            draft = drafter(input_ids, drafted, position, room)
            newest = torch.cat([newest, draft], dim=-1)
        logits = yield Pass(rows, newest, input_ids, {})


def _check(choosable: torch.Tensor, own: torch.Tensor, input_ids: torch.Tensor) -> None:
    """Raises if no token can be chosen for some row, (batch,); `own` are the model's logits."""
    if bool(choosable.all()):
        return
    row = int((~choosable).nonzero()[0, 0])
    whose = "The model's scores" if bool(own[row].isnan().any()) else "The scores"
    raise FloatingPointError(
        f"{whose} for the next token are not numbers, or forbid every token, in row {row} after "
        f"{input_ids.shape[1]} tokens: load the model with `dtype='float32'` or 'bfloat16' "
        "(float16 overflows in many models), and look at your own `logits_processor`."
    )


def _draw(probabilities: torch.Tensor, generators: list[torch.Generator] | None) -> torch.Tensor:
    """Draws one token per row out of (batch, vocab); the result is (batch,)."""
    if generators is None:
        return torch.multinomial(probabilities, num_samples=1).squeeze(1)
    rows = zip(probabilities, generators, strict=True)
    return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in rows])
