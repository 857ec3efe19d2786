"""The EOS reward as a transformers logits processor."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from transformers import LogitsProcessor

from langchain_llama_stop.ending import boundaries
from langchain_llama_stop.ending.answer import Answer
from langchain_llama_stop.ending.closing import can_close, close_text, closes_block
from langchain_llama_stop.ending.closing_tokens import closing_tokens
from langchain_llama_stop.ending.reward import (
    DECIDED,
    NONE,
    PLANNED_TOKENS,
    EosReward,
    Nudge,
    nudge,
)
from langchain_llama_stop.tokens.detokenizer import detokenizer
from langchain_llama_stop.tokens.masks import after_prompt, last_position

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Scores compared first, as the frequent tokens of a vocabulary come early: `make bench-overhead`.
_SAMPLE = 4096


class RowEdit(NamedTuple):
    """How the scores of one row have to be changed."""

    batch_index: int
    processor: EosTokenRewardLogitsProcessor  # whose options apply
    nudge: Nudge
    left: int  # tokens that may still come, the next one included
    answer: Callable[[], Answer]  # returns the answer so far


class EosTokenRewardLogitsProcessor(LogitsProcessor):
    """Rewards EOS where an answer may end, and more so near the end of its token budget.

    A pure function of `input_ids`, `scores` and its arguments, so beam search, assisted decoding
    and reuse stay correct: what it keeps of a row's text is used again only for the same tokens.
    Outside the landing zone it returns the scores as they are. Inside, it changes a row only where
    its text may end, in its last tokens, where the sentence is helped to close, and at the last
    token, which is EOS. Scores are lifted relative to the maximum of the row, so a shift of all
    scores changes nothing. A score of -inf (`min_new_tokens`) stays -inf.

    Example:
        ```python
        inputs = tokenizer(prompt, return_tensors="pt")
        processor = EosTokenRewardLogitsProcessor(
            tokenizer, max_new_tokens=64, prompt_length=inputs["input_ids"].shape[1]
        )
        model.generate(**inputs, max_new_tokens=64, logits_processor=[processor])
        ```
    """

    _in_place: ClassVar[bool] = False

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
            eos_token_id: One or several EOS ids; the tokenizer's if None. The one with the highest
                score is rewarded.
            reward: The options; the defaults if None.

        Raises:
            ValueError: If `max_new_tokens` is under 1, `prompt_length` is under 0, or there is no
                EOS id.
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
        self._closing_tokens = closing_tokens(tokenizer)
        self._answers: dict[int, Answer] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Lifts scores in the rows that may end, or have to.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).
            scores: Next-token scores, (batch, vocab).

        Returns:
            New scores, (batch, vocab); `scores` itself if no row is changed.
        """
        generated = input_ids.shape[1] - self.prompt_length
        if generated < self.zone:
            return scores
        left = self.max_new_tokens - generated
        edits = [
            RowEdit(i, self, n, left, functools.partial(self._answer, i, input_ids))
            for i, n in enumerate(self.nudges(input_ids))
            if n is not NONE
        ]
        if not edits:
            return scores
        return edit_rows_(scores if self._in_place else scores.clone(), edits)

    def nudges(self, input_ids: torch.Tensor) -> list[Nudge]:
        """What each row needs at this step.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).

        Returns:
            One `Nudge` per row.
        """
        generated = input_ids.shape[1] - self.prompt_length
        if generated < self.zone:
            return [NONE] * input_ids.shape[0]
        newest = input_ids[:, -1].tolist() if generated else [None] * input_ids.shape[0]
        elsewhere = self._nudge(generated)  # where no text can end after the newest token
        return [
            self._nudge_of_text(self._answer(i, input_ids))
            if token is not None and self._closing_tokens.may_end_after(token)
            else elsewhere
            for i, token in enumerate(newest)
        ]

    def eos_source(
        self, input_ids: torch.Tensor, logits: torch.Tensor, sampled: bool
    ) -> Literal["model", "reward", "forced"]:
        """Tells who ended an answer, once EOS has been chosen.

        Args:
            input_ids: Prompt and answer before EOS, (prompt_length + generated,).
            logits: The model's own scores for the next token, (vocab,).
            sampled: Whether the token was sampled; else it was the best one.

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

    def answer(self, prompt: Sequence[int]) -> Answer:
        """Returns an answer without tokens yet, for `row_edit`.

        Args:
            prompt: Token ids of its prompt.
        """
        return Answer(self._detokenizer.after(prompt), self._closing_tokens)

    def row_edit(self, batch_index: int, answer: Answer) -> RowEdit:
        """What one row needs, for batches whose rows differ in length and options.

        Args:
            batch_index: The row's index in the batch.
            answer: Its answer so far.

        Returns:
            An edit for `edit_rows_`.
        """
        ids = answer.ids
        ends = bool(ids) and self._closing_tokens.may_end_after(ids[-1])
        nudge = self._nudge_of_text(answer) if ends else self._nudge(len(ids))
        return RowEdit(batch_index, self, nudge, self.max_new_tokens - len(ids), lambda: answer)

    def _answer(self, row: int, input_ids: torch.Tensor) -> Answer:
        """The answer of a row, (batch, prompt_length + generated); the one kept if it goes on."""
        after = after_prompt(self._detokenizer, input_ids[row], self.prompt_length)
        ids = input_ids[row, self.prompt_length :].tolist()
        answer = self._answers.get(row)
        count = len(answer.ids) if answer else 0
        if answer is None or answer.detokenizer is not after or answer.ids != ids[:count]:
            answer, count = Answer(after, self._closing_tokens), 0
            self._answers[row] = answer
        answer.grow(ids[count:])
        return answer

    def _nudge_of_text(self, answer: Answer) -> Nudge:
        """What an answer needs whose newest token may end a text."""
        generated = len(answer.ids)
        if not answer.may_end(self.reward.boundary):
            return self._nudge(generated)
        sentence_tokens = generated / max(1, boundaries.count_sentences(answer.text))
        return self._nudge(generated, may_end=True, sentence_tokens=sentence_tokens)

    def _nudge(
        self, generated: int, *, may_end: bool = False, sentence_tokens: float = 0.0
    ) -> Nudge:
        """The score rule with this processor's options."""
        return nudge(
            self.reward,
            generated,
            self.max_new_tokens,
            may_end=may_end,
            sentence_tokens=sentence_tokens,
        )

    def _closing_token(self, edit: RowEdit, terminator: int | None) -> tuple[int, bool] | None:
        """Token that closes the sentence, and whether it is decided; None to leave the row alone.

        It is a near-best terminator, or, if only that still fits, the first token of the planned
        closing, which is decided.

        Args:
            edit: The row.
            terminator: The id of a terminator whose score is near to the best, if there is one.
        """
        left, tokens = edit.left, self._closing_tokens
        if terminator is None and left > PLANNED_TOKENS:
            return None
        answer = edit.answer()
        if terminator is None and left > len(tokens.ids(".")) + answer.most_owed + 1:
            return None  # whatever the text owes, there is room for it after this token
        text = answer.text
        closing = close_text(text) if left <= PLANNED_TOKENS else ""
        by_sentence = self.reward.boundary == "sentence"
        plan = tokens.ids(closing) if by_sentence or closes_block(text, closing) else []
        if plan and left <= len(plan) + 1:
            return plan[0], True
        if terminator is None or not by_sentence:
            return None
        closed = answer.detokenizer.decode([*answer.ids, terminator])
        ends = can_close(text, closed[len(text) :]) and boundaries.is_true_end(closed)
        return (terminator, False) if ends else None


