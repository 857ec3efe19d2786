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
from langchain_llama_stop.ending.closing import can_close, close_text, closes_block, line_breaks
from langchain_llama_stop.ending.closing_tokens import closing_tokens
from langchain_llama_stop.ending.full_stop import settles
from langchain_llama_stop.ending.reward import (
    BEFORE_ZONE,
    BROKEN_CODE_NATS,
    CLOSING_NATS,
    LATER_NATS,
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


class _End(NamedTuple):
    """A true end, or none."""

    rank: tuple[float, int]  # the lowest is the best
    tokens: int  # of the answer that stay


_NO_END = _End((math.inf, 1), 0)


class Landing:
    """Finds the best end of an answer while it is decoded.

    1. An answer whose text ends truly with its last token stays whole: EOS, which we set there,
       takes no token of the budget.
    2. A *true end* in the zone costs the gap of EOS there: how far EOS lies under the best token.
       The reward makes later ends cheaper than earlier ones, and of ends that cost nearly the same
       the last is taken.
    3. Without one, the last true end of the few tokens before the zone.
    4. Without one, a *closing* is put in where the words before it can end a sentence: a terminator
       that the model nearly chose, or what closes the open constructs, where the first token of
       that has the smallest gap.

    What follows a position is known by then, and counts: "12." is an end before " You have".

    Attributes:
        zone: Tokens of an answer after which the landing zone begins.
        first: Tokens after which positions are recorded: a little before the zone.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        prompt: Sequence[int],
        max_new_tokens: int,
        eos_token_ids: Sequence[int],
        reward: EosReward,
    ) -> None:
        """Starts the search for one answer.

        Args:
            tokenizer: The model's tokenizer.
            prompt: The ids of the prompt, which the text of the answer follows.
            max_new_tokens: The token budget.
            eos_token_ids: All EOS ids.
            reward: The options.
        """
        self.max_new_tokens, self.reward = max_new_tokens, reward
        self.zone = reward.zone(max_new_tokens)
        self.first = max(0, self.zone - BEFORE_ZONE)
        self._detokenizer = detokenizer(tokenizer).after(prompt)
        self._closing_tokens = closing_tokens(tokenizer)
        # The ids whose gaps are recorded: EOS ids (of equal ones the lowest wins), then the first
        # tokens of closings, terminators in front.
        self._eos = sorted(eos_token_ids)
        self._ids = [*self._eos, *self._closing_tokens.first]
        self._index = torch.tensor(self._ids)
        count = len(self._eos)
        self._terminators = slice(count, count + len(set(self._closing_tokens.terminators)))
        self._base_costs: dict[int, float] = {}  # of an end without a gap, by number of tokens
        self._newest = [math.inf]  # gaps of the newest position
        # The positions, how many of them are judged for good, and of the true ends there the
        # cheapest and the one to choose.
        self._positions: list[_Position] = []
        self._judged = 0
        self._cheapest = self._best = _NO_END

    def record(self, ids: Sequence[int], scores: torch.Tensor, best: float | None = None) -> None:
        """Records the position that the answer has reached.

        Args:
            ids: The ids of the answer so far.
            scores: Scores for the next token; -inf for forbidden tokens, (1, vocab).
            best: The highest score, if the caller has it.
        """
        self._index = self._index.to(scores.device)  # copied once
        highest = scores.amax() if best is None else best
        self._newest = (highest - scores[0].index_select(0, self._index)).float().tolist()
        self._positions_before(len(ids)).append(_Position(len(ids), self._newest))

    def safe_tokens(self, ids: Sequence[int]) -> int:
        """How many tokens of a growing answer landing keeps for sure.

        A stream asks this: it may give away the text of these. Before the zone that is all of them,
        as long as no true end has been seen that landing might go back to.

        Args:
            ids: The ids of the answer so far.
        """
        positions = self._positions
        # In order, each as soon as what follows it is known well enough to judge it for good.
        for position in positions[self._judged :]:
            end = _End(self._rank(ids, position), position.tokens)
            if self._is_preferred(end):
                ends = self._is_end(ids, position.tokens, final=False)
                if ends is None:
                    break
                if ends:
                    self._cheapest, self._best = min(self._cheapest, end), end
            self._judged += 1
        best, waiting = self._best, positions[self._judged :]
        seen = best is not _NO_END or (waiting and waiting[0].tokens < len(ids))
        return best.tokens if seen or len(ids) > self.zone else len(ids)

    def is_whole(self, ids: Sequence[int]) -> bool:
        """Whether an answer that has used up its budget ends truly with its last token."""
        text = self._detokenizer.decode(ids)
        if text.endswith("\ufffd") or self._eos_gap(self._newest)[0] == math.inf:
            return False
        return boundaries.may_end(text, self.reward.boundary, "")

    def end(self, ids: Sequence[int]) -> list[int] | None:
        """Ends an answer that has used up its budget.

        Args:
            ids: The ids of the answer, without EOS.

        Returns:
            The ids up to the best end, what closes it, and EOS; None if there is no end.
        """
        positions = self._positions_before(len(ids))
        ends = [_End(self._rank(ids, p), p.tokens) for p in positions[self._judged :]]
        for end in sorted(ends):
            if end >= self._cheapest:
                break
            if self._is_end(ids, end.tokens, final=True):
                self._cheapest = self._best = end
        for end in reversed(ends):
            if end.tokens <= self._best.tokens:
                break
            if self._is_preferred(end) and self._is_end(ids, end.tokens, final=True):
                self._best = end
        if self._best is not _NO_END:
            count = self._best.tokens
            gaps = next(p.gaps for p in positions if p.tokens == count)
            return [*ids[:count], self._eos_gap(gaps)[1]]
        if not self.reward.close_sentence:
            return None
        return self._add_terminator(ids) or self._close(ids)

    def force_eos(self, ids: Sequence[int]) -> list[int] | None:
        """Replaces an answer's last token by EOS; None if EOS is forbidden there."""
        gap, eos = self._eos_gap(self._newest)
        return [*ids[:-1], eos] if gap < math.inf else None

    def _positions_before(self, tokens: int) -> list[_Position]:
        """The positions; cleared if the answer has begun again, after more thinking."""
        if self._positions and self._positions[-1].tokens >= tokens:
            self._positions.clear()
            self._judged, self._cheapest, self._best = 0, _NO_END, _NO_END
        return self._positions

    def _is_preferred(self, end: _End) -> bool:
        """Whether a true end goes before those seen, all of which are earlier."""
        cost = end.rank[0]
        if cost == math.inf:  # before the zone, or none
            return end < self._best
        return cost <= self._cheapest.rank[0] + LATER_NATS

    def _rank(self, ids: Sequence[int], position: _Position) -> tuple[float, int]:
        """The rank of a true end at a position; that of no end if numbers and ids exclude it."""
        count, gaps = position
        gap = min(gaps[: len(self._eos)])
        if not count or gap == math.inf or not self._closing_tokens.may_end_after(ids[count - 1]):
            return _NO_END.rank
        # Before the zone the last end is the best one, and worse than any in the zone.
        return (self._cost(count, gap), count) if count >= self.zone else (math.inf, -count)

    def _is_end(self, ids: Sequence[int], count: int, *, final: bool) -> bool | None:
        """Whether the answer truly ends after so many tokens; None if later tokens may tell."""
        text, boundary = self._detokenizer.decode(ids[:count]), self.reward.boundary
        following = self._following(ids, text)
        in_doubt = following is None
        if boundary == "sentence":  # a newline comes before the others: it leaves no doubt
            in_doubt = in_doubt or not settles(following or "")
        else:
            following = None
        if final or not in_doubt:
            return boundaries.may_end(text, boundary, following)
        return None if boundaries.may_end(text, boundary, "\n") else False

    def _following(self, ids: Sequence[int], text: str) -> str | None:
        """What follows a text that begins the answer; None inside an unfinished character."""
        detokenizer = self._detokenizer
        whole = detokenizer.decode(ids)
        whole = whole[: detokenizer.settled(ids, whole)]
        return whole[len(text) :] if whole.startswith(text) else None

    def _add_terminator(self, ids: Sequence[int]) -> list[int] | None:
        """Ends the answer by the cheapest terminator that the model nearly chose."""
        candidates = []
        for count, gaps in self._positions:
            near = min(gaps[self._terminators], default=math.inf)
            fits = self.zone <= count and 0 < count <= self.max_new_tokens - 2
            if near <= CLOSING_NATS[1] and fits and self._eos_gap(gaps)[0] < math.inf:
                candidates.append((self._cost(count, near), count, gaps))
        for _, count, gaps in sorted(candidates):
            recorded = gaps[self._terminators]
            terminator = self._ids[self._terminators.start + recorded.index(min(recorded))]
            if self._closes(ids, count, [terminator]):
                return [*ids[:count], terminator, self._eos_gap(gaps)[1]]
        return None

    def _close(self, ids: Sequence[int]) -> list[int] | None:
        """Ends the answer by the cheapest closing of what is open in the zone."""
        best, closed = math.inf, None
        first = len(self._eos)
        # (cost of the cheapest closing there could be, tokens, gaps)
        bounds = [
            (self._cost(n, min(gaps[first:], default=math.inf)), n, gaps)
            for n, gaps in self._positions
            if n >= self.zone
        ]
        for bound, count, gaps in sorted(bounds, key=lambda entry: entry[:2]):
            if closed and bound >= best:
                break
            eos_gap, eos = self._eos_gap(gaps)
            text = self._detokenizer.decode(ids[:count])
            closing = close_text(text, "")
            added = self._closing_tokens.ids(closing)
            fits = count + len(added) + 1 <= self.max_new_tokens
            if not added or not fits or eos_gap == math.inf:
                continue
            recorded = dict(zip(self._ids, gaps, strict=True))
            if any(recorded.get(token) == math.inf for token in added):
                continue
            following = self._following(ids, text) or ""
            broken = BROKEN_CODE_NATS * line_breaks(closing, text, following)
            cost = self._cost(count, recorded.get(added[0], UNSEEN_NATS) + broken)
            if cost < best and self._closes(ids, count, added):
                best, closed = cost, [*ids[:count], *added, eos]
        return closed

    def _closes(self, ids: Sequence[int], count: int, added: Sequence[int]) -> bool:
        """Whether the answer, cut after so many tokens, reads as finished with the added ones."""
        decode = self._detokenizer.decode
        text, whole = decode(ids[:count]), decode([*ids[:count], *added])
        if text.endswith("\ufffd"):  # inside a character
            return False
        if [*ids[count : count + len(added)]] == [*added]:  # the model's own: no true end there
            return False
        following = self._following(ids, text) or ""
        closing = whole[len(text) :]
        if not can_close(text, closing, following):
            return False
        if self.reward.boundary == "sentence":
            return boundaries.may_end(whole, following="")
        # The newlines that follow here count; a block is a paragraph of its own.
        gap = following[: len(following) - len(following.lstrip())]
        gap = "\n\n" if closes_block(text, closing) else gap
        return boundaries.may_end(whole + gap, self.reward.boundary)

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
