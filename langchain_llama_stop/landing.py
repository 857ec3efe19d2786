"""Landing in hindsight: an answer is decoded plainly, then ended at the best place it passed.

A rule that decides while the text comes cannot know that the model was about to end by itself, or
that a better end was a few tokens away. Inside the landing zone every place is therefore judged by
the model's own scores, and nothing is decided before the budget is used up: an answer that the
model ends itself stays as it is, token for token, and every other one ends where that costs least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from langchain_llama_stop import boundaries
from langchain_llama_stop.closers import closers
from langchain_llama_stop.detokenization import detokenizer
from langchain_llama_stop.endings import closing
from langchain_llama_stop.eos_reward import CLOSING_NATS, EosReward, landing_cost

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = 11.0  # nats that EOS costs behind a mark which the model has not set: as behind its own
_UNKNOWN = 12.0  # nats of a first token that was not among those looked at
_MIDLINE = 6.0  # nats that a fence costs more in the middle of a line of code


class _Place(NamedTuple):
    """Where an answer may end.

    Attributes:
        tokens: Tokens of the answer that stay.
        closing: Ids put behind them, EOS included.
        cost: In nats.
    """

    tokens: int
    closing: tuple[int, ...]
    cost: float


class Landing:
    """Looks for the best end of each row while a batch is decoded.

    Three kinds of ends are known. A *true end* costs what EOS lies under the model's favourite
    there. A *mark* that lies at most 3 nats under the favourite may be set, where it closes the
    sentence. Where the zone holds neither, what is open is closed, at the place where the first
    token of that costs least. The reward makes a later end cheaper than an earlier one.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: int,
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
        reward: EosReward,
        min_new_tokens: int = 0,
    ) -> None:
        """Begins the search for one batch.

        Args:
            tokenizer: The model's tokenizer.
            rows: Rows of the batch.
            max_new_tokens: The token budget.
            eos_token_ids: All EOS ids.
            reward: The options.
            min_new_tokens: Tokens before which no answer may end.
        """
        self.max_new_tokens, self.reward = max_new_tokens, reward
        self.first = max(1, reward.zone(max_new_tokens), min_new_tokens)
        self._detokenizer, self._closers = detokenizer(tokenizer), closers(tokenizer)
        self._eos = list(eos_token_ids)
        self._columns = [*self._eos, *self._closers.first]
        self._best: list[_Place | None] = [None] * rows
        # Of rows without an end so far: how far under the best token the closers lie, per place.
        self._gaps: list[list[list[float]]] = [[] for _ in range(rows)]

    def look(self, answers: Sequence[Sequence[int] | None], logits: torch.Tensor) -> list[bool]:
        """Judges the place that each row has reached.

        Args:
            answers: The ids of each row so far, all of one length; None for a finished row.
            logits: The model's own scores for the next token, (batch, vocab).

        Returns:
            For each row, whether no end so far was better than this place.
        """
        found = logits[:, torch.tensor(self._columns, device=logits.device)]  # (batch, columns)
        gaps = (logits.amax(dim=1, keepdim=True) - found).float().tolist()
        better = [False] * len(answers)
        for i, ids in enumerate(answers):
            if ids is None:
                continue
            place, best = self._judge(ids, gaps[i]), self._best[i]
            if place and (best is None or place.cost < best.cost):
                self._best[i], better[i] = place, True
                self._gaps[i].clear()
            elif best is None:
                self._gaps[i].append(gaps[i])
        return better

    def end(self, row: int, ids: Sequence[int]) -> list[int] | None:
        """Ends an answer that has used its budget up.

        Args:
            row: Its row.
            ids: Its ids, without EOS.

        Returns:
            Its ids up to the best end, what closes it, and EOS; None if it cannot be ended.
        """
        place = self._best[row]
        if place is None and self.reward.close_sentence:
            place = min(self._closings(row, ids), key=lambda p: p.cost, default=None)
        return [*ids[: place.tokens], *place.closing] if place else None

    def _judge(self, ids: Sequence[int], gaps: list[float]) -> _Place | None:
        """The end at the place behind `ids`, if there is one."""
        count, eos = len(ids), gaps[: len(self._eos)]
        favourite = self._eos[eos.index(min(eos))]
        if self._closers.may_end_after(ids[-1]):
            text = self._detokenizer.decode(ids)
            if boundaries.may_end(text, self.reward.boundary):
                return _Place(count, (favourite,), self._cost(count, min(eos)))
        marks = gaps[len(eos) : len(eos) + len(self._closers.marks)]  # the first of the closers
        if not self.reward.close_sentence or not marks or min(marks) > CLOSING_NATS[1]:
            return None
        mark = self._closers.marks[marks.index(min(marks))]
        if count + 2 > self.max_new_tokens or not boundaries.may_end(
            self._detokenizer.decode([*ids, mark])
        ):
            return None
        return _Place(count, (mark, favourite), self._cost(count, min(marks) + _MARK))

    def _closings(self, row: int, ids: Sequence[int]) -> list[_Place]:
        """The ends that closing what is open makes, one for each place in the zone."""
        places = []
        for count, gaps in enumerate(self._gaps[row], self.first):
            text = self._detokenizer.decode(ids[:count])
            end = closing(text)
            added = self._closers.ids(end)
            if not end or count + len(added) + 1 > self.max_new_tokens:
                continue
            eos = gaps[: len(self._eos)]
            column = self._columns.index(added[0]) if added[0] in self._columns else None
            gap = (_UNKNOWN if column is None else gaps[column]) + _MIDLINE * end.startswith("\n")
            favourite = self._eos[eos.index(min(eos))]
            places.append(_Place(count, (*added, favourite), self._cost(count, gap)))
        return places

    def _cost(self, tokens: int, gap: float) -> float:
        return landing_cost(self.reward, tokens, self.max_new_tokens, gap=gap)
