"""The EOS reward as a transformers logits processor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from transformers import LogitsProcessor

from langchain_llama_stop.ending import boundaries
from langchain_llama_stop.ending.closing import close_text
from langchain_llama_stop.ending.closing_tokens import closing_tokens
from langchain_llama_stop.ending.reward import DECIDED, NONE, EosReward, Nudge, nudge
from langchain_llama_stop.tokens.detokenizer import detokenizer
from langchain_llama_stop.tokens.masks import last_position

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PLANNED_TOKENS = 8  # the longest end that is kept in reserve: fences, brackets and EOS
_SAMPLE = 4096  # scores looked at first; the frequent tokens of a vocabulary come early


class Row(NamedTuple):
    """A row of scores, and what is to be done to it.

    Attributes:
        place: Its index in the batch.
        processor: Whose options it has.
        nudge: What it needs at this step.
        left: Tokens that may still come, the next one included.
        ids: Gives the token ids of its answer so far.
    """

    place: int
    processor: EosTokenRewardLogitsProcessor
    nudge: Nudge
    left: int
    ids: Callable[[], list[int]]


class EosTokenRewardLogitsProcessor(LogitsProcessor):
    """Rewards EOS where an answer may end, the more the nearer its token budget is used up.

    A pure function of `input_ids`, `scores` and what it was built with: it keeps no state between
    calls, so that beam search, assisted decoding and reuse stay right. Outside of the landing zone
    it returns the scores it was given. Inside, a row is touched only where its text may end, in its
    last tokens, where the sentence is helped to close, and at the last token, which is EOS. Scores
    are lifted relative to the row's own maximum, so that a shift of all scores changes nothing; a
    score of -inf (`min_new_tokens`) stays -inf.

    Example:
        ```python
        inputs = tokenizer(prompt, return_tensors="pt")
        processor = EosTokenRewardLogitsProcessor(
            tokenizer, max_new_tokens=64, prompt_length=inputs["input_ids"].shape[1]
        )
        model.generate(**inputs, max_new_tokens=64, logits_processor=[processor])
        ```
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int,
        prompt_length: int,
        eos_token_id: int | Sequence[int] | None = None,
        reward: EosReward | None = None,
    ) -> None:
        """Builds the processor for one call of `generate`.

        Args:
            tokenizer: The model's tokenizer.
            max_new_tokens: The token budget of the call.
            prompt_length: Width of the (left-padded) prompt, in tokens.
            eos_token_id: One or several EOS ids; the tokenizer's if None. The one that the model
                itself scores highest is rewarded.
            reward: The options; the defaults if None.

        Raises:
            ValueError: If `max_new_tokens` is under 1, `prompt_length` under 0, or no EOS id known.
        """
        if max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` has to be 1 or more, but is {max_new_tokens!r}.")
        if prompt_length < 0:
            raise ValueError(f"`prompt_length` has to be 0 or more, but is {prompt_length!r}.")
        if eos_token_id is None:
            eos_token_id = tokenizer.eos_token_id
        eos_ids = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id or ())
        if not eos_ids:
            raise ValueError("`eos_token_id` has to be given: the tokenizer has no EOS token.")
        self.max_new_tokens = max_new_tokens
        self.prompt_length = prompt_length
        self.eos_token_ids = eos_ids
        self.reward = EosReward.parse(reward) or EosReward()
        self.zone = self.reward.zone(max_new_tokens)
        self._detokenizer = detokenizer(tokenizer)
        self._closers = closing_tokens(tokenizer)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Lifts the scores of the rows that may end, or have to.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).
            scores: Next-token scores, (batch, vocab).

        Returns:
            New scores, (batch, vocab); `scores` itself where no row is touched.
        """
        if input_ids.shape[1] - self.prompt_length < self.zone:
            return scores
        nudges = self.nudges(input_ids)
        if all(n is NONE for n in nudges):
            return scores
        return self._apply(input_ids, scores.clone(), nudges)

    def nudges(self, input_ids: torch.Tensor) -> list[Nudge]:
        """Says what each row needs at this step.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).

        Returns:
            One `Nudge` per row.
        """
        generated = input_ids.shape[1] - self.prompt_length
        if generated < self.zone:
            return [NONE] * input_ids.shape[0]
        newest = input_ids[:, -1].tolist() if generated else [None] * input_ids.shape[0]
        elsewhere = self._nudge(generated)  # where the newest token cannot end a text
        return [
            self._judged(input_ids[i, self.prompt_length :].tolist())
            if token is not None and self._closers.may_end_after(token)
            else elsewhere
            for i, token in enumerate(newest)
        ]

    def eos_source(
        self, input_ids: torch.Tensor, logits: torch.Tensor, sampled: bool
    ) -> Literal["model", "reward", "forced"]:
        """Says who ended an answer, once EOS has been chosen.

        Args:
            input_ids: Prompt and answer before EOS, (prompt_length + generated,).
            logits: The model's own scores for the next token, (vocab,).
            sampled: Whether the token was drawn; else it was the best one.

        Returns:
            "model" if the model would have chosen EOS by itself (when sampling: if at least half
            of EOS's probability is its own), "forced" if the answer could not end here, else
            "reward".
        """
        n = self.nudges(input_ids[None])[0]
        eos = self.eos_token_ids
        if sampled and (n.eos or n.decided):
            rewarded = lift_(logits[None].clone(), [0], eos, [n.eos], [n.decided])[0]
            own = bool(logits.softmax(-1)[eos].sum() >= rewarded.softmax(-1)[eos].sum() / 2)
        else:
            own = not (n.eos or n.decided) or int(logits.argmax()) in eos
        return "model" if own else "forced" if n.forced else "reward"

    def row(self, place: int, ids: list[int]) -> Row:
        """Says what one row needs, for batches whose rows differ in length and options.

        Args:
            place: Its index in the batch.
            ids: Token ids of its answer so far.

        Returns:
            What `lift_rows_` takes.
        """
        ends = bool(ids) and self._closers.may_end_after(ids[-1])
        found = self._judged(ids) if ends else self._nudge(len(ids))
        return Row(place, self, found, self.max_new_tokens - len(ids), lambda: ids)

    def _judged(self, ids: list[int]) -> Nudge:
        text = self._detokenizer.decode(ids)
        if not boundaries.may_end(text, self.reward.boundary):
            return self._nudge(len(ids))
        sentence_tokens = len(ids) / max(1, boundaries.count_sentences(text))
        return self._nudge(len(ids), may_end=True, sentence_tokens=sentence_tokens)

    def _nudge(
        self, generated: int, *, may_end: bool = False, sentence_tokens: float = 0.0
    ) -> Nudge:
        return nudge(
            self.reward,
            generated,
            self.max_new_tokens,
            may_end=may_end,
            sentence_tokens=sentence_tokens,
        )

    def _apply(
        self, input_ids: torch.Tensor, scores: torch.Tensor, nudges: Sequence[Nudge]
    ) -> torch.Tensor:
        left = self.max_new_tokens - (input_ids.shape[1] - self.prompt_length)
        rows = [
            Row(i, self, n, left, input_ids[i, self.prompt_length :].tolist)
            for i, n in enumerate(nudges)
            if n is not NONE
        ]
        return lift_rows_(scores, rows)

    def _close(self, row: Row, mark: int | None) -> tuple[int, bool] | None:
        """The token that helps an open sentence to its end, gently, or by plan when it is due.

        Args:
            row: The row.
            mark: The closing mark that is near to the row's best token, if any.

        Returns:
            A token, and whether it is decided; None to let the row be.
        """
        left = row.left
        if mark is None and left > _PLANNED_TOKENS:
            return None
        ids = row.ids()
        if mark is None and left > len(self._closers.ids(".")) + self._closers.debt(ids) + 1:
            return None  # whatever is owed, it is not due yet
        text = self._detokenizer.decode(ids)
        plan = self._closers.ids(close_text(text)) if left <= _PLANNED_TOKENS else []
        if plan and left <= len(plan) + 1:
            return plan[0], True
        if mark and boundaries.is_true_end(text + self._detokenizer.decode([mark])):
            return mark, False
        return None


class InPlaceEosReward(EosTokenRewardLogitsProcessor):
    """The same for a loop that owns its scores: copying them costs more than all the rest.

    A class, for transformers reads the signature of each processor's `__call__` at each step, and
    that of a bound method takes it ten times as long.
    """

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Lifts the scores of the rows that may end, or have to, in place.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).
            scores: Next-token scores, (batch, vocab).

        Returns:
            `scores`.
        """
        if input_ids.shape[1] - self.prompt_length < self.zone:
            return scores
        return self._apply(input_ids, scores, self.nudges(input_ids))


class ThinkingReward(InPlaceEosReward):
    """The same for the end of a reasoning model's thinking, which has a budget of its own.

    Rows that do not think, or have thought, are not touched.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        thinking_tokens: int,
        prompt_length: int,
        thinking_ids: tuple[int, int],
    ) -> None:
        """Builds the processor for one call of `generate`.

        Args:
            tokenizer: The model's tokenizer.
            thinking_tokens: Tokens that the thinking may have, its end included.
            prompt_length: Width of the (left-padded) prompt, in tokens.
            thinking_ids: The ids of `<think>` and `</think>`.
        """
        super().__init__(
            tokenizer,
            max_new_tokens=thinking_tokens,
            prompt_length=prompt_length,
            eos_token_id=thinking_ids[1],
        )
        self.thinking_ids = thinking_ids

    def nudges(self, input_ids: torch.Tensor) -> list[Nudge]:
        """Says what each row needs at this step.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).

        Returns:
            One `Nudge` per row.
        """
        if input_ids.shape[1] - self.prompt_length >= self.max_new_tokens:
            return [NONE] * input_ids.shape[0]
        begun, ended = (last_position(input_ids, token) for token in self.thinking_ids)  # (batch,)
        thinks = (begun > ended).tolist()
        nudges = super().nudges(input_ids)
        return [n if t else NONE for n, t in zip(nudges, thinks, strict=True)]


def lift_rows_(scores: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
    """Does to rows what they need, in place.

    Args:
        scores: Next-token scores, (batch, vocab).
        rows: The rows that need something, of processors for one tokenizer.

    Returns:
        `scores`.
    """
    eos: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        if row.nudge.eos or row.nudge.decided:
            eos.setdefault(tuple(row.processor.eos_token_ids), []).append(row)
    for ids, group in eos.items():
        nudges = [row.nudge for row in group]
        nats, decided = [n.eos for n in nudges], [n.decided for n in nudges]
        lift_(scores, [row.place for row in group], list(ids), nats, decided)
    if open_ := [row for row in rows if row.nudge.close and row.processor._closers.marks]:
        indices, nats = [row.place for row in open_], [row.nudge.close for row in open_]
        marks = _near_marks(scores, indices, nats, open_[0].processor._closers.marks)
        for row, mark in zip(open_, marks, strict=True):
            if found := row.processor._close(row, mark):
                token, decided_ = found
                lift_(scores, [row.place], [token], [row.nudge.close], [decided_])
    return scores


def lift_(
    scores: torch.Tensor,
    rows: list[int],
    ids: list[int],
    nats: Sequence[float],
    decided: Sequence[bool],
) -> torch.Tensor:
    """Raises, in some rows, the best of some tokens; in place.

    Only the best one: raising all of them would add their probabilities up.

    Args:
        scores: Next-token scores, (batch, vocab).
        rows: Indices of the rows.
        ids: The tokens, EOS ids for instance.
        nats: What is added to the best one's score, per row of `rows`.
        decided: Whether it is lifted above all other tokens instead, per row of `rows`.

    Returns:
        `scores`.
    """
    row = torch.tensor(rows, device=scores.device)  # (rows,)
    token = torch.tensor(ids, device=scores.device)  # (ids,)
    if len(ids) > 1:
        token = token[scores[row[:, None], token].argmax(dim=1)]  # (rows,): each row's best
    score = scores[row, token]
    new = score + torch.tensor(nats, dtype=scores.dtype, device=scores.device)
    if any(decided):
        # Picking rows by a tensor would copy them; many are cheaper reduced with the whole batch.
        few = 4 * len(rows) < scores.shape[0]
        best = torch.stack([scores[i].amax() for i in rows]) if few else scores.amax(dim=1)[row]
        best = best + DECIDED
        new = torch.where(
            torch.tensor(decided, device=scores.device), torch.maximum(score, best), new
        )
    scores[row, token] = torch.where(score.isneginf(), score, new)  # forbidden stays forbidden
    return scores


def _near_marks(
    scores: torch.Tensor, rows: list[int], nats: list[float], known: list[int]
) -> Iterator[int | None]:
    """For each row, the best of the known marks if it lies under the best token by its nats."""
    # Both indices at once: picking whole rows first would copy them.
    index = torch.tensor(rows, device=scores.device)[:, None]
    marks, which = scores[index, torch.tensor(known, device=scores.device)].max(dim=1)
    # A part of the vocabulary rules most rows out: the best of all is not lower.
    reach = marks + torch.tensor(nats, dtype=scores.dtype, device=scores.device)
    maybe = (scores[:, :_SAMPLE].amax(dim=1)[rows] <= reach).tolist()
    for i, row in enumerate(rows):
        near = maybe[i] and scores[row].amax() <= reach[i]
        yield known[int(which[i])] if near else None
