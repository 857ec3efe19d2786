"""Regular expressions as automata that are worked out while they are walked.

A state is an expression, and the state after a character is its derivative: what may follow that
character (Brzozowski, "Derivatives of Regular Expressions", 1964). So `&` and `~` are as simple as
`|`, and `.{0,50}foo.{0,50}` costs only the states that an answer passes through; the libraries that
build a whole automaton first never end there.
"""

from __future__ import annotations

import heapq
import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import reduce
from typing import Any
from weakref import WeakValueDictionary

from typing_extensions import override

Ranges = tuple[tuple[int, int], ...]
"""Characters, as sorted ranges of code points that do not touch; both ends belong to a range."""

LAST = 0x10FFFF
EVERY: Ranges = ((0, 0xD7FF), (0xE000, LAST))
"""All characters. UTF-8 has none for the code points between."""
_MOST_STATES = 5_000
"""States that a search for a shortest text may visit. Not tuned: patterns that people write need
some hundreds; a search that reaches this takes a second."""
_READABLE = tuple(map(ord, "a0A"))
"""Characters that stand for their class in a shortest text, rather than its first."""
_UNKNOWN = b"?"


_numbers = itertools.count()


class Regex:
    """A state: a regular expression of characters. Equal expressions are one object.

    Attributes:
        nullable: Whether the empty text matches.
        least: No match has fewer bytes of UTF-8.
        cuts: Code points at which classes of characters begin that lead to one state each.
        is_large: Whether the search for the shortest text was given up.
    """

    is_large: bool = False
    nullable: bool = False
    least: int = 0
    cuts: tuple[int, ...] = ()

    def __init__(self) -> None:
        """Begins with nothing known."""
        self._number = next(_numbers)
        self._after: dict[int, Regex] = {}
        self._shortest: bytes | None = _UNKNOWN

    def derive(self, point: int) -> Regex:
        """The state after a character."""
        raise NotImplementedError

    def lark(self) -> str:
        """The expression as llguidance writes it between slashes."""
        raise NotImplementedError

    def after(self, point: int) -> Regex:
        """The state after a character, remembered."""
        index = bisect_right(self.cuts, point)
        if index not in self._after:
            self._after[index] = self.derive(point)
        return self._after[index]

    def matches(self, text: str) -> bool:
        """Whether a whole text matches."""
        state = self
        for character in text:
            state = state.after(ord(character))
        return state.nullable

    def following(self, low: int = 0, high: int = LAST) -> Iterator[tuple[int, Regex]]:
        """One character of each class between two code points, and the state after it."""
        for point in one_of_each([self], low, high):
            state = self.after(point)
            if state is not NOTHING:
                yield point, state

    @property
    def shortest(self) -> bytes | None:
        """A text of the fewest bytes that matches; None if there is none, or none is found."""
        if self._shortest is _UNKNOWN:
            self._shortest = self._search()
        return self._shortest

    def _search(self) -> bytes | None:
        paths: list[tuple[int, int, bytes, Regex]] = [(self.least, 0, b"", self)]
        number, seen = itertools.count(1), set[int]()
        while paths:
            _, _, text, state = heapq.heappop(paths)
            if state.nullable:
                return text
            if id(state) in seen or len(seen) > _MOST_STATES:
                continue
            seen.add(id(state))
            for point, after in state.following():
                if id(after) not in seen:
                    longer = text + chr(point).encode()
                    rank = len(longer) + after.least
                    heapq.heappush(paths, (rank, next(number), longer, after))
        self.is_large = len(seen) > _MOST_STATES
        return None


_known: WeakValueDictionary[tuple[object, ...], Regex] = WeakValueDictionary()


def one(kind: Any, *parts: Any) -> Regex:
    """The one object of an expression."""
    key = (kind, *parts)
    found = _known.get(key)
    if found is None:
        found = _known[key] = kind(*parts)
    return found


class Chars(Regex):
    """One character of some ranges."""

    def __init__(self, ranges: Ranges) -> None:
        """Takes its parts."""
        super().__init__()
        self.ranges = ranges
        first = ranges[0][0] if ranges else 1 << 30
        self.least = 1 + (first >= 0x80) + (first >= 0x800) + (first >= 0x10000)
        self.cuts = tuple(c for low, high in ranges for c in (low, high + 1))

    @override
    def derive(self, point: int) -> Regex:
        return EMPTY if any(low <= point <= high for low, high in self.ranges) else NOTHING

    @override
    def lark(self) -> str:
        points = [rf"\x{{{a:X}}}-\x{{{b:X}}}" if a < b else rf"\x{{{a:X}}}" for a, b in self.ranges]
        return f"[{''.join(points)}]"


class Empty(Regex):
    """The empty text alone."""

    nullable = True

    @override
    def derive(self, point: int) -> Regex:
        return NOTHING

    @override
    def lark(self) -> str:
        return ""


class Cat(Regex):
    """One expression, then another."""

    def __init__(self, first: Regex, rest: Regex) -> None:
        """Takes its parts."""
        super().__init__()
        self.first, self.rest = first, rest
        self.nullable = first.nullable and rest.nullable
        self.least = first.least + rest.least
        self.cuts = _cuts([first, rest] if first.nullable else [first])

    @override
    def derive(self, point: int) -> Regex:
        state = cat(self.first.after(point), self.rest)
        return either(state, self.rest.after(point)) if self.first.nullable else state

    @override
    def lark(self) -> str:
        return self.first.lark() + self.rest.lark()


