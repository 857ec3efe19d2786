"""Landing: an answer is decoded plainly, then ended at the best position that it has passed.

A rule that decides while the text comes cannot know that the model was about to end by itself, or
that a better end was a few tokens away. So landing records the model's scores at every position of
the landing zone, and decides nothing before the budget is used up. An answer that the model ends
itself stays as it is, token for token. Every other answer ends where that costs least.

A step only records numbers. Decoding and judging texts costs far more. It is done once the budget
is used up, the cheapest positions first, until no other position can cost less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from langchain_llama_stop.ending import boundaries
from langchain_llama_stop.ending.closing import close_text
from langchain_llama_stop.ending.closing_tokens import closing_tokens
from langchain_llama_stop.ending.reward import (
    ADDED_TERMINATOR_NATS,
    CLOSING_NATS,
    MIDLINE_FENCE_NATS,
    UNSEEN_NATS,
    EosReward,
    landing_cost,
)
from langchain_llama_stop.tokens.detokenizer import detokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class _Position(NamedTuple):
    """A position where an answer might end."""

    tokens: int  # of the answer before it
    gaps: list[float]  # nats by which each recorded token lies under the best token


class _Candidate(NamedTuple):
    """An end that is possible."""

    cost: float  # in nats
    tokens: int  # of the answer that stay
    closing: tuple[int, ...]  # ids appended to them, EOS included


_NO_END = _Candidate(math.inf, 0, ())


class Landing:
    """Finds the best end of each row while a batch is decoded.

    There are three kinds of ends. A *true end* costs the gap of EOS there: how far EOS lies under
    the best token. A *terminator* may be added if its gap is at most 3 nats and it closes the
    sentence. If the zone holds neither, the open constructs are closed where the first token that
    closes them has the smallest gap. The reward makes later ends cheaper than earlier ones.

    Attributes:
        zone: Tokens of an answer after which the landing zone begins.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rows: int,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
        reward: EosReward,
    ) -> None:
        """Starts the search for one batch.

        Args:
            tokenizer: The model's tokenizer.
            rows: Number of rows of the batch.
            prompts: The ids of each row's prompt, which the text of its answer follows.
            max_new_tokens: The token budget of an answer.
            eos_token_ids: All EOS ids.
            reward: The options.
        """
        self.max_new_tokens, self.reward = max_new_tokens, reward
        self.zone = reward.zone(max_new_tokens)
        self._detokenizers = [detokenizer(tokenizer).after(prompt) for prompt in prompts]
        self._closing_tokens = closing_tokens(tokenizer)
        # The ids whose gaps are recorded: EOS ids (of equal ones the lowest wins), then the first
        # tokens of closings, terminators in front.
        self._eos = sorted(eos_token_ids)
        self._ids = [*self._eos, *self._closing_tokens.first]
        self._index = torch.tensor(self._ids)
        count = len(self._eos)
        self._terminators = slice(count, count + len(set(self._closing_tokens.terminators)))
        self._base_costs: dict[int, float] = {}  # of an end without a gap, by number of tokens
        self._newest: list[list[float]] = [[math.inf]] * rows  # gaps of each row's newest position
        # Per row: its positions, how many of them are judged, and the best end among these.
        self._positions: list[list[_Position]] = [[] for _ in range(rows)]
        self._judged = [0] * rows
        self._best = [_NO_END] * rows

    def record(
        self,
        answers: Sequence[Sequence[int] | None],
        scores: torch.Tensor,
        best: torch.Tensor | None = None,
    ) -> None:
        """Records the position that each row has reached.

        Args:
            answers: The ids of each answer so far; None for a row that is not in its zone.
            scores: Scores for the next token; -inf for forbidden tokens, (batch, vocab).
            best: Each row's highest score, if the caller has it, (batch,).
        """
        self._index = self._index.to(scores.device)  # copied once
        best = scores.amax(dim=1) if best is None else best
        recorded = scores.index_select(1, self._index)  # (batch, recorded ids)
        gaps = (best[:, None] - recorded).float().tolist()
        for i, ids in enumerate(answers):
            if ids is not None:
                self._newest[i] = gaps[i]
                self._positions_before(i, len(ids)).append(_Position(len(ids), gaps[i]))

    def newest_is_best(self, row: int, ids: Sequence[int]) -> bool:
        """Whether the newest position of a row is its best end so far.

        A stream asks this: if so, landing can drop nothing of the text so far.

        Args:
            row: The row's index.
            ids: The ids of its answer so far.
        """
        return self._best_end(row, ids).tokens == len(ids) > 0

    def end(self, row: int, ids: Sequence[int]) -> list[int] | None:
        """Ends an answer that has used up its budget.

        Args:
            row: The row's index.
            ids: The ids of its answer, without EOS.

        Returns:
            The ids up to the best end, what closes it, and EOS; None if there is no end.
        """
        self._positions_before(row, len(ids))
        end = self._best_end(row, ids)
        if end is _NO_END and self.reward.close_sentence:
            end = self._close(row, ids)
        return None if end is _NO_END else [*ids[: end.tokens], *end.closing]

    def force_eos(self, row: int, ids: Sequence[int]) -> list[int] | None:
        """Replaces an answer's last token by EOS; None if EOS is forbidden there."""
        gap, eos = self._eos_gap(self._newest[row])
        return [*ids[:-1], eos] if gap < math.inf else None

    def _positions_before(self, row: int, tokens: int) -> list[_Position]:
        """The row's positions; cleared if its answer has begun again, after more thinking."""
        positions = self._positions[row]
        if positions and positions[-1].tokens >= tokens:
            positions.clear()
            self._judged[row], self._best[row] = 0, _NO_END
        return positions

    def _best_end(self, row: int, ids: Sequence[int]) -> _Candidate:
        """The best end of the positions so far: a true end, or one with an added terminator."""
        positions = self._positions[row]
        waiting: list[tuple[float, _Position]] = []
        for position in positions[self._judged[row] :]:
            eos, terminator = self._costs(ids, position)
            if terminator < eos < math.inf:
                # Its terminator counts only if EOS here beats all earlier ends: judge those first.
                self._take_cheapest(row, ids, waiting)
                self._take_cheapest(row, ids, [(terminator, position)])
                waiting = []
            elif min(eos, terminator) < math.inf:
                waiting.append((min(eos, terminator), position))
        self._take_cheapest(row, ids, waiting)
        self._judged[row] = len(positions)
        return self._best[row]

    def _take_cheapest(
        self, row: int, ids: Sequence[int], waiting: list[tuple[float, _Position]]
    ) -> None:
        """Updates the row's best end from (least cost, position) pairs, the cheapest first."""
        for least, position in sorted(waiting):
            if least > self._best[row].cost:
                break
            self._best[row] = self._judge(row, ids, position)

    def _judge(self, row: int, ids: Sequence[int], position: _Position) -> _Candidate:
        """The end at a position, if it is better than the row's best so far; else that one."""
        (count, gaps), best = position, self._best[row]
        eos_cost, terminator_cost = self._costs(ids, position)
        _, eos = self._eos_gap(gaps)
        if eos_cost < math.inf:
            if (eos_cost, count) >= best[:2]:
                return best
            text = self._detokenizers[row].decode(ids[:count])
            if boundaries.may_end(text, self.reward.boundary):
                return _Candidate(eos_cost, count, (eos,))
        if (terminator_cost, count) >= best[:2]:
            return best
        nearest = min(gaps[self._terminators])
        terminator = self._ids[gaps.index(nearest, self._terminators.start)]
        if not self._closes(row, ids[:count], [terminator]):
            return best
        return _Candidate(terminator_cost, count, (terminator, eos))

    def _costs(self, ids: Sequence[int], position: _Position) -> tuple[float, float]:
        """Costs of EOS and of a terminator at a position; infinity if it is excluded by numbers."""
        count, gaps = position
        eos_cost = terminator_cost = math.inf
        gap = min(gaps[: len(self._eos)])
        if count and gap < math.inf:
            if self._closing_tokens.may_end_after(ids[count - 1]):
                eos_cost = self._cost(count, gap)
            near = min(gaps[self._terminators], default=math.inf)
            fits = count + 2 <= self.max_new_tokens
            if near <= CLOSING_NATS[1] and fits and self.reward.close_sentence:
                terminator_cost = self._cost(count, near + ADDED_TERMINATOR_NATS)
        return eos_cost, terminator_cost

    def _close(self, row: int, ids: Sequence[int]) -> _Candidate:
        """The cheapest end, over all positions, that closes what is open."""
        best = _NO_END
        first = len(self._eos)
        # (cost of the cheapest closing there could be, tokens, gaps)
        bounds = [
            (self._cost(n, min(gaps[first:], default=math.inf)), n, gaps)
            for n, gaps in self._positions[row]
        ]
        for bound, count, gaps in sorted(bounds, key=lambda entry: entry[:2]):
            if best is not _NO_END and bound >= best.cost:
                break
            eos_gap, eos = self._eos_gap(gaps)
            closing = close_text(self._detokenizers[row].decode(ids[:count]))
            added = self._closing_tokens.ids(closing)
            fits = count + len(added) + 1 <= self.max_new_tokens
            if not added or not fits or eos_gap == math.inf:
                continue
            recorded = dict(zip(self._ids, gaps, strict=True))
            if any(recorded.get(token) == math.inf for token in added):
                continue
            midline = MIDLINE_FENCE_NATS * closing.startswith("\n")
            cost = self._cost(count, recorded.get(added[0], UNSEEN_NATS) + midline)
            if cost < best.cost and self._closes(row, ids[:count], added):
                best = _Candidate(cost, count, (*added, eos))
        return best

    def _closes(self, row: int, ids: Sequence[int], added: Sequence[int]) -> bool:
        """Whether the row's answer `ids` ends with these; never if it stops inside a character."""
        decode = self._detokenizers[row].decode
        return not decode(ids).endswith("\ufffd") and boundaries.may_end(decode([*ids, *added]))

    def _eos_gap(self, gaps: list[float]) -> tuple[float, int]:
        """How far the best EOS lies under the best token, and its id."""
        gap = min(gaps[: len(self._eos)])
        return gap, self._eos[gaps.index(gap)]

    def _cost(self, tokens: int, gap: float) -> float:
        """The cost of an end after so many tokens."""
        if tokens not in self._base_costs:
            base = landing_cost(self.reward, tokens, self.max_new_tokens, gap=0)
            self._base_costs[tokens] = base
        return self._base_costs[tokens] + gap
