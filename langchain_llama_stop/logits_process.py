"""The EOS reward as a transformers logits processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from transformers import LogitsProcessor

from langchain_llama_stop import boundaries
from langchain_llama_stop.detokenization import detokenizer
from langchain_llama_stop.eos_reward import DECIDED, NONE, EosReward, Nudge, nudge

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_END = frozenset(",;:-(<{[/=+#@$%^&~¿¡–—")
_CLOSERS = (".", "!", "?", "。", "！", "？", "؟", "।")


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
        self.reward = reward or EosReward()
        self._zone = self.reward.zone(max_new_tokens)
        self._detokenizer = detokenizer(tokenizer)
        self._may_end_after: dict[int, bool] = {}
        self._closers = closing_token_ids(tokenizer) if self.reward.close_sentence else []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Lifts the scores of the rows that may end, or have to.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).
            scores: Next-token scores, (batch, vocab).

        Returns:
            New scores, (batch, vocab); `scores` itself where no row is touched.
        """
        if input_ids.shape[1] - self.prompt_length < self._zone:
            return scores
        nudges = self.nudges(input_ids)
        if all(n is NONE for n in nudges):
            return scores
        return apply_nudges(scores, nudges, self.eos_token_ids, self._closers)

    def nudges(self, input_ids: torch.Tensor) -> list[Nudge]:
        """Says what each row needs at this step.

        Args:
            input_ids: Prompt and answer so far, (batch, prompt_length + generated).

        Returns:
            One `Nudge` per row.
        """
        generated = input_ids.shape[1] - self.prompt_length
        if generated < self._zone:
            return [NONE] * input_ids.shape[0]
        return [self._row(ids, generated) for ids in input_ids[:, self.prompt_length :].tolist()]

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
            rewarded = apply_nudges(logits[None], [n], eos, [])[0]
            own = bool(logits.softmax(-1)[eos].sum() >= rewarded.softmax(-1)[eos].sum() / 2)
        else:
            own = not (n.eos or n.decided) or int(logits.argmax()) in eos
        return "model" if own else "forced" if n.forced else "reward"

    def _row(self, ids: list[int], generated: int) -> Nudge:
        sentence_tokens = 0.0
        may_end = bool(ids) and self._may_end(ids[-1])
        if may_end:
            text = self._detokenizer.decode(ids)
            may_end = boundaries.may_end(text, self.reward.boundary)
            if may_end:
                sentence_tokens = typical_sentence(text, generated)
        return nudge(
            self.reward,
            generated,
            self.max_new_tokens,
            may_end=may_end,
            sentence_tokens=sentence_tokens,
        )

    def _may_end(self, token_id: int) -> bool:
        """Rules out, without the text, the tokens behind which no text ends: most of them."""
        known = self._may_end_after.get(token_id)
        if known is None:
            piece = self._detokenizer.decode([token_id])
            known = self._may_end_after[token_id] = "\n" in piece or not _inside_sentence(piece)
        return known


def _inside_sentence(piece: str) -> bool:
    last = piece.rstrip()[-1:]
    return last.isalnum() or last in _NO_END if last else piece != ""


def typical_sentence(text: str, tokens: int) -> float:
    """Estimates the tokens of a typical sentence of an answer.

    Args:
        text: The answer so far, which may end where it stands.
        tokens: Its length in tokens.

    Returns:
        The mean length of its sentences, in tokens.
    """
    return tokens / max(1, len(boundaries.end_offsets(text)))


def closing_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Finds the tokens that close a sentence when they follow a word.

    Args:
        tokenizer: The model's tokenizer.

    Returns:
        Their ids; those marks that the vocabulary has as one token.
    """
    word = tokenizer("x", add_special_tokens=False)["input_ids"]
    ids = []
    for mark in _CLOSERS:
        marked = tokenizer("x" + mark, add_special_tokens=False)["input_ids"]
        if marked[:-1] == word:
            ids.append(marked[-1])
    return ids


def apply_nudges(
    scores: torch.Tensor, nudges: Sequence[Nudge], eos_ids: list[int], closers: list[int]
) -> torch.Tensor:
    """Applies the score rule to a batch.

    Args:
        scores: Next-token scores, (batch, vocab).
        nudges: One per row.
        eos_ids: The EOS ids.
        closers: Ids of sentence-closing tokens.

    Returns:
        New scores, (batch, vocab).
    """
    scores = scores.clone()
    for row, n in enumerate(nudges):
        if n.decided or n.eos:
            _lift(scores[row], eos_ids, n.eos, n.decided)
        if closers and (n.close_decided or n.close):
            _lift(scores[row], closers, n.close, n.close_decided)
    return scores


def _lift(row: torch.Tensor, ids: list[int], nats: float, decided: bool) -> None:
    """Raises the best of `ids` in a row of scores, (vocab,), in place.

    Only the best one: raising all of them would add their probabilities up.
    """
    best = ids[int(row[ids].argmax())] if len(ids) > 1 else ids[0]
    score = row[best]
    if torch.isneginf(score):
        return
    row[best] = torch.maximum(score, row.max() + DECIDED) if decided else score + nats