class Alt(Regex):
    """One of several expressions."""

    def __init__(self, *options: Regex) -> None:
        """Takes its parts."""
        super().__init__()
        self.options = options
        self.nullable = any(o.nullable for o in options)
        self.least = min(o.least for o in options)
        self.cuts = _cuts(options)

    @override
    def derive(self, point: int) -> Regex:
        return either(*(o.after(point) for o in self.options))

    @override
    def lark(self) -> str:
        return f"(?:{'|'.join(o.lark() for o in self.options)})"


class And(Regex):
    """What matches several expressions. llguidance writes it outside of slashes only."""

    def __init__(self, *parts: Regex) -> None:
        """Takes its parts."""
        super().__init__()
        self.parts = parts
        self.nullable = all(p.nullable for p in parts)
        self.least = max(p.least for p in parts)
        self.cuts = _cuts(parts)

    @override
    def derive(self, point: int) -> Regex:
        return both(*(p.after(point) for p in self.parts))


class Not(Regex):
    """What does not match an expression."""

    def __init__(self, part: Regex) -> None:
        """Takes its parts."""
        super().__init__()
        self.part, self.nullable, self.cuts = part, not part.nullable, part.cuts

    @override
    def derive(self, point: int) -> Regex:
        return no(self.part.after(point))


class Repeat(Regex):
    """An expression some times over; `most` None is no bound."""

    def __init__(self, part: Regex, fewest: int, most: int | None) -> None:
        """Takes its parts."""
        super().__init__()
        self.part, self.fewest, self.most = part, fewest, most
        self.nullable = fewest == 0 or part.nullable
        self.least = fewest * part.least
        self.cuts = part.cuts

    @override
    def derive(self, point: int) -> Regex:
        most = None if self.most is None else self.most - 1
        return cat(self.part.after(point), repeat(self.part, max(self.fewest - 1, 0), most))

    @override
    def lark(self) -> str:
        most = "" if self.most is None else self.most
        return f"(?:{self.part.lark()}){{{self.fewest},{most}}}"


def _cuts(parts: Iterable[Regex]) -> tuple[int, ...]:
    return tuple(sorted({c for part in parts for c in part.cuts}))


NOTHING: Regex = Chars(())
EMPTY: Regex = Empty()


def chars(ranges: Iterable[tuple[int, int]]) -> Regex:
    """One character of some ranges of code points, in any order."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    found: Regex = one(Chars, tuple(merged)) if merged else NOTHING
    return found


def literal(text: str) -> Regex:
    """A text itself."""
    return cat(*(chars([(ord(c), ord(c))]) for c in text))


def cat(*parts: Regex) -> Regex:
    """One expression after the other."""

    def joined(rest: Regex, first: Regex) -> Regex:
        if first is NOTHING or rest is NOTHING:
            return NOTHING
        if first is EMPTY or rest is EMPTY:
            return rest if first is EMPTY else first
        if isinstance(first, Cat):
            return cat(first.first, cat(first.rest, rest))
        return one(Cat, first, rest)

    return reduce(joined, reversed(parts), EMPTY)


def either(*options: Regex) -> Regex:
    """One of several expressions."""
    return _joined(Alt, options, NOTHING, ANYTHING)


def both(*parts: Regex) -> Regex:
    """What matches all of several expressions."""
    return _joined(And, parts, ANYTHING, NOTHING)


def _joined(kind: Any, parts: Iterable[Regex], neutral: Regex, final: Regex) -> Regex:
    """Joins parts without repeating any; `neutral` says nothing, `final` decides."""
    flat: dict[Regex, None] = {}
    for part in parts:
        flat.update(
            dict.fromkeys(
                getattr(part, "options" if kind is Alt else "parts", (part,))
                if isinstance(part, kind)
                else (part,)
            )
        )
    flat.pop(neutral, None)
    if final in flat:
        return final
    if len(flat) < 2:
        return next(iter(flat), neutral)
    return one(kind, *sorted(flat, key=lambda part: part._number))


def no(part: Regex) -> Regex:
    """What does not match an expression."""
    if isinstance(part, Not):
        return part.part
    if part is NOTHING:
        return ANYTHING
    if part is ANYTHING:
        return NOTHING
    return one(Not, part)


def repeat(part: Regex, fewest: int = 0, most: int | None = None) -> Regex:
    """An expression some times over, without bound if `most` is None."""
    if most is not None and most < fewest:
        return NOTHING
    if most == 0 or part is EMPTY or (part is NOTHING and not fewest):
        return EMPTY
    if fewest == most == 1 or part is NOTHING:
        return part
    if part.nullable:
        fewest = 0
    return one(Repeat, part, fewest, most)


ANYTHING: Regex = one(Repeat, chars(EVERY), 0, None)


def one_of_each(states: Iterable[Regex], low: int = 0, high: int = LAST) -> Iterator[int]:
    """One character of each class that some states tell apart, between two code points."""
    cuts = sorted({c for state in states for c in state.cuts if low < c <= high})
    for start, end in itertools.pairwise([low, *cuts, high + 1]):
        first = 0xE000 if 0xD800 <= start < 0xE000 else start
        if first < end:
            yield next((c for c in _READABLE if first <= c < end), first)


def without(ranges: Iterable[tuple[int, int]], others: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges less others."""
    found, taken = list[tuple[int, int]](), sorted(others)
    for low, high in ranges:
        for first, last in taken:
            if low < first <= high:
                found.append((low, first - 1))
            if first <= high:
                low = max(low, last + 1)
        if low <= high:
            found.append((low, high))
    return tuple(found)
