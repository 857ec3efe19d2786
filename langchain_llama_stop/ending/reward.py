"""The EOS reward: when an answer has to end, and how strongly its end is favoured.

Numbers only: no tokens, no text, no tensors. The logits processor and landing apply these rules.

The idea comes from a logits processor that multiplied the EOS score from 80% of the length on. It
ended every answer, most of them in the middle of a sentence. Here the text decides first: EOS is
rewarded only where the text may end, and more so near the limit. EOS is forced as soon as the next
sentence would not fit any more, judged by the sentences of the same answer.

Each constant changes how answers end. "Tuned" means chosen on every second prompt of the benchmark
(`make bench-termination ARGS="--half tune"`); the others have their reason beside them. To see what
a change of any of them does to the other half of the prompts, run `make bench-termination`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_args

from langchain_llama_stop.ending.boundaries import Boundary

# --- the landing zone

ZONE_SHARE = 0.6
"""Share of a small budget that the default zone takes. Tuned: one to two sentences."""
ZONE_TOKENS = (20, 48)
"""Least and most tokens of the default zone. Tuned: it need not grow with the budget."""

BEFORE_ZONE = 16
"""Tokens before the zone in which a true end still goes before a closing that is put in."""

# --- decided while the text comes: the logits processor

DECIDED = 1000.0
"""Nats of a decided token over the best other one: finite, but more than any temperature undoes."""
SENTENCES = 1.6
"""An answer continues if this many of its average sentences fit, for they vary. Tuned."""
CLOSING_TOKENS = 24
"""Tokens before the limit in which an open sentence is helped to close: about one sentence."""
CLOSING_NATS = (2.0, 3.0)
"""How far a terminator may lie under the best token: first, and at the limit. Tuned."""
PLANNED_TOKENS = 8
"""Tokens before the limit in which a closing is planned: fences, brackets and EOS fit. Tuned."""

# --- decided when the budget is used up: landing

HINDSIGHT = 2.0
"""The reward's factor in landing, where no end of the model's own is at stake. Answers use more
of their budgets and their tails cost the same as with 1: `make bench-termination`."""
LATER_NATS = 2.0
"""Of ends that cost at most this much more than the cheapest one the last is chosen."""
UNSEEN_NATS = 12.0
"""Assumed cost of a closing token whose score was not recorded."""
BROKEN_CODE_NATS = 6.0
"""Extra cost of a fence after a line of code that needs more, twice that within a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EosReward:
    """Options of the EOS reward.

    Attributes:
        start: Share of the token budget, 0 to 1, at which the landing zone begins; before it the
            model is left alone. None: 20 to 48 tokens before the limit, depending on the budget.
        strength: Nats added to the EOS score at a possible end when the budget is used up. The
            bonus grows linearly from 0 at the beginning of the zone.
        boundary: What counts as a possible end: "sentence" (also a complete list item, table row
            or code block), "line" or "paragraph"; also where a closing is put in.
        close_sentence: Whether tokens that close a sentence are raised when the limit is near and
            no end is in reach.
        force_eos: Whether the last token of the budget is EOS, whatever the text (in landing only
            where there is no end, and nothing can be closed).
        hindsight: Whether the end is chosen when the budget is used up, among all positions in the
            zone. Then an answer that the model ends by itself is never changed, and a stream holds
            back what may still be dropped. False: the end is decided while the text comes, as the
            logits processor has to do in plain `generate`, and nothing is held back.

    Raises:
        ValueError: If a value is outside its range.
    """

    start: float | None = None
    strength: float = 2.0
    boundary: Boundary = "sentence"
    close_sentence: bool = True
    force_eos: bool = True
    hindsight: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges."""
        for name in ("start", "strength"):
            value = getattr(self, name)
            if value is None and name == "start":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"`{name}` has to be a number, but is {value!r}.")
        if self.start is not None and not 0 <= self.start <= 1:
            raise ValueError(
                f"`start` has to be between 0 and 1, a share of the budget, but is {self.start!r}."
            )
        if not 0 <= self.strength < float("inf"):
            raise ValueError(
                f"`strength` has to be a finite number of nats from 0 on, but is {self.strength!r}."
            )
        if self.boundary not in get_args(Boundary):
            raise ValueError(
                f"`boundary` has to be one of {', '.join(get_args(Boundary))}, "
                f"but is {self.boundary!r}."
            )
        for name in ("close_sentence", "force_eos", "hindsight"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"`{name}` has to be True or False, but is {getattr(self, name)!r}."
                )

    @classmethod
    def parse(cls, value: object) -> EosReward | None:
        """Reads the `eos_reward` option.

        Args:
            value: An `EosReward`, True for the defaults, False or None for no reward, or a dict
                of the attributes.

        Returns:
            The options, or None for no reward.

        Raises:
            ValueError: If it is none of these, or a value is outside its range.
        """
        if value is None or isinstance(value, cls):
            return value
        if isinstance(value, bool):
            return cls() if value else None
        if isinstance(value, dict):
            known = [field.name for field in fields(cls)]
            if unknown := sorted(set(value) - set(known), key=str):
                raise ValueError(
                    f"`eos_reward` has no option {unknown[0]!r}. Known: {', '.join(known)}."
                )
            return cls(**value)
        raise ValueError(
            f"`eos_reward` has to be a bool or an EosReward, but is {value!r} "
            f"({type(value).__name__})."
        )

    def zone(self, max_new_tokens: int) -> int:
        """Number of answer tokens after which the landing zone begins.

        Args:
            max_new_tokens: The token budget.

        Returns:
            A count from 0 to `max_new_tokens - 1`: the last token is always inside.
        """
        if self.start is None:
            least, most = ZONE_TOKENS
            return max(0, max_new_tokens - min(max(int(ZONE_SHARE * max_new_tokens), least), most))
        return min(int(self.start * max_new_tokens), max_new_tokens - 1)


@dataclass(frozen=True, slots=True)
class Nudge:
    """What the scores of one row need at one step.

    Attributes:
        eos: Nats added to the EOS score.
        decided: Whether EOS is lifted above every other token.
        forced: Whether it is lifted although the text may not end here: on the last token of the
            budget.
        close: How many nats a token that closes the sentence may lie under the best token and
            still be preferred to it.
    """

    eos: float = 0.0
    decided: bool = False
    forced: bool = False
    close: float = 0.0


NONE = Nudge()


def nudge(
    reward: EosReward,
    generated: int,
    max_new_tokens: int,
    *,
    may_end: bool,
    sentence_tokens: float = 0.0,
) -> Nudge:
    """The score rule, for one row at one step.

    Args:
        reward: The options.
        generated: Tokens generated so far.
        max_new_tokens: The token budget.
        may_end: Whether the text so far may end here.
        sentence_tokens: Average length of this answer's sentences, in tokens; 0 if unknown.

    Returns:
        The change; `NONE` outside the landing zone.
    """
    left = max_new_tokens - generated  # tokens that may still come, the next one included
    if generated < reward.zone(max_new_tokens) or left < 1:
        return NONE
    if left == 1 and reward.force_eos:
        return Nudge(decided=True, forced=not may_end)
    if may_end:
        if left - 1 < SENTENCES * sentence_tokens:
            return Nudge(decided=True)
        return Nudge(eos=_eos_bonus(reward, generated, max_new_tokens))
    if reward.close_sentence and left <= CLOSING_TOKENS:
        first, last = CLOSING_NATS
        return Nudge(close=first + (last - first) * (1 - left / CLOSING_TOKENS))
    return NONE


def landing_cost(reward: EosReward, generated: int, max_new_tokens: int, *, gap: float) -> float:
    """The cost in nats of ending an answer at a position, once its budget is used up.

    Args:
        reward: The options.
        generated: Tokens before the position, which is inside the landing zone.
        max_new_tokens: The token budget.
        gap: How many nats the token that ends the answer lies under the best token there.
    """
    return gap - HINDSIGHT * _eos_bonus(reward, generated, max_new_tokens)


def _eos_bonus(reward: EosReward, generated: int, max_new_tokens: int) -> float:
    """The nats that EOS gains: from 0 at the beginning of the zone to the full strength."""
    zone = reward.zone(max_new_tokens)
    return reward.strength * (generated - zone) / max(1, max_new_tokens - zone)
