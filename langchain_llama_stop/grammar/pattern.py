"""`pattern` of JSON schemas: ECMA 262's regular expressions, and Python's own spellings."""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata

from typing_extensions import override

from langchain_llama_stop.grammar.regex import (
    EMPTY,
    EVERY,
    LAST,
    Ranges,
    Regex,
    both,
    cat,
    chars,
    either,
    no,
    repeat,
    without,
)
from langchain_llama_stop.grammar.rewrite import quotient

_BEGIN, _END = 0x110000, 0x110001
"""Stand for the ends of a text while a pattern is read; no character is one of them."""
_CLASSES = {
    "d": ((48, 57),),
    "w": ((48, 57), (65, 90), (95, 95), (97, 122)),
    "s": ((9, 13), (32, 32), (160, 160), (0x1680, 0x1680), (0x2000, 0x200A), (0x2028, 0x2029),
          (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000)),
}  # fmt: skip
"""What belongs to a class by ECMA 262, Python and Rust (Pydantic) alike."""
_MORE = {
    "d": ("Nd",),
    "w": ("L", "N", "M", "Pc"),
    "s": (),
}
"""Categories of what belongs to it by one of them. `\\D`, `\\W` and `\\S` hold none of it."""
_SPACES = ((28, 31), (0x85, 0x85), (0xFEFF, 0xFEFF))
_LINE_ENDS = ((10, 10), (13, 13), (0x2028, 0x2029))
_CONTROLS = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11, "0": 0, "a": 7, "e": 27}
_QUANTIFIER = re.compile(r"(?:([*+?])|\{(?=\d|,\d)(\d*)(?:(,)(\d*))?\})[?+]?")
_CODE = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|[ux]\{([0-9a-fA-F]+)\}")
_CATEGORY = re.compile(r"\{(?:(?:gc|General_Category)=)?(\w+)\}")
_MOST_NESTED = 50
_LAST_WITH_CASES = 0x1E943
"""The last character of Unicode 16 that has an upper and a lower case."""


class UnknownPattern(ValueError):
    """A pattern with something that is not supported; its text says what."""


@functools.lru_cache(maxsize=256)
def parse_pattern(pattern: str) -> Regex:
    r"""Reads a pattern.

    Args:
        pattern: A regular expression; it may match anywhere in a text unless it is anchored.

    Returns:
        The expression of all texts in which it matches.

    Raises:
        UnknownPattern: If something in it is not supported (`\b`, back references, a look-around
            that something precedes).
    """
    reader = _Reader(pattern)
    anywhere = repeat(chars(EVERY))
    begin, end = chars([(_BEGIN, _BEGIN)]), chars([(_END, _END)])
    found = reader.alternatives(cat(anywhere, repeat(end, 0, 1)), 0)
    if reader.rest:
        raise UnknownPattern(f"an unmatched {reader.rest[0]!r}")
    # The text is BEGIN, its characters, END; `^` and `$` are these two.
    whole = either(found, cat(begin, anywhere, found))
    return quotient(whole.after(_BEGIN), _END)


def parse_expression(expression: str, flags: str = "") -> Regex:
    """Reads an expression that a whole text has to match, as Rust's `regex` spells it.

    Raises:
        UnknownPattern: As `parse_pattern`.
    """
    reader = _RustReader(f"(?{flags}){expression}" if flags else expression)
    found = reader.alternatives(EMPTY, 0)
    if reader.rest:
        raise UnknownPattern(f"an unmatched {reader.rest[0]!r}")
    return found


