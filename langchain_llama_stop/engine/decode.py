"""From the logits of each forward pass to the tokens of one sequence.

`generate` of transformers prepares everything (generation config, processors, criteria) and then
calls a decoding method. With `custom_generate` that method is ours: it hands the parts over, and
the scheduler decides which passes run and which sequences share them.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import takewhile
from typing import Any, NamedTuple

import torch
import transformers
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteriaList,
)

from langchain_llama_stop.engine.sequence import Sequence, Step
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
    # With `watermarking_config` and `renormalize_logits`, after those of sampling:
    transformers.WatermarkLogitsProcessor,
    transformers.SynthIDTextWatermarkLogitsProcessor,
    transformers.LogitNormalization,
)
"""The processors that transformers puts after all others: those of sampling, and what follows."""


_SIMPLE = (EosTokenCriteria, MaxLengthCriteria)
"""The criteria that `generate` always adds."""


class Prepared(NamedTuple):
    """What transformers' `generate` has put together for one sequence.

    Attributes:
        processors: All logits processors, in their order.
        criteria: All stopping criteria, EOS and length among them.
        config: The completed generation config.
        model_kwargs: What it passes to the first forward pass.
    """

    processors: Any
    criteria: Any
    config: GenerationConfig
    model_kwargs: dict[str, Any]


def prepared(
    model: Any,
    input_ids: torch.Tensor,
    logits_processor: Any,
    stopping_criteria: Any,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> Prepared:
    """The decoding method for `custom_generate`: decodes nothing, hands over what it is given."""
    return Prepared(logits_processor, stopping_criteria, generation_config, model_kwargs)


class Decoder:
    """Chooses the tokens of one sequence, greedily or by sampling.

    Attributes:
        repeatable: Whether the logits of a pass that has failed here can be taken again, because
            no token of it had been taken: processors and criteria are pure functions.
    """

    def __init__(
        self,
        sequence: Sequence,
        prepared: Prepared,
        *,
        device: torch.device,
        given_criteria: Iterable[Any],
        generator: torch.Generator | None,
        drafter: Drafter | None,
    ) -> None:
        """Starts before the first token.

        Args:
            sequence: The sequence; it is given the tokens.
            prepared: What `generate` has put together.
            device: Where processors and criteria expect the ids.
            given_criteria: Those among the criteria that `generate` was given.
            generator: The source of randomness; torch's global one if None.
            drafter: Drafts tokens; greedy decoding only.
        """
        processors, criteria, config = prepared.processors, prepared.criteria, prepared.config
        sampling = list(takewhile(lambda p: isinstance(p, WARPERS), reversed(processors)))
        count = len(processors) - len(sampling)
        self._processors: Any = LogitsProcessorList(processors[:count])
        self._warpers: Any = LogitsProcessorList(reversed(sampling))
        # EOS and the length are compared here; unless the user's own criteria took their places.
        given = set(map(id, given_criteria))
        simple = [c for c in criteria if isinstance(c, _SIMPLE) and id(c) not in given]
        self._criteria: Any = StoppingCriteriaList(c for c in criteria if c not in simple)
        ends_by_eos = any(isinstance(c, EosTokenCriteria) for c in simple)
        self._eos = frozenset(config.eos_token_id if ends_by_eos else ())
        self._do_sample, self._max_tokens = config.do_sample, sequence.max_new_tokens
        self._is_plain = not (len(processors) or self._do_sample)
        self._sequence, self._generator, self._drafter = sequence, generator, drafter
        self._draft: list[int] = []  # of the pass that runs
        self._accepted = 0  # draft tokens of the last pass that were right
        # Prompt and answer, (1, all of them); filled up to `_written` when somebody asks for it.
        length = len(sequence.ids) + sequence.max_new_tokens
        self._buffer = torch.empty(1, length, dtype=torch.long, device=device)
        self._written = 0
        self.repeatable = True

    @property
    def input_ids(self) -> torch.Tensor:
        """Prompt and answer so far, (1, length)."""
        prompt, generated = self._sequence.ids, self._sequence.generated
        new = generated[self._written - len(prompt) :] if self._written else prompt + generated
        if new:
            length = self._written + len(new)
            self._buffer[0, self._written : length] = torch.tensor(new)
            self._written = length
        return self._buffer[:, : self._written]

    def decode(self, logits: torch.Tensor, greedy: list[tuple[int, float]]) -> None:
        """Takes the logits after the newest token and after each draft token.

        Args:
            logits: The model's own, (1 or more, vocab), float32; not written to.
            greedy: The id and the value of the highest of each.
        """
        logits = logits.to(self._buffer.device)
        if len(greedy) == 1:
            self._draft = []  # a pass that others share has none
        for position, best in enumerate(greedy):
            self.repeatable = position == 0
            step = self._step(logits[position : position + 1], best)
            self.repeatable = False
            self._sequence.take(step)
            self._accepted = position
            if step.finished:
                return
            if position < len(self._draft) and step.token != self._draft[position]:
                break

    def new_draft(self) -> list[int]:
        """Drafts tokens for a pass that no other sequence shares; they may be wrong."""
        if self._drafter:
            drafted, room = len(self._draft), self._max_tokens - len(self._sequence.generated) - 1
            ids = self._drafter(self.input_ids, drafted, self._accepted, room)
            self._draft = ids[0].tolist()
        return self._draft

    def _step(self, own: torch.Tensor, greedy: tuple[int, float]) -> Step:
        """One more token, after the model's own logits, (1, vocab)."""
        # 1. Scores, (1, vocab), and 2. the choice
        if self._is_plain:
            scores, input_ids, (token, best) = own, None, greedy
            choosable = best > -torch.inf
        else:
            input_ids = self.input_ids
            scores = self._processors(input_ids, own.clone())
            warped = self._warpers(input_ids, scores.clone()) if self._warpers else scores
            best = None
            if self._do_sample:
                probabilities = torch.softmax(warped, dim=-1)
                choosable = not bool(probabilities[0, 0].isnan())
                if choosable:
                    drawn = torch.multinomial(probabilities, 1, generator=self._generator)
                    token, self.repeatable = int(drawn), False
            else:
                highest, index = warped.max(dim=-1)
                token, choosable = int(index), float(highest) > -torch.inf
                best = None if self._warpers else float(highest)
        if not choosable:
            raise self._nothing_to_choose(own, scores)
        # 3. Stop
        ends = token in self._eos or len(self._sequence.generated) + 1 >= self._max_tokens
        if self._criteria:
            length = self.input_ids.shape[1]
            self._buffer[0, length] = token
            ends = bool(self._criteria(self._buffer[:, : length + 1], None).any()) or ends
        return Step(token, ends, input_ids, own, scores, best, self._do_sample)

    def _nothing_to_choose(self, own: torch.Tensor, scores: torch.Tensor) -> FloatingPointError:
        """The error to raise if no token can be chosen."""
        length = self._sequence.length
        if bool(own.isfinite().all()) and not bool(scores.isnan().any()):
            return FloatingPointError(
                f"The settings leave no token to choose after {length} tokens: loosen "
                "`suppress_tokens`, `bad_words_ids`, `min_new_tokens`, `prefix_allowed_tokens_fn` "
                "and the like, or look at your own `logits_processor`."
            )
        whose = "The model's scores" if bool(own.isnan().any()) else "The scores"
        return FloatingPointError(
            f"{whose} for the next token are not numbers, or forbid every token, after {length} "
            "tokens: load the model with `dtype='float32'` or 'bfloat16' (float16 overflows in "
            "many models), and look at your own `logits_processor`."
        )
