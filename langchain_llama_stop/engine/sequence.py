"""One prompt on its way to an answer: its tokens, its budget, its text, its end."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal

from langchain_llama_stop.ending.boundaries import last_end
from langchain_llama_stop.ending.landing import Landing
from langchain_llama_stop.ending.stop_strings import (
    find_stop,
    held_back,
    held_back_ids,
    match_token_ids,
)
from langchain_llama_stop.engine.config import pipeline_callables, thinking_ids, token_budget
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.detokenizer import Detokenizer, TextBuilder, detokenizer
from langchain_llama_stop.tokens.encoding import tokenizer_lock

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class GenerationResponse:
    """One answer.

    Attributes:
        text: The answer, trimmed at its stop; with the prompt before it if that was asked for.
        token_ids: The answer's ids, EOS and stop included.
        prompt_tokens: Tokens of the prompt.
        finish_reason: "stop", or "length" for an answer that its budget (or `max_time`) cut.
        stop_reason: None for EOS; else the stop string or the token ids that matched.
        eos_source: Who ended the answer: "model", "reward", "forced", or None without EOS.
        logprobs: One dict per id of `token_ids`, if asked for: `token` (its text), `logprob`
            (natural; None for one that landing has set), `top_logprobs` (the likeliest, each with
            `token` and `logprob`).
    """

    text: str
    token_ids: tuple[int, ...]
    prompt_tokens: int
    finish_reason: Literal["stop", "length"]
    stop_reason: str | list[int] | None
    eos_source: Literal["model", "reward", "forced"] | None
    logprobs: list[dict[str, Any]] | None = None


Prompt = str | Sequence[int]
"""A text, or the ids of one."""


@dataclass(eq=False)
class Row:
    """One prompt and what becomes of it."""

    pipeline: Any
    prompt: Prompt
    options: GenerationOptions
    ids: list[int] = field(init=False)  # of the prompt
    budget: int = field(init=False)  # of the answer
    limit: int = field(init=False)  # of all that is decoded: what is thought before it too
    prefix: str = ""  # what stands before the answer in the text
    generated: list[int] = field(default_factory=list)  # as the model has decoded it
    landed: list[int] | None = None  # the answer's ids, where they are not all of these
    ready: str = ""  # of a stream: what may be given away
    released: str | None = None  # of a stream in the landing zone: what no end can take back
    finished: bool = False
    eos_source: Literal["model", "reward", "forced"] | None = None
    logprobs: list[dict[str, Any]] = field(default_factory=list)  # of `generated`, if asked for
    builder: TextBuilder | None = None  # streams only: what is not streamed is decoded once

    def __post_init__(self) -> None:
        """Encodes the prompt and finds the budget."""
        if not self.prompt:
            raise ValueError("The prompt has to hold at least one character, but is empty.")
        tokenizer, options, prompt = self.pipeline.tokenizer, self.options, self.prompt
        self.detokenizer: Detokenizer = detokenizer(tokenizer)
        with tokenizer_lock(tokenizer):
            settings = {"split_special_tokens": True} if options.split_special_tokens else {}
            if isinstance(prompt, str):
                self.ids = token_ids(tokenizer, prompt, **settings)
            else:
                self.ids = list(prompt)
            if options.return_full_text:
                decode = self.detokenizer.decode
                self.prefix = prompt if isinstance(prompt, str) else decode(self.ids)
            if options.answer_hint and isinstance(prompt, str):
                first = token_budget(self.pipeline, options, len(self.ids), first=True)
                hint = options.hint(first)
                self.ids = token_ids(tokenizer, add_hint(tokenizer, prompt, hint), **settings)
            thinking = options.thinking_tokens
            self.budget = token_budget(self.pipeline, options, len(self.ids) + thinking)
            self.limit = self.budget + thinking
        self._begin, self._thinks, self._thinking_ids = 0, False, (-1, -1)
        if thinking:
            self._thinking_ids = thinking_ids(tokenizer)
            begun, ended = (
                max((n for n, i in enumerate(self.ids) if i == token), default=-1)
                for token in self._thinking_ids
            )
            self._thinks = begun > ended

    def accept(self, token: int, finished: bool) -> None:
        """Takes the next token."""
        self.generated.append(token)
        self.finished = finished
        if token in self._thinking_ids:
            self._thinks = token == self._thinking_ids[0]
            self._begin = len(self.generated)
        if self.builder and not finished:
            self.builder.push(token)

    def rate(self, token: int, logprobs: torch.Tensor) -> None:
        """Notes how likely the next token is; `logprobs` are those of the vocabulary, (vocab,)."""
        count = self.options.top_logprobs or 0
        tokens = [token, *logprobs.topk(count).indices.tolist()]
        first, *top = (
            {"token": self.detokenizer.decode([i], special=True), "logprob": float(logprobs[i])}
            for i in tokens
        )
        self.logprobs.append({**first, "top_logprobs": top})

    def _rated(self) -> list[dict[str, Any]] | None:
        """The log-probabilities of the answer, which may have been ended before its last token."""
        if not self.options.logprobs:
            return None
        pairs = zip(self.answer, self.generated, strict=False)
        kept = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return [
            *self.logprobs[:kept],
            *(
                {
                    "token": self.detokenizer.decode([i], special=True),
                    "logprob": None,
                    "top_logprobs": [],
                }
                for i in self.answer[kept:]
            ),
        ]

    def said(self, least: int) -> list[int] | None:
        """The ids of the answer so far, without the thinking; None under `least` of them."""
        going = not self.finished and not self._thinks
        return (
            self.generated[self._begin :]
            if going and len(self.generated) - self._begin >= least
            else None
        )

    @property
    def cut(self) -> bool:
        """Whether the budget has cut the answer."""
        full = len(self.generated) - self._begin == self.budget or len(self.generated) == self.limit
        return self.finished and not self.eos_source and full

    def land(self, landing: Landing, index: int) -> None:
        """Ends an answer that its budget has cut.

        Args:
            landing: The search for its end.
            index: Its row there.
        """
        assert self.options.eos_reward is not None
        if self._thinks or self.trimmed()[1] is not None:
            return
        thought, said = self.generated[: self._begin], self.generated[self._begin :]
        if ids := landing.end(index, said):
            self.landed, self.eos_source = thought + ids, "reward"
        elif self.options.eos_reward.force_eos and (ids := landing.force_eos(index, said)):
            self.landed, self.eos_source = thought + ids, "forced"
        else:
            return
        # What closes the answer may complete a stop, which then ends it instead.
        sequences = self.options.stop_token_ids
        for count in range(len(thought) + 1, len(self.landed)):
            if match_token_ids(self.landed[:count], sequences):
                self.landed, self.eos_source = self.landed[:count], None
                return
        if self.trimmed()[1] is not None:
            self.landed, self.eos_source = self.landed[:-1], None

    @property
    def answer(self) -> list[int]:
        """The answer's ids."""
        return self.generated if self.landed is None else self.landed

    def trimmed(self) -> tuple[str, str | list[int] | None]:
        """The answer's text, and the stop it was trimmed at."""
        ids = self.answer[:-1] if self.eos_source else self.answer
        text, reason = self.detokenizer.decode(ids), None
        if match := find_stop(text, self.options.stop):
            text, reason = text[: match.start], match.stop
        if self._special_stops(ids):
            full = self.detokenizer.decode(ids, special=True)
            if match := find_stop(full, self._special_stops(ids)):
                before = self._visible(ids, match.start)
                if reason is None or len(before) <= len(text):
                    text, reason = before, match.stop
        if reason is None and (found := match_token_ids(ids, self.options.stop_token_ids)):
            return self.detokenizer.decode(ids[: -len(found)]), list(found)
        return text, reason

    def emittable(self) -> str:
        """The part of a growing answer that no further token can take back."""
        return self.settled() if self.released is None else self.released

    def settled(self) -> str:
        """The same while the answer may not end behind it: before the landing zone."""
        assert self.builder is not None
        ids, stops, sequences = self.generated, self.options.stop, self.options.stop_token_ids
        # What is not settled yet may become any character: a stop may go on behind what is.
        text = self.builder.text[: self.builder.settled]
        if stops:
            text = text[: len(text) - held_back(text, stops)]
        if special_stops := self._special_stops(ids):
            full = self.detokenizer.decode(ids, special=True)
            full = full[: self.detokenizer.settled(ids, full, special=True)]
            text = text[: len(self._visible(ids, len(full) - held_back(full, special_stops)))]
        if held := held_back_ids(ids, sequences) if sequences else 0:
            text = text[: len(self.detokenizer.decode(ids[:-held]))]
        return text[: self._last_end(text)] if self.options.on_length == "trim" else text

    def _last_end(self, text: str) -> int:
        """Where the last true end of the answer is in its text; 0 without one."""
        if self._thinks:
            return 0
        thought = text.rfind("</think>") + len("</think>") if "</think>" in text else 0
        end = last_end(text[thought:])
        return thought + end if end else 0

    def _special_stops(self, ids: Sequence[int]) -> tuple[str, ...]:
        """The stops to be looked for in the text with special tokens, if `ids` hold any."""
        if not self.options.stop or self.detokenizer.special_ids.isdisjoint(ids):
            return ()
        return self.detokenizer.naming_special_tokens(self.options.stop)

    def _visible(self, ids: Sequence[int], length: int) -> str:
        """What the first `length` characters of the text with special tokens are without them."""
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
        # Without EOS, a stop or criteria of the user's, a limit has cut it: of tokens or of time.
        criteria = self.options.stopping_criteria or pipeline_callables(self.pipeline)[1]
        stopped = criteria and self.finished and not self.cut
        cut = not (self.eos_source or stop_reason is not None or stopped)
        if cut and self.options.on_length == "trim":
            text = text[: self._last_end(text)] or text  # without any end, nothing to trim to
        return GenerationResponse(
            text=self.prefix + text,
            token_ids=tuple(self.answer),
            prompt_tokens=len(self.ids),
            finish_reason="length" if cut else "stop",
            stop_reason=stop_reason,
            eos_source=self.eos_source,
            logprobs=self._rated(),
        )