class InPlaceEosReward(EosTokenRewardLogitsProcessor):
    """The same for a loop that owns its scores: a copy would cost more than all the rest."""

    _in_place = True


class ThinkingReward(InPlaceEosReward):
    """The same for the end of a reasoning model's thinking, which has a budget of its own.

    Rows that do not think, or have finished thinking, are not changed.
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
            thinking_tokens: The token budget of the thinking, `</think>` included.
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
        """What each row needs at this step: nothing if it is not thinking."""
        if input_ids.shape[1] - self.prompt_length >= self.max_new_tokens:
            return [NONE] * input_ids.shape[0]
        opened, closed = (last_position(input_ids, id_) for id_ in self.thinking_ids)  # (batch,)
        thinks = (opened > closed).tolist()
        nudges = super().nudges(input_ids)
        return [n if t else NONE for n, t in zip(nudges, thinks, strict=True)]


def edit_rows_(scores: torch.Tensor, edits: Sequence[RowEdit]) -> torch.Tensor:
    """Applies each row's EOS bonus or closing token, in place.

    Args:
        scores: Next-token scores, (batch, vocab).
        edits: The rows to change, of processors for one tokenizer.

    Returns:
        `scores`.
    """
    by_eos_ids: dict[tuple[int, ...], list[RowEdit]] = {}
    for edit in edits:
        if edit.nudge.eos or edit.nudge.decided:
            by_eos_ids.setdefault(tuple(edit.processor.eos_token_ids), []).append(edit)
    for ids, group in by_eos_ids.items():
        nudges = [edit.nudge for edit in group]
        nats, decided = [n.eos for n in nudges], [n.decided for n in nudges]
        lift_(scores, [edit.batch_index for edit in group], list(ids), nats, decided)
    if open_ := [e for e in edits if e.nudge.close and e.processor._closing_tokens.terminators]:
        rows, nats = [edit.batch_index for edit in open_], [edit.nudge.close for edit in open_]
        terminators = open_[0].processor._closing_tokens.terminators
        near = _near_terminators(scores, rows, nats, terminators)
        for edit, terminator in zip(open_, near, strict=True):
            if closing := edit.processor._closing_token(edit, terminator):
                token, is_decided = closing
                lift_(scores, [edit.batch_index], [token], [edit.nudge.close], [is_decided])
    return scores


def lift_(
    scores: torch.Tensor,
    rows: list[int],
    ids: list[int],
    nats: Sequence[float],
    decided: Sequence[bool],
) -> torch.Tensor:
    """Lifts the best of some tokens in some rows, in place.

    Only the best one, because lifting all of them would add up their probabilities.

    Args:
        scores: Next-token scores, (batch, vocab).
        rows: Indices of the rows.
        ids: The tokens, EOS ids for instance.
        nats: Added to the best one's score, per row of `rows`.
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
        # Indexing rows by a tensor would copy them. Many rows: the maximum of all is cheaper.
        few = 4 * len(rows) < scores.shape[0]
        best = torch.stack([scores[i].amax() for i in rows]) if few else scores.amax(dim=1)[row]
        best = best + DECIDED
        new = torch.where(
            torch.tensor(decided, device=scores.device), torch.maximum(score, best), new
        )
    scores[row, token] = torch.where(score.isneginf(), score, new)  # forbidden stays forbidden
    return scores


def _near_terminators(
    scores: torch.Tensor, rows: list[int], nats: list[float], terminators: list[int]
) -> Iterator[int | None]:
    """Per row, the best terminator if it lies at most the row's nats under the best token."""
    # Both indices at once: indexing whole rows first would copy them.
    index = torch.tensor(rows, device=scores.device)
    candidates = scores[index[:, None], torch.tensor(terminators, device=scores.device)]
    best, which = candidates.max(dim=1)
    # A part of the vocabulary excludes most rows: the maximum of the whole is not lower.
    reach = best + torch.tensor(nats, dtype=scores.dtype, device=scores.device)
    few = 2 * len(rows) < scores.shape[0]  # whose parts are copied; else all rows are looked at
    part = scores[index, :_SAMPLE].amax(dim=1) if few else scores[:, :_SAMPLE].amax(dim=1)[index]
    maybe, places = (part <= reach).tolist(), which.tolist()
    for i, row in enumerate(rows):
        near = maybe[i] and scores[row].amax() <= reach[i]
        yield terminators[places[i]] if near else None