class _Reader:
    """Reads a pattern from left to right; `.` is no one of `line_ends`."""

    line_ends: Ranges = _LINE_ENDS

    def __init__(self, pattern: str) -> None:
        flags = re.match(r"\(\?([a-z]+)\)", pattern)
        self.flags = _known(flags[1]) if flags else ""
        self.rest = pattern[flags.end() :] if flags else pattern

    def take(self, text: str) -> bool:
        """Whether a text comes next, which is read then."""
        found = self.rest.startswith(text)
        if found:
            self.rest = self.rest[len(text) :]
        return found

    def alternatives(self, after: Regex, depth: int) -> Regex:
        """Alternatives up to a bracket or the end, each followed by `after`."""
        if depth > _MOST_NESTED:
            raise UnknownPattern("more than 50 nested groups")
        options = [self.sequence(after, depth)]
        while self.take("|"):
            options.append(self.sequence(after, depth))
        return either(*options)

    def sequence(self, after: Regex, depth: int) -> Regex:
        """Terms one after the other, then `after`."""
        terms: list[tuple[str, Regex]] = []
        while self.rest and self.rest[0] not in "|)":
            terms.append(self.term(depth))
        for kind, term in reversed(terms):
            if kind == "term":
                after = cat(term, after)
            else:  # a look-ahead sees the rest of the text
                ahead = cat(term, repeat(chars([*EVERY, (_END, _END)])))
                after = both(ahead if kind == "ahead" else no(ahead), after)
        return after

    def term(self, depth: int) -> tuple[str, Regex]:
        """One term, with its quantifier."""
        for sign, kind in (("(?=", "ahead"), ("(?!", "not")):
            if self.take(sign):
                if depth:
                    raise UnknownPattern("a look-ahead inside a group")
                return kind, self.closed(depth)
        part = self.atom(depth)
        while quantifier := _QUANTIFIER.match(self.rest):
            self.rest = self.rest[quantifier.end() :]
            sign, fewest, comma, most = quantifier.groups()
            if sign:
                part = repeat(part, *{"*": (0, None), "+": (1, None), "?": (0, 1)}[sign])
            else:
                first = int(fewest or 0)  # `{,3}` is Python's
                last = int(most) if most else (None if comma else first)
                if last is not None and last < first:
                    raise UnknownPattern(f"the bounds of {quantifier[0]!r}")
                part = repeat(part, first, last)
        return "term", part

    def closed(self, depth: int) -> Regex:
        """A group up to its bracket."""
        part = self.alternatives(EMPTY, depth + 1)
        if not self.take(")"):
            raise UnknownPattern("an unmatched '('")
        return part

    def atom(self, depth: int) -> Regex:
        """One character, class, group or anchor."""
        if self.take("("):
            if name := re.match(r"\?(?:([a-z]*):|P?<(?![=!])\w+>)", self.rest):
                self.rest = self.rest[name.end() :]
                before, self.flags = self.flags, self.flags + _known(name[1] or "")
                part = self.closed(depth)
                self.flags = before
                return part
            elif self.rest.startswith("?"):
                raise UnknownPattern(f"the group '({self.rest[:3]}'")
            return self.closed(depth)
        if self.take("["):
            return self.one_of(self.char_class())
        first, self.rest = self.rest[0], self.rest[1:]
        if first == "^":
            return chars([(_BEGIN, _BEGIN)])
        if first == "$":
            return chars([(_END, _END)])
        if first == ".":
            return chars(EVERY) if "s" in self.flags else chars(without(EVERY, self.line_ends))
        if first in "*+?":
            raise UnknownPattern(f"a {first!r} after nothing")
        if first != "\\":
            return self.one_of(((ord(first), ord(first)),))
        if self.take("A"):
            return chars([(_BEGIN, _BEGIN)])
        if self.take("Z") or self.take("z"):
            return chars([(_END, _END)])
        return self.one_of(self.escape(inside=False))

    def one_of(self, ranges: Ranges) -> Regex:
        """One character of some ranges, of either case under the flag `i`."""
        if "i" in self.flags:
            others = [
                (other, other)
                for low, high in ranges
                for point in range(low, min(high, low + 500) + 1)
                for other in _cases().get(_folded(point), ())
            ]
            return chars([*ranges, *others])
        return chars(ranges)

    def named_class(self, sign: str, wide: bool) -> Ranges:
        r"""The characters of `\d`, `\w` or `\s`, by one dialect or by any."""
        return _wide(sign) if wide else _CLASSES[sign]

    def escape(self, inside: bool, negated: bool = False) -> Ranges:
        """What follows a backslash, maybe in a negated class."""
        if not self.rest:
            raise UnknownPattern("a '\\' at the end")
        if code := _CODE.match(self.rest):
            self.rest = self.rest[code.end() :]
            point = int(code[1] or code[2] or code[3], 16)
            low = re.match(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})", self.rest)
            if 0xD800 <= point < 0xDC00 and low:  # the two halves of one character
                self.rest = self.rest[low.end() :]
                point = 0x10000 + (point - 0xD800 << 10) + int(low[1], 16) - 0xDC00
            if 0xD800 <= point < 0xE000:
                raise UnknownPattern(f"half of a character, {code[0]!r}")
            return ((point, point),)
        sign, self.rest = self.rest[0], self.rest[1:]
        if sign in "pP" and (
            name := re.match(r"\{(?:(?:gc|General_Category)=)?(\w+)\}", self.rest)
        ):
            self.rest = self.rest[name.end() :]
            found = _category(name[1])
            return found if sign == "p" else without(EVERY, found)
        if (kind := sign.lower()) in _CLASSES:
            found = self.named_class(kind, sign.islower() == negated)
            return found if sign.islower() else without(EVERY, found)
        if inside and sign == "b":
            return ((8, 8),)
        if sign in _CONTROLS:
            return ((_CONTROLS[sign], _CONTROLS[sign]),)
        if sign == "c" and self.rest[:1].isalpha():
            point, self.rest = ord(self.rest[0]) % 32, self.rest[1:]
            return ((point, point),)
        if sign.isalnum():
            raise UnknownPattern(f"'\\{sign}'")
        return ((ord(sign), ord(sign)),)

    def char_class(self) -> Ranges:
        """A class after its opening bracket."""
        negated, ranges = self.take("^"), list[tuple[int, int]]()
        if not negated and self.rest[:1] == "]" and "]" in self.rest[1:]:
            ranges += self.class_atom(negated)  # as Python reads it: elsewhere nothing would match
        while not self.take("]"):
            if not self.rest:
                raise UnknownPattern("an unmatched '['")
            first = self.class_atom(negated)
            low = first[0][0] if len(first) == 1 else -1
            if self.rest[:1] == "-" and self.rest[1:2] not in ("]", "") and first == ((low, low),):
                self.take("-")
                last = self.class_atom(negated)
                if len(last) != 1 or last[0][0] != last[0][1] or last[0][0] < low:
                    raise UnknownPattern("a range in brackets that goes backwards")
                first = ((low, last[0][1]),)
            ranges += first
        return without(EVERY, ranges) if negated else tuple(ranges)

    def class_atom(self, negated: bool) -> Ranges:
        """One character or escape in a class."""
        first, self.rest = self.rest[0], self.rest[1:]
        if first == "\\":
            return self.escape(inside=True, negated=negated)
        return ((ord(first), ord(first)),)


