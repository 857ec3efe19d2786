"""One prompt and its answer: the tokens so far, the budget, the text, and how it ended."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from langchain_llama_stop.ending import boundaries
from langchain_llama_stop.ending.landing import Landing
from langchain_llama_stop.ending.logits_processor import InPlaceEosReward
from langchain_llama_stop.ending.stop_strings import find_stop, match_token_ids
from langchain_llama_stop.engine.config import (
    check_prompt_ids,
    pipeline_callables,
    thinking_ids,
    token_budget,
)
from langchain_llama_stop.engine.hint import add_hint
from langchain_llama_stop.engine.refusals import encode_settings
from langchain_llama_stop.engine.streaming import settled_text
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.detokenizer import Detokenizer, TextBuilder, detokenizer
from langchain_llama_stop.tokens.encoding import prompt_ids, tokenizer_lock

if TYPE_CHECKING:
    import torch


EosSource = Literal["model", "reward", "closed", "forced"]
"""Who ended an answer; "closed": landing put in marks that the model had not written."""


@dataclass(frozen=True, slots=True)
class GenerationResponse:
    """One answer.

    Attributes:
        text: The answer, trimmed at its stop; after the prompt with `return_full_text`.
        token_ids: The answer's ids, EOS and stop included; an answer that ends truly with the last
            token of its budget has no EOS there.
        prompt_tokens: Tokens of the prompt.
        finish_reason: "stop", or "length" for an answer that its budget (or `max_time`) cut.
        stop_reason: None for EOS; else the stop string or the token ids that matched.
        eos_source: Who ended the answer: "model", "reward", "closed" (by marks that were put in),
            "forced", or None without EOS.
        logprobs: With `logprobs`, one dict per id of `token_ids`: `token` (its text), `logprob`
            (natural; None for a token that landing has set), `top_logprobs` (the likeliest tokens,
            each with `token` and `logprob`).
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: Literal["stop", "length"]
    stop_reason: str | list[int] | None
    eos_source: EosSource | None
    logprobs: list[dict[str, Any]] | None = None


Prompt = str | list[int] | tuple[int, ...]
"""A text, or the ids of one."""


class Step(NamedTuple):
    """One more token of a sequence.

    Attributes:
        token: Its id.
        finished: Whether the sequence is finished now.
        input_ids: Prompt and answer before it, (1, length); None without any processor.
        logits: The model's own logits, (1, vocab), float32.
        scores: The logits after all processors but those of sampling (temperature and the like):
            -inf for tokens that are forbidden, (1, vocab).
        best: The highest of the scores; None where sampling did not need it.
        sampled: Whether the token was drawn.
    """

    token: int
    finished: bool
    input_ids: torch.Tensor | None
    logits: torch.Tensor
    scores: torch.Tensor
    best: float | None
    sampled: bool