def token_ids(tokenizer: Any, text: str, **settings: Any) -> list[int]:
    """Encodes a prompt, with one BOS where the tokenizer adds one and the text has it already.

    Args:
        tokenizer: The model's tokenizer.
        text: The prompt.
        **settings: For the tokenizer.

    Returns:
        Its ids, as the model gets them.
    """
    ids: list[int] = tokenizer(text, **settings)["input_ids"]
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        return ids[1:]
    return ids


def add_hint(tokenizer: Any, prompt: str, hint: str) -> str:
    """Puts the answer hint into a prompt: at the end of the user's last turn, or before the text.

    Args:
        tokenizer: Its chat template tells how a user's turn ends.
        prompt: The prompt, with or without a chat template around it.
        hint: The sentence that asks for brevity.

    Returns:
        The prompt with the hint.
    """
    endings = ["[/INST]"]
    if tokenizer.chat_template:
        question = "\x00"
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
        )
        endings.insert(0, rendered.partition(question)[2])
    for ending in endings:
        body = prompt.rstrip()
        if ending.strip() and body.endswith(ending.strip()):
            cut = body.rindex(ending.strip())
            turn = prompt[:cut]
            space = turn[len(turn.rstrip()) :]
            return f"{turn.rstrip()}\n\n{hint}{space}{prompt[cut:]}"
    return f"{hint}\n\n{prompt}"
