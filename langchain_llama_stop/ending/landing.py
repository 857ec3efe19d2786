"""Landing in hindsight: an answer is decoded plainly, then ended at the best place it passed.

A rule that decides while the text comes cannot know that the model was about to end by itself, or
that a better end was a few tokens away. Inside the landing zone every place is therefore judged by
the model's own scores, and nothing is decided before the budget is used up: an answer that the
model ends itself stays as it is, token for token, and every other one ends where that costs least.

A step only notes numbers. Texts, which cost far more, are decoded and judged once the budget is
used up, the cheapest places first, until none of the others can cost less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from langchain_llama_stop.ending import boundaries
from langchain_llama_stop.ending.closing import close_text
from langchain_llama_stop.ending.closing_tokens import closing_tokens
from langchain_llama_stop.ending.reward import CLOSING_NATS, EosReward, landing_cost
from langchain_llama_stop.tokens.detokenizer import detokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = 11.0  # nats that EOS costs behind a mark which the model has not set: as behind its own
_UNKNOWN = 12.0  # nats of a first token that was not among those looked at
_MIDLINE = 6.0  # nats that a fence costs more in the middle of a line of code


class _Place(NamedTuple):
    """Where an answer might end.

    Attributes:
        tokens: Tokens of the answer up to here.
        gaps: Nats by which each token looked at lies under the model's favourite.
    """

    tokens: int
    gaps: list[float]


class _End(NamedTuple):
    """How an answer may end.

    Attributes:
        cost: In nats.
        tokens: Tokens of the answer that stay.
        closing: Ids put behind them, EOS included.
    """

    cost: float
    tokens: int
    closing: tuple[int, ...]


_NO_END = _End(math.inf, 0, ())


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
        self._detokenizer, self._closers = detokenizer(tokenizer), closing_tokens(tokenizer)
        self._eos = sorted(eos_token_ids)  # of equal ones the first counts
        self._ids = [*self._eos, *self._closers.first]  # of the tokens looked at
        self._index = torch.tensor(self._ids)
        self._marks = slice(len(self._eos), len(self._eos) + len(set(self._closers.marks)))
        self._credit: dict[int, float] = {}  # what a place without a gap costs, by its tokens
        self._last: list[list[float]] = [[math.inf]] * rows  # the gaps of each row's newest place
        # Of each row: its places, how many of them are judged, and the best end among these.
        self._places: list[list[_Place]] = [[] for _ in range(rows)]
        self._judged = [0] * rows
        self._best = [_NO_END] * rows

    def look(
        self,
        answers: Sequence[Sequence[int] | None],
        scores: torch.Tensor,
        best: torch.Tensor | None = None,
    ) -> None:
        """Notes the place that each row has reached.

        Args:
            answers: The ids of each answer so far; None for a row that is not in its zone.
            scores: Scores for the next token, with what is forbidden at -inf, (batch, vocab).
            best: Each row's highest score, where the caller has it, (batch,).
        """
        self._index = self._index.to(scores.device)  # copied once
        best = scores.amax(dim=1) if best is None else best
        found = scores.index_select(1, self._index)  # (batch, tokens looked at)
        gaps = (best[:, None] - found).float().tolist()
        for i, ids in enumerate(answers):
            if ids is not None:
                self._last[i] = gaps[i]
                self._places_before(i, len(ids)).append(_Place(len(ids), gaps[i]))

    def better(self, row: int, ids: Sequence[int]) -> bool:
        """Judges the places of a row so far, for a stream that wants to know what can be dropped.

        Args:
            row: The row.
            ids: The ids of its answer so far.

        Returns:
            Whether no end before was better than the newest place.
        """
        return self._best_end(row, ids).tokens == len(ids) > 0

    def end(self, row: int, ids: Sequence[int]) -> list[int] | None:
        """Ends an answer that has used its budget up.

        Args:
            row: Its row.
            ids: Its ids, without EOS.

        Returns:
            Its ids up to the best end, what closes it, and EOS; None if it cannot be ended.
        """
        self._places_before(row, len(ids))
        end = self._best_end(row, ids)
        if end is _NO_END and self.reward.close_sentence:
            end = self._close(row, ids)
        return None if end is _NO_END else [*ids[: end.tokens], *end.closing]

    def forced(self, row: int, ids: Sequence[int]) -> list[int] | None:
        """Puts EOS in place of an answer's last token; None if it is forbidden there."""
        gap, eos = self._eos_gap(self._last[row])
        return [*ids[:-1], eos] if gap < math.inf else None

    def _places_before(self, row: int, tokens: int) -> list[_Place]:
        """The places of an answer; none if it has thought once more and begun anew since."""
        places = self._places[row]
        if places and places[-1].tokens >= tokens:
            places.clear()
            self._judged[row], self._best[row] = 0, _NO_END
        return places

    def _best_end(self, row: int, ids: Sequence[int]) -> _End:
        """The best end that is a true one, or made by a mark: of the places up to now."""
        places = self._places[row]
        waiting: list[tuple[float, _Place]] = []
        for place in places[self._judged[row] :]:
            eos, mark = self._costs(ids, place)
            if mark < eos < math.inf:
                # Its mark counts only if EOS is cheaper than all ends before: their turn is first.
                self._take_cheapest(row, ids, waiting)
                self._take_cheapest(row, ids, [(mark, place)])
                waiting = []
            elif min(eos, mark) < math.inf:
                waiting.append((min(eos, mark), place))
        self._take_cheapest(row, ids, waiting)
        self._judged[row] = len(places)
        return self._best[row]

    def _take_cheapest(
        self, row: int, ids: Sequence[int], waiting: list[tuple[float, _Place]]
    ) -> None:
        """Takes the best end of some places, if it is better than the best so far.

        Args:
            row: The row.
            ids: The ids of its answer.
            waiting: What an end at a place costs at least, and the place.
        """
        for least, place in sorted(waiting):
            if least > self._best[row].cost:
                break
            self._best[row] = self._judge(ids[: place.tokens], place, self._best[row])

    def _judge(self, ids: Sequence[int], place: _Place, best: _End) -> _End:
        """The end at a place, if there is one that is better than the best so far; else that."""
        count, gaps = place
        ending, marking = self._costs(ids, place)
        _, eos = self._eos_gap(gaps)
        if ending < math.inf:
            if (ending, count) >= best[:2]:
                return best
            if boundaries.may_end(self._detokenizer.decode(ids[:count]), self.reward.boundary):
                return _End(ending, count, (eos,))
        if (marking, count) >= best[:2]:
            return best
        mark = self._ids[gaps.index(min(gaps[self._marks]), self._marks.start)]
        if not self._ends(self._detokenizer.decode(ids[:count]), [*ids[:count], mark]):
            return best
        return _End(marking, count, (mark, eos))

    def _costs(self, ids: Sequence[int], place: _Place) -> tuple[float, float]:
        """What EOS and what a mark costs at a place; infinity where no text has to be judged."""
        count, gaps = place
        ending = marking = math.inf
        gap = min(gaps[: len(self._eos)])
        if count and gap < math.inf:
            if self._closers.may_end_after(ids[count - 1]):
                ending = self._cost(count, gap)
            near = min(gaps[self._marks], default=math.inf)
            fits = count + 2 <= self.max_new_tokens
            if near <= CLOSING_NATS[1] and fits and self.reward.close_sentence:
                marking = self._cost(count, near + _MARK)
        return ending, marking

    def _close(self, row: int, ids: Sequence[int]) -> _End:
        """The cheapest of the ends that closing what is open makes, over all places."""
        best = _NO_END
        # Texts are judged as long as a place may still be the cheapest.
        first = len(self._eos)
        places = [
            (self._cost(n, min(g[first:], default=math.inf)), n, g) for n, g in self._places[row]
        ]
        for bound, count, gaps in sorted(places, key=lambda place: place[:2]):
            if best is not _NO_END and bound >= best.cost:
                break
            gap, eos = self._eos_gap(gaps)
            text = self._detokenizer.decode(ids[:count])
            end = close_text(text)
            added = self._closers.ids(end)
            if not added or count + len(added) + 1 > self.max_new_tokens or gap == math.inf:
                continue
            known = dict(zip(self._ids, gaps, strict=True))
            if any(known.get(token) == math.inf for token in added):
                continue
            gap = known.get(added[0], _UNKNOWN) + _MIDLINE * end.startswith("\n")
            cost = self._cost(count, gap)
            if cost < best.cost and self._ends(text, [*ids[:count], *added]):
                best = _End(cost, count, (*added, eos))
        return best

    def _ends(self, text: str, closed: Sequence[int]) -> bool:
        """Whether the ids of a text that was closed end it: not in the midst of a character."""
        return not text.endswith("\ufffd") and boundaries.may_end(self._detokenizer.decode(closed))

    def _eos_gap(self, gaps: list[float]) -> tuple[float, int]:
        """How far the best EOS lies under the best token, and its id."""
        gap = min(gaps[: len(self._eos)])
        return gap, self._eos[gaps.index(gap)]

    def _cost(self, tokens: int, gap: float) -> float:
        if tokens not in self._credit:
            self._credit[tokens] = landing_cost(self.reward, tokens, self.max_new_tokens, gap=0)
        return self._credit[tokens] + gap