@dataclass(eq=False)
class Sequence:
    """One prompt and its answer, which grows token by token."""

    pipeline: Any
    prompt: Prompt
    options: GenerationOptions
    ids: list[int] = field(init=False)  # of the prompt
    budget: int = field(init=False)  # tokens of the answer
    max_new_tokens: int = field(init=False)  # the budget, and the tokens of thinking before it
    echo: str = ""  # the prompt's text, where it is returned before the answer
    generated: list[int] = field(default_factory=list)  # as the model has decoded it
    landed: list[int] | None = None  # the answer's ids, where they are not `generated`
    streamable: str = ""  # streams only: the text that may be given out
    safe_length: int | None = None  # streams only: characters that landing cannot cut into
    finished: bool = False
    eos_source: EosSource | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)  # of `generated`
    builder: TextBuilder | None = None  # streams only: other answers are decoded once
    eos: tuple[int, ...] = ()
    landing: Landing | None = None  # finds the best end of an answer that its budget cuts
    reward: InPlaceEosReward | None = None  # or: the EOS reward that acts at each step

    def __post_init__(self) -> None:
        """Encodes the prompt and finds the budget."""
        tokenizer, options, prompt = self.pipeline.tokenizer, self.options, self.prompt
        with tokenizer_lock(tokenizer):
            settings = encode_settings(self.pipeline)
            if options.split_special_tokens:
                settings["split_special_tokens"] = True
            if isinstance(prompt, str):
                self.ids = prompt_ids(tokenizer, prompt, **settings)
            else:
                self.ids = list(prompt)
            if options.return_full_text:
                decode = detokenizer(tokenizer).decode
                self.echo = prompt if isinstance(prompt, str) else decode(self.ids)
            if options.answer_hint and isinstance(prompt, str):
                first = token_budget(self.pipeline, options, len(self.ids), first=True)
                hint = options.hint(first)
                self.ids = prompt_ids(tokenizer, add_hint(tokenizer, prompt, hint), **settings)
            check_prompt_ids(self.pipeline, self.ids)
            self.detokenizer: Detokenizer = detokenizer(tokenizer).after(self.ids)
            thinking = options.thinking_tokens
            self.budget = token_budget(self.pipeline, options, len(self.ids) + thinking)
            self.max_new_tokens = self.budget + thinking
        self._answer_start, self._thinking, self._thinking_ids = 0, False, (-1, -1)
        if thinking:
            self._thinking_ids = thinking_ids(tokenizer)
            opened, closed = (
                max((n for n, i in enumerate(self.ids) if i == token), default=-1)
                for token in self._thinking_ids
            )
            self._thinking = opened > closed

    @property
    def length(self) -> int:
        """Tokens of prompt and answer so far."""
        return len(self.ids) + len(self.generated)

    def take(self, step: Step) -> None:
        """Takes the next token; an answer that its budget cuts with it lands."""
        if self.landing and (ids := self.answer_ids(self.landing.first)) is not None:
            self.landing.record(ids, step.scores, step.best)
            if self.builder:  # a stream holds back what landing may cut
                kept = self.landing.safe_tokens(ids)
                safe = self.generated[: self._answer_start + kept]
                text = settled_text(self) if kept == len(ids) else self.detokenizer.decode(safe)
                self.safe_length = max(self.safe_length or 0, len(text))
        if step.finished and step.token in self.eos:
            self.eos_source = "model"
            if self.reward and step.input_ids is not None:
                before, own = step.input_ids[0], step.logits[0]
                self.eos_source = self.reward.eos_source(before, own, step.sampled)
        if self.options.logprobs:
            self._record_logprob(step.token, step.logits[0].log_softmax(dim=-1))
        self.generated.append(step.token)
        self.finished = step.finished
        if step.token in self._thinking_ids:
            self._thinking = step.token == self._thinking_ids[0]
            self._answer_start = len(self.generated)
        if self.hit_limit and self.landing:
            self._land(self.landing)
        if self.builder and not self.finished:
            self.builder.push(step.token)
            self.streamable = settled_text(self)[: self.safe_length]

    def _record_logprob(self, token: int, logprobs: torch.Tensor) -> None:
        """Records the log-probability of the next token, out of those of all tokens, (vocab,)."""
        count = self.options.top_logprobs or 0
        tokens = [token, *logprobs.topk(count).indices.tolist()]
        first, *top = (
            {"token": self.detokenizer.decode([i], special=True), "logprob": float(logprobs[i])}
            for i in tokens
        )
        self.logprobs.append({**first, "top_logprobs": top})

    def _answer_logprobs(self) -> list[dict[str, Any]] | None:
        """The log-probabilities of the answer, whose end may be other tokens than `generated`."""
        if not self.options.logprobs:
            return None
        pairs = zip(self.token_ids, self.generated, strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return [
            *self.logprobs[:kept],
            *(
                {
                    "token": self.detokenizer.decode([i], special=True),
                    "logprob": None,
                    "top_logprobs": [],
                }
                for i in self.token_ids[kept:]
            ),
        ]

    def answer_ids(self, at_least: int) -> list[int] | None:
        """The ids of a running answer, without the thinking; None if fewer than `at_least`."""
        if self.finished or self._thinking or len(self.generated) - self._answer_start < at_least:
            return None
        return self.generated[self._answer_start :]

    @property
    def hit_limit(self) -> bool:
        """Whether the budget has cut the answer."""
        count = len(self.generated)
        full = count - self._answer_start == self.budget or count == self.max_new_tokens
        return self.finished and not self.eos_source and full

    def _land(self, landing: Landing) -> None:
        """Ends an answer that its budget has cut."""
        assert self.options.eos_reward is not None
        if self._thinking or self.trimmed()[1] is not None:
            return
        start = self._answer_start
        thought, answer = self.generated[:start], self.generated[start:]
        if landing.is_whole(answer):
            self.eos_source = "reward"
            return
        if ids := landing.end(answer):
            self.landed = thought + ids
            self.eos_source = "reward" if ids[:-1] == answer[: len(ids) - 1] else "closed"
        elif self.options.eos_reward.force_eos and (ids := landing.force_eos(answer)):
            self.landed, self.eos_source = thought + ids, "forced"
        else:
            return
        # The tokens that close the answer may complete a stop, which then ends it instead.
        sequences = self.options.stop_token_ids
        for count in range(len(thought) + 1, len(self.landed)):
            if match_token_ids(self.landed[:count], sequences):
                self.landed, self.eos_source = self.landed[:count], None
                return
        if self.trimmed()[1] is not None:
            self.landed, self.eos_source = self.landed[:-1], None

    @property
    def token_ids(self) -> list[int]:
        """The answer's ids, EOS and stop included."""
        return self.generated if self.landed is None else self.landed

    def trimmed(self) -> tuple[str, str | list[int] | None]:
        """The answer's text, and the stop that it was trimmed at."""
        ids = self.token_ids
        if self.eos_source and ids[-1] in self.eos:  # not after an answer that fills its budget
            ids = ids[:-1]
        text, reason = self.detokenizer.decode(ids), None
        if match := find_stop(text, self.options.stop):
            text, reason = text[: match.start], match.stop
        if self.special_stops(ids):
            full = self.detokenizer.decode(ids, special=True)
            if match := find_stop(full, self.special_stops(ids)):
                before = self.visible_text(ids, match.start)
                if reason is None or len(before) <= len(text):
                    text, reason = before, match.stop
        if reason is None and (found := match_token_ids(ids, self.options.stop_token_ids)):
            return self.detokenizer.decode(ids[: -len(found)]), list(found)
        return text, reason

    def last_end(self, text: str, growing: bool = False) -> int:
        """The position after the last sentence of the answer in its text; 0 without one."""
        if self._thinking:
            return 0
        thought = text.rfind("</think>") + len("</think>") if "</think>" in text else 0
        answer = text[thought:]
        end = boundaries.settled_end(answer) if growing else boundaries.last_end(answer, final=True)
        return thought + end if end else 0

    def special_stops(self, ids: list[int]) -> tuple[str, ...]:
        """The stops to look for in the text with special tokens, if `ids` hold any."""
        if not self.options.stop or self.detokenizer.special_ids.isdisjoint(ids):
            return ()
        return self.detokenizer.naming_special_tokens(self.options.stop)

    def visible_text(self, ids: list[int], length: int) -> str:
        """The first `length` characters of the text with special tokens, without these tokens."""
        full = self.detokenizer.decode(ids, special=True)

        def size(count: int) -> int:
            return len(self.detokenizer.decode(ids[:count], special=True))

        count = bisect_right(range(len(ids) + 1), length, key=size) - 1
        text = self.detokenizer.decode(ids[:count])
        if count < len(ids) and ids[count] not in self.detokenizer.special_ids:
            text += full[size(count) : length]
        return text

    def response(self) -> GenerationResponse:
        """The finished answer."""
        text, stop_reason = self.trimmed()
        # Without EOS, a stop or the user's own criteria, a limit has cut it: of tokens or of time.
        criteria = self.options.stopping_criteria or pipeline_callables(self.pipeline)[1]
        stopped = criteria and self.finished and not self.hit_limit
        cut = not (self.eos_source or stop_reason is not None or stopped)
        if cut and self.options.on_length == "trim":
            text = text[: self.last_end(text)] or text  # without any end, nothing to trim to
        return GenerationResponse(
            text=self.echo + text,
            token_ids=tuple(self.token_ids),
            prompt_tokens=len(self.ids),
            finish_reason="length" if cut else "stop",
            stop_reason=stop_reason,
            eos_source=self.eos_source,
            logprobs=self._answer_logprobs(),
        )
