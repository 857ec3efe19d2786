"""Expressions made of others: of other characters, without an end, as llguidance writes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from langchain_llama_stop.grammar.multiple import Multiple
from langchain_llama_stop.grammar.regex import (
    ANYTHING,
    LAST,
    NOTHING,
    Alt,
    And,
    Cat,
    Chars,
    Not,
    Ranges,
    Regex,
    Repeat,
    both,
    cat,
    chars,
    either,
    no,
    repeat,
)


def quotient(part: Regex, last: int) -> Regex:
    """All texts that match once the code point `last`, which is no character, follows them."""
    if isinstance(part, Chars):
        return part.after(last)
    if isinstance(part, Alt):
        return either(*(quotient(o, last) for o in part.options))
    if isinstance(part, And):
        return both(*(quotient(p, last) for p in part.parts))
    if isinstance(part, Not):
        return no(quotient(part.part, last))
    if isinstance(part, Cat):
        ends = quotient(part.first, last) if part.rest.nullable else NOTHING
        return either(ends, cat(plain(part.first), quotient(part.rest, last)))
    if isinstance(part, Repeat):
        most = None if part.most is None else part.most - 1
        before = repeat(plain(part.part), max(part.fewest - 1, 0), most)
        return cat(before, quotient(part.part, last))
    return NOTHING


def map_chars(part: Regex, change: Callable[[Ranges], Regex]) -> Regex:
    """An expression with `change(ranges)` in place of each character."""
    again = partial(map_chars, change=change)
    if isinstance(part, Chars):
        return change(part.ranges) if part.ranges else part
    if isinstance(part, Alt):
        return either(*map(again, part.options))
    if isinstance(part, And):
        return both(*map(again, part.parts))
    if isinstance(part, Not):
        return both(again(ANYTHING), no(again(part.part)))
    if isinstance(part, Cat):
        return cat(again(part.first), again(part.rest))
    if isinstance(part, Repeat):
        return repeat(again(part.part), part.fewest, part.most)
    return part


def plain(part: Regex) -> Regex:
    """An expression without code points that are no characters."""
    return map_chars(part, lambda ranges: chars(r for r in ranges if r[1] <= LAST))


def detour(part: Regex) -> int:
    """The most bytes by which one character may lengthen the shortest way to the end of a text.

    Under `&` and `~` it is an estimate.
    """
    longest = 0
    while isinstance(part, Cat):
        longest, part = max(longest, detour(part.first)), part.rest
    if isinstance(part, Alt):
        longest = max(longest, *(o.least + detour(o) - part.least for o in part.options))
    elif isinstance(part, And):
        longest = max(longest, sum(map(detour, part.parts)))
    elif isinstance(part, Not):
        longest = max(longest, detour(part.part))
    elif isinstance(part, Repeat):
        once = 0 if part.fewest == part.most else part.part.least
        longest = max(longest, once + detour(part.part))
    elif isinstance(part, Multiple):
        longest = max(longest, len(str(part.modulus)) + part.places)
    return longest


def lark_terminal(part: Regex) -> str:
    """An expression as the right side of a terminal's definition in llguidance's Lark form."""
    if isinstance(part, And):
        return f"({' & '.join(map(lark_terminal, part.parts))})"
    if isinstance(part, Not):
        return f"(/{ANYTHING.lark()}/ & ~{lark_terminal(part.part)})"
    try:
        return f"/{part.lark()}/"
    except NotImplementedError:
        if not isinstance(part, Alt):
            raise
        return f"({' | '.join(map(lark_terminal, part.options))})"


def alternatives_of(part: Regex) -> tuple[Regex, ...]:
    """The alternatives of an expression, where `&` or `~` is in one of them; else none."""
    mixed = isinstance(part, Alt) and any(isinstance(o, And | Not) for o in part.options)
    return part.options if mixed and isinstance(part, Alt) else ()


def parts_of(part: Regex) -> list[tuple[bool, Regex]]:
    """The parts that `&` joins, each with whether `~` stands before it; none without either."""
    parts = part.parts if isinstance(part, And) else [part] if isinstance(part, Not) else []
    return [(True, p.part) if isinstance(p, Not) else (False, p) for p in parts]
