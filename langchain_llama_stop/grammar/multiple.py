"""`multipleOf` of JSON schemas, as expressions of decimal numbers without exponent."""

from __future__ import annotations

from decimal import Decimal
from math import gcd

from typing_extensions import override

from langchain_llama_stop.grammar.regex import NOTHING, Regex, one

_MOST_STATES = 5_000
"""The largest multiple that llguidance counts: it has states for all remainders, and gave up in
the middle of answers at 9,973."""
_MOST_ENDINGS = 1000
"""Endings of numbers that are written one by one."""


class Multiple(Regex):
    """A decimal number without exponent that is a multiple of `modulus / 10**places`.

    `rest` is the remainder of the digits so far; `place` counts decimal places, None before the
    point.
    """

    cuts = tuple(ord(c) + i for c in "-./0123456789" for i in (0, 1))

    def __init__(self, modulus: int, places: int, rest: int, place: int | None, least: int) -> None:
        """Takes its parts."""
        super().__init__()
        self.modulus, self.places, self.rest, self.place = modulus, places, rest, place
        self.least = least
        self.nullable = least == 0

    @override
    def derive(self, point: int) -> Regex:
        if chr(point) == "-":
            return self
        if chr(point) == "." and self.place is None:
            return multiple_of(self.modulus, self.places, self.rest, 0)
        if not 48 <= point <= 57 or (self.place == self.places and point != 48):
            return NOTHING
        if self.place == self.places:
            return self
        place = None if self.place is None else self.place + 1
        return multiple_of(self.modulus, self.places, self.rest * 10 + point - 48, place)


def multiple_of(modulus: int, places: int, rest: int = 0, place: int | None = None) -> Regex:
    """A number without exponent that is a multiple of `modulus / 10**places`, given as digits."""
    rest %= modulus
    least = _missing(modulus, places, rest, place)
    if least is None:
        return NOTHING
    found: Regex = one(Multiple, modulus, places, rest, place, least)
    return found


def _missing(modulus: int, places: int, rest: int, place: int | None) -> int | None:
    """The fewest characters that complete a multiple; None if nothing does."""
    left, counts = places - (place or 0), list[int]()
    for decimals in range(left + 1):
        # With some more digits, some of them decimals, the number has to be a multiple of `step`.
        step = modulus // gcd(10 ** (left - decimals), modulus)
        most = decimals if place is not None else decimals + len(str(step))
        counts += [
            digits + (decimals > 0 and place is None)
            for digits in range(decimals, most + 1)
            if -(rest * 10**digits) % step < 10**digits
        ]
    return min(counts, default=None)


def endings(modulus: int, places: int) -> list[str] | None:
    """The last digits of all multiples, or last decimal places, if they decide, and are few."""
    for size in range(1 + (places or len(str(modulus)) + 1)):
        if 10**size % modulus == 0 and 10**size // modulus <= _MOST_ENDINGS:
            return [f"{n:0{size}}" if size else "" for n in range(0, 10**size, modulus)]
    return None


def in_digits(multiple: Decimal, integer: bool) -> tuple[int, int]:
    """The modulus and the number of decimal places of a multiple; none for integers."""
    places = max(-int(multiple.normalize().as_tuple().exponent), 0)
    modulus = int(multiple * 10**places)
    return (modulus // gcd(modulus, 10**places), 0) if integer else (modulus, places)


def is_enforceable(multiple: Decimal, integer: bool) -> bool:
    """Whether decoding can hold numbers to a multiple."""
    modulus, places = in_digits(multiple, integer)
    if endings(modulus, places) is not None:
        return True
    number, scale = float(multiple), 0  # as llguidance reads it: 0.07 * 10 is no 0.7 there
    while number != int(number) and scale <= places:
        number, scale = number * 10, scale + 1
    return modulus <= _MOST_STATES and (not places or number == modulus)