def _wide(name: str) -> Ranges:
    """What belongs to the class `d`, `w` or `s` by ECMA 262, Python or Rust."""
    more = (part for category in _MORE[name] for part in _category(category))
    return (*_CLASSES[name], *(_SPACES if name == "s" else ()), *more)


class _RustReader(_Reader):
    """Reads what Rust's `regex` reads, where classes are those of Unicode."""

    line_ends = ((10, 10),)

    @override
    def named_class(self, sign: str, wide: bool) -> Ranges:
        if sign == "s":
            return (*without(_CLASSES["s"], ((0xFEFF, 0xFEFF),)), (0x85, 0x85))
        names = ("Nd",) if sign == "d" else ("L", "M", "Nl", "Nd", "Pc")
        return tuple(r for name in names for r in _category(name))


def _known(flags: str) -> str:
    """Flags, if all of them are known."""
    if set(flags) - set("isu"):
        raise UnknownPattern(f"the flags (?{flags})")
    return flags


def _folded(point: int) -> int:
    """The character that stands for a character in all of its cases."""
    upper = chr(point).upper()
    lower = (upper if len(upper) == 1 else chr(point)).lower()
    return ord(lower) if len(lower) == 1 else point


@functools.cache
def _cases() -> dict[int, list[int]]:
    """All cases of each character that has several, by the one that stands for them."""
    found: dict[int, list[int]] = {}
    for point in range(_LAST_WITH_CASES + 1):
        found.setdefault(_folded(point), []).append(point)
    return {folded: points for folded, points in found.items() if len(points) > 1}


@functools.lru_cache(maxsize=64)
def _category(name: str) -> Ranges:
    """The characters of a general category of Unicode, such as `L` or `Lu`."""
    names = {"Letter": "L", "Number": "N", "Punctuation": "P", "Symbol": "S", "Separator": "Z"}
    prefix = names.get(name, name)
    found = [r for category, ranges in _categories().items() if category.startswith(prefix)
             for r in ranges]  # fmt: skip
    if not found:
        raise UnknownPattern(f"the class \\p{{{name}}}")
    return tuple(sorted(found))


@functools.cache
def _categories() -> dict[str, list[tuple[int, int]]]:
    """The ranges of characters of each category of Unicode."""
    found: dict[str, list[tuple[int, int]]] = {}
    first = 0
    for category, same in itertools.groupby(map(unicodedata.category, map(chr, range(LAST + 1)))):
        size = sum(1 for _ in same)
        if category != "Cs":
            found.setdefault(category, []).append((first, first + size - 1))
        first += size
    return found
