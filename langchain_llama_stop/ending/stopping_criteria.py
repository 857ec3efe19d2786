"""Stop strings and stop token ids as a transformers stopping criterion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria

from langchain_llama_stop.ending.stop_strings import (
    match_token_ids,
    parse_stop,
    parse_stop_token_ids,
)
from langchain_llama_stop.tokens.detokenizer import REPLACEMENT, Detokenizer, detokenizer
from langchain_llama_stop.tokens.masks import after_prompt, last_position

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class StopSequenceCriteria(StoppingCriteria):
    r"""Stops each row whose generated text holds a stop string, or ends with stop token ids.

    It compares text, not ids: a string can be tokenized in many ways, depending on the text before
    it. The prompt cannot trigger a stop. A stop that names a special token (`"<|im_end|>"`) is
    found where the model writes that token.

    It is a pure function of `input_ids` and decodes only the end of the answer, so it has to be
    called after every token, as `generate` does.

    `generate` returns the stop along with the answer: trim it with `find_stop`.

    Example:
        ```python
        stops = ["\nObservation:"]
        criteria = StopSequenceCriteria(tokenizer, stop=stops, prompt_length=prompt_length)
        rows = [inputs["input_ids"][0], model.generate(**inputs, stopping_criteria=[criteria])[0]]
        prompt, whole = tokenizer.batch_decode(rows, skip_special_tokens=True)
        text = whole[len(prompt) :]  # decoded alone, it may lose its first space
        match = find_stop(text, stops)
        answer = text[: match.start] if match else text
        ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] | Sequence[Sequence[int]] = (),
        prompt_length: int,
    ) -> None:
        """Builds the criterion for one call of `generate`.

        Args:
            tokenizer: The model's tokenizer.
            stop: Stop strings.
            stop_token_ids: Stop ids, or stop sequences of ids.
            prompt_length: Width of the (left-padded) prompt, in tokens.

        Raises:
            ValueError: If a stop string or a sequence is empty, or `prompt_length` is under 0.
        """
        if prompt_length < 0:
            raise ValueError(f"`prompt_length` has to be 0 or more, but is {prompt_length!r}.")
        self.stop = parse_stop(stop)
        self.stop_token_ids = parse_stop_token_ids(stop_token_ids)
        self.prompt_length = prompt_length
        self._detokenizer = detokenizer(tokenizer)
        self._special_stop = self._detokenizer.naming_special_tokens(self.stop)
        self._longest = max(map(len, self.stop), default=0)

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Tells which rows have to stop.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).
            scores: Not used.
            **kwargs: Not used.

        Returns:
            True for each row that has to stop, (batch,), bool.
        """
        return torch.tensor(
            [self._stopped(row) for row in input_ids], dtype=torch.bool, device=input_ids.device
        )

    def _stopped(self, row: torch.Tensor) -> bool:
        """Whether the newest of a row's generated ids has completed a stop."""
        ids = row[self.prompt_length :].tolist()
        if not ids:
            return False
        if self.stop_token_ids and match_token_ids(ids, self.stop_token_ids):
            return True
        if not self.stop:
            return False
        detokenizer = after_prompt(self._detokenizer, row, self.prompt_length)
        # The newest token's characters, and those before it with which a stop may begin.
        newest = len(detokenizer.decode([ids[-1]], special=True))
        tail = detokenizer.tail(ids, self._longest + newest)
        if _holds_stop(detokenizer, tail, ids, self.stop):
            return True
        if not self._special_stop or detokenizer.special_ids.isdisjoint(ids):
            return False
        tail = detokenizer.tail(ids, self._longest + newest, special=True)
        return _holds_stop(detokenizer, tail, ids, self._special_stop, special=True)


def _holds_stop(
    detokenizer: Detokenizer,
    tail: str,
    ids: Sequence[int],
    stops: Sequence[str],
    *,
    special: bool = False,
) -> bool:
    """Whether the end of a row's text holds a stop, in which half a character is no U+FFFD."""
    found = [stop for stop in stops if stop in tail]
    if found and all(REPLACEMENT in stop for stop in found):
        whole = tail[: detokenizer.settled(ids, tail, special=special)]
        return any(stop in whole for stop in found)
    return bool(found)


class AnswerBudget(StoppingCriteria):
    """Stops each row whose answer has used its budget; its thinking before the answer is free.

    A pure function of `input_ids`, per row. An answer begins after `</think>`, else at once.
    """

    def __init__(
        self, *, max_new_tokens: int, prompt_length: int, thinking_ids: tuple[int, int]
    ) -> None:
        """Builds the criterion for one call of `generate`.

        Args:
            max_new_tokens: The token budget of an answer.
            prompt_length: Width of the (left-padded) prompt, in tokens.
            thinking_ids: The ids of `<think>` and `</think>`.
        """
        self.max_new_tokens, self.prompt_length = max_new_tokens, prompt_length
        self.thinking_ids = thinking_ids

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Tells which answers have used their budget, (batch,), bool."""
        opened, closed = (last_position(input_ids, id_) for id_ in self.thinking_ids)  # (batch,)
        answer_start = closed.clamp(min=self.prompt_length)
        used = input_ids.shape[1] - answer_start >= self.max_new_tokens
        return (opened <= closed) & used
