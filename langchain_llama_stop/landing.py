"""Landing in hindsight: an answer is decoded plainly, then ended at the best place it passed.

A rule that decides while the text comes cannot know that the model was about to end by itself, or
that a better end was a few tokens away. Inside the landing zone every place is therefore judged by
the model's own scores, and nothing is decided before the budget is used up: an answer that the
model ends itself stays as it is, token for token, and every other one ends where that costs least.
"""

from __future__ import annotations

import math
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
    ) -> None:
        """Begins the search for one batch.

        Args:
            tokenizer: The model's tokenizer.
            rows: Rows of the batch.
            max_new_tokens: The token budget of an answer.
            eos_token_ids: All EOS ids.
            reward: The options.
        """
        self.max_new_tokens, self.reward = max_new_tokens, reward
        self.first = reward.zone(max_new_tokens)
        self._detokenizer, self._closers = detokenizer(tokenizer), closers(tokenizer)
        self._eos = list(eos_token_ids)
        self._columns = [*self._eos, *self._closers.first]
        self._best: list[_Place | None] = [None] * rows
        self._last: list[list[float]] = [[]] * rows  # the gaps of each row's newest place
        # Of rows without an end so far: tokens and gaps of every place.
        self._seen: list[list[tuple[int, list[float]]]] = [[] for _ in range(rows)]

    def look(self, answers: Sequence[Sequence[int] | None], scores: torch.Tensor) -> list[bool]:
        """Judges the place that each row has reached.

        Args:
            answers: The ids of each answer so far; None for a row that is not in its zone.
            scores: Scores for the next token, with what is forbidden at -inf, (batch, vocab).

        Returns:
            For each row, whether no end so far was better than this place.
        """
        found = scores[:, torch.tensor(self._columns, device=scores.device)]  # (batch, columns)
        gaps = (scores.amax(dim=1, keepdim=True) - found).float().tolist()
        better = [False] * len(answers)
        for i, ids in enumerate(answers):
            if ids is None:
                continue
            self._last[i] = gaps[i]
            best = self._best[i]
            if place := self._judge(ids, gaps[i], best.cost if best else math.inf):
                self._best[i], better[i] = place, True
                self._seen[i].clear()
            elif best is None:
                self._seen[i].append((len(ids), gaps[i]))
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
            place = self._close(row, ids)
        return [*ids[: place.tokens], *place.closing] if place else None

    def forced(self, row: int, ids: Sequence[int]) -> list[int] | None:
        """Puts EOS in place of an answer's last token; None if it is forbidden there."""
        gap, eos = self._eos_gap(self._last[row])
        return [*ids[:-1], eos] if gap < math.inf else None

    def _judge(self, ids: Sequence[int], gaps: list[float], most: float) -> _Place | None:
        """The end at the place behind `ids`, if there is one that costs less than `most`."""
        gap, eos = self._eos_gap(gaps)
        if not ids or gap == math.inf:
            return None
        count = len(ids)
        cost = self._cost(count, gap)
        if self._closers.may_end_after(ids[-1]):
            if cost >= most:
                return None
            text = self._detokenizer.decode(ids)
            if boundaries.may_end(text, self.reward.boundary):
                return _Place(count, (eos,), cost)
        near = dict(zip(self._columns[len(self._eos) :], gaps[len(self._eos) :], strict=True))
        marks = self._closers.marks
        mark = min(marks, key=near.__getitem__, default=None)
        if mark is None or not self.reward.close_sentence or near[mark] > CLOSING_NATS[1]:
            return None
        cost = self._cost(count, near[mark] + _MARK)
        if cost >= most or count + 2 > self.max_new_tokens:
            return None
        if not self._ends(self._detokenizer.decode(ids), [*ids, mark]):
            return None
        return _Place(count, (mark, eos), cost)

    def _close(self, row: int, ids: Sequence[int]) -> _Place | None:
        """The cheapest of the ends that closing what is open makes, over all places."""
        best: _Place | None = None
        # Texts are judged as long as a place may still be the cheapest.
        places = [(self._cost(n, min(g[len(self._eos) :])), n, g) for n, g in self._seen[row]]
        for bound, count, gaps in sorted(places, key=lambda place: place[:2]):
            if best and bound >= best.cost:
                break
            gap, eos = self._eos_gap(gaps)
            text = self._detokenizer.decode(ids[:count])
            end = closing(text)
            added = self._closers.ids(end)
            if not added or count + len(added) + 1 > self.max_new_tokens or gap == math.inf:
                continue
            known = dict(zip(self._columns, gaps, strict=True))
            if any(known.get(token) == math.inf for token in added):
                continue
            gap = known.get(added[0], _UNKNOWN) + _MIDLINE * end.startswith("\n")
            cost = self._cost(count, gap)
            if (best is None or cost < best.cost) and self._ends(text, [*ids[:count], *added]):
                best = _Place(count, (*added, eos), cost)
        return best

    def _ends(self, text: str, closed: Sequence[int]) -> bool:
        """Whether the ids of a text that was closed end it: not in the midst of a character."""
        return not text.endswith("\ufffd") and boundaries.may_end(self._detokenizer.decode(closed))

    def _eos_gap(self, gaps: list[float]) -> tuple[float, int]:
        """How far the best EOS lies under the best token, and its id."""
        return min(zip(gaps, self._eos, strict=False), default=(math.inf, self._eos[0]))

    def _cost(self, tokens: int, gap: float) -> float:
        return landing_cost(self.reward, tokens, self.max_new_tokens, gap=gap)
