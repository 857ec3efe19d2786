"""The EOS reward: when an answer has to end, and how strongly ending is favoured.

Numbers only: neither tokens nor text nor tensors. Whoever holds these (a logits processor, the
search for an end in hindsight) asks here and applies what it is told.

The idea comes from a logits processor that multiplied the EOS score from 80% of the length on. It
ended every answer, most of them in the middle of a sentence. Here a place is looked for first: EOS
is rewarded only where the text may end, the more the nearer the limit is, and it is decided when
the next sentence, judged by the sentences of this very answer, would not fit any more.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import get_args

from langchain_llama_stop.ending.boundaries import Boundary

DECIDED = 1000.0
"""Nats of a decided token over the best other one: finite, beyond any temperature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EosReward:
    """Options of the EOS reward.

    Attributes:
        start: Share of the token budget, 0 to 1, at which the landing zone begins. Before it
            the model is left alone. None: 20 to 48 tokens before the limit, by the budget.
        strength: Nats added to the EOS score at a possible end when the budget is used up; it
            grows linearly from 0 at the beginning of the zone.
        boundary: What counts as a possible end: "sentence" (also a list item, table row or code
            block that is complete), "line" or "paragraph".
        close_sentence: Whether sentence-closing tokens are raised when the limit is near and no
            end is in reach.
        force_eos: Whether the last token of the budget is EOS, whatever the text.
        hindsight: Whether the place is chosen when the budget is used up, among all places in
            the zone, so that what the model ends itself is never changed; a stream then holds
            back what may still be dropped. False: decided as the text comes, which is how the
            logits processor has to work in plain `generate`, and nothing is held back.

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
            ValueError: If it is none of these.
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
        """Number of tokens after which the landing zone begins.

        Args:
            max_new_tokens: The token budget.

        Returns:
            A count from 0 to `max_new_tokens - 1`: the last token is always inside.
        """
        if self.start is None:
            # One to two sentences: what landing takes does not grow with the budget.
            return max(0, max_new_tokens - min(max(int(0.6 * max_new_tokens), 20), 48))
        return min(int(self.start * max_new_tokens), max_new_tokens - 1)


@dataclass(frozen=True, slots=True)
class Nudge:
    """What the scores of one row need at one step.

    Attributes:
        eos: Nats added to the EOS score.
        decided: Whether EOS is lifted above every other token.
        forced: Whether that is done where the text may not end, on the last token of the budget.
        close: Nats by which a token that closes the sentence may lie under the best one and is
            still preferred to it.
    """

    eos: float = 0.0
    decided: bool = False
    forced: bool = False
    close: float = 0.0


NONE = Nudge()
SENTENCES = 1.6
"""An answer goes on where this many of its typical sentences fit: they vary in length."""
CLOSING_TOKENS = 24
"""Tokens before the limit in which an open sentence is helped to its end."""
HINDSIGHT = 2.0
"""In hindsight the reward counts double: no end of the model's own is at stake any more."""
CLOSING_NATS = (2.0, 3.0)
"""What that help may cost, at the beginning and at the end of these tokens."""


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
        sentence_tokens: Length of a typical sentence of this answer, in tokens; 0 if unknown.

    Returns:
        What to do; `NONE` outside the landing zone.
    """
    zone = reward.zone(max_new_tokens)
    left = max_new_tokens - generated  # tokens that may still come, the next one included
    if generated < zone or left < 1:
        return NONE
    if left == 1 and reward.force_eos:
        return Nudge(decided=True, forced=not may_end)
    if may_end:
        if left - 1 < SENTENCES * sentence_tokens:
            return Nudge(decided=True)
        return Nudge(eos=_reward(reward, generated, max_new_tokens))
    if reward.close_sentence and left <= CLOSING_TOKENS:
        first, last = CLOSING_NATS
        return Nudge(close=first + (last - first) * (1 - left / CLOSING_TOKENS))
    return NONE


def landing_cost(reward: EosReward, generated: int, max_new_tokens: int, *, gap: float) -> float:
    """What it costs to have ended an answer at some place, seen from the end of its budget.

    Args:
        reward: The options.
        generated: Tokens before the place; inside the landing zone.
        max_new_tokens: The token budget.
        gap: Nats by which what ends the answer lies under the model's favourite there.

    Returns:
        The gap less the reward, which counts double here, in nats.
    """
    return gap - HINDSIGHT * _reward(reward, generated, max_new_tokens)


def _reward(reward: EosReward, generated: int, max_new_tokens: int) -> float:
    """The nats that EOS gains: from 0 at the beginning of the zone to the full strength."""
    zone = reward.zone(max_new_tokens)
    return reward.strength * (generated - zone) / max(1, max_new_tokens - zone)
