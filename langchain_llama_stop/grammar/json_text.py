"""JSON's strings and numbers as expressions, with all that schemas ask of them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

from langchain_llama_stop.grammar.multiple import endings, in_digits, multiple_of
from langchain_llama_stop.grammar.pattern import parse_pattern
from langchain_llama_stop.grammar.regex import (
    ANYTHING,
    EMPTY,
    EVERY,
    NOTHING,
    Ranges,
    Regex,
    both,
    cat,
    chars,
    either,
    literal,
    no,
    repeat,
    without,
)
from langchain_llama_stop.grammar.rewrite import alternatives_of, map_chars, parts_of
from langchain_llama_stop.grammar.terminal import Terminal, regex_terminal

MOST_DIGITS = 64
"""Most digits before and after the point of a number. Not tuned: nobody needs more, and a model in
a loop writes digits until its budget is spent."""
_LIMIT = Decimal(10) ** MOST_DIGITS
_MOST_OF_MULTIPLE = 10**15 - 1
"""The largest number with `multipleOf`: llguidance computes with floats there."""
_MOST_INDENTED = 24  # spaces; not tuned
_QUOTE = literal('"')
_SHORT_ESCAPES = {'"': '"', "\\": "\\", "\b": "b", "\f": "f", "\n": "n", "\r": "r", "\t": "t"}
_ESCAPED = ((0, 31), (34, 34), (92, 92))
_DIGIT = chars([(48, 57)])
_POINT = literal(".")


def _hex(low: str) -> Regex:
    return chars([(ord(c), ord(c)) for digit in low for c in {digit.lower(), digit.upper()}])


_HEX = _hex("0123456789abcdef")
_UNICODE = cat(
    literal("\\u"),
    either(
        cat(_hex("0123456789abcef"), repeat(_HEX, 3, 3)),
        cat(_hex("d"), _hex("01234567"), repeat(_HEX, 2, 2)),
        cat(_hex("d"), _hex("89ab"), repeat(_HEX, 2, 2), literal("\\u"), _hex("d"), _hex("cdef"),
            repeat(_HEX, 2, 2)),
    ),
)  # fmt: skip
_FREE = either(
    chars(without(EVERY, _ESCAPED)),
    cat(literal("\\"), chars([(ord(c), ord(c)) for c in '"\\/bfnrt'])),
    _UNICODE,
)
"""One character of a string without a pattern, in every spelling."""

_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_ATOM = r"[A-Za-z0-9_'+-]+"
"""What people write before an @. RFC 5321 allows more, of which a model makes other texts."""
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]"
    f"|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?"
_ZONE = "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_H16 = "[0-9A-Fa-f]{1,4}"
_LONG_IPV6 = [
    f"(?:{_H16}:){{7}}{_H16}",
    *(f"(?:{_H16}:){{1,{n}}}(?::{_H16}){{1,{7 - n}}}" for n in range(1, 7)),
    f"{_H16}:(?::{_H16}){{1,6}}",
    f":(?::{_H16}){{1,7}}",
    f"(?:{_H16}:){{1,7}}:",
    "::",
    f"::(?:ffff:)?{_BYTE}(?:\\.{_BYTE}){{3}}",
]
_PATH = r"[!#-;=?-\[\]_a-z~]"
FORMATS = {
    "email": f"{_ATOM}(?:\\.{_ATOM})*@(?:{_LABEL}\\.)+[A-Za-z]{{2,63}}",
    "hostname": f"{_LABEL}(?:\\.{_LABEL})*",
    "ipv4": f"{_BYTE}(?:\\.{_BYTE}){{3}}",
    "ipv6": "|".join(_LONG_IPV6),
    "uuid": "[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}",
    "date": _DATE,
    "time": f"{_TIME}{_ZONE}",
    "date-time": f"{_DATE}T{_TIME}{_ZONE}",
    "duration": (
        "P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?"
        "|[0-9]{1,9}D)(?:T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?"
        "|[0-9]{1,9}S))?|T(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M"
        "(?:[0-9]{1,9}S)?|[0-9]{1,9}S))"
    ),
    "uri": f"[A-Za-z][A-Za-z0-9+.-]*:(?:(?://)?[A-Za-z0-9]|[+]){_PATH}*|file:///{_PATH}*",
}
"""Formats that are enforced, as patterns of whole texts; other formats are annotations."""
FORMATS |= {  # as Pydantic names the versions of UUIDs
    f"uuid{n}": "-".join(["[0-9A-Fa-f]{8}", "[0-9A-Fa-f]{4}", f"{n}[0-9A-Fa-f]{{3}}",
                          "[89ABab][0-9A-Fa-f]{3}", "[0-9A-Fa-f]{12}"])
    for n in range(1, 9)
}  # fmt: skip


@functools.lru_cache(maxsize=64)
def format_regex(name: str) -> Regex:
    """A format's texts, without JSON's quotes."""
    return parse_pattern(f"^(?:{FORMATS[name]})$")


def string_regex(parts: Iterable[Regex] = (), fewest: int = 0, most: int | None = None) -> Regex:
    """A JSON string.

    Args:
        parts: What its text has to match, all of them; without parts it is any text.
        fewest: Its least number of characters.
        most: Its largest number; None is no bound.

    Returns:
        Its expression, with quotes and escapes.
    """
    parts = tuple(parts)
    if not parts:
        return cat(_QUOTE, repeat(_FREE, fewest, most), _QUOTE)
    if fewest or most is not None:
        parts = (*parts, repeat(chars(EVERY), fewest, most))
    return _quoted(both(*parts))


def _quoted(text: Regex) -> Regex:
    """The JSON strings of some texts; `&` and `~` stay outside of the quotes."""
    if options := alternatives_of(text):
        return either(*map(_quoted, options))
    if parts := parts_of(text):
        quoted = [no(_quoted(p)) if negated else _quoted(p) for negated, p in parts]
        return both(_quoted(ANYTHING), *quoted)
    return cat(_QUOTE, map_chars(text, _escaped), _QUOTE)


def _escaped(ranges: Ranges) -> Regex:
    """A character as JSON writes it."""
    escapes = [
        literal(json.dumps(chr(point))[1:-1])
        for low, high in _ESCAPED
        for point in range(low, high + 1)
        if any(a <= point <= b for a, b in ranges)
    ]
    return either(chars(without(ranges, _ESCAPED)), *escapes)


def string_terminal(
    parts: Iterable[Regex] = (), fewest: int = 0, most: int | None = None
) -> Terminal:
    """A terminal of `string_regex`."""
    return regex_terminal(string_regex(parts, fewest, most))


@functools.cache
def mark_terminal(mark: str, *, lines: bool = True) -> Terminal:
    """A bracket or comma, with a new line where JSON that is laid out has one if `lines`."""
    regex, space, end = literal(mark), literal(" "), literal("\n")
    if lines and mark == ",":  # indented, so that the shortest answer has no new line
        regex = cat(regex, either(space, cat(end, repeat(space, 1, _MOST_INDENTED))))
    elif lines:
        line = either(EMPTY, cat(end, repeat(space, 0, _MOST_INDENTED)))
        regex = cat(regex, line) if mark in "{[" else cat(line, regex)
    return regex_terminal(regex, "list" if mark == "[" else "")


def number_terminal(
    *,
    integer: bool,
    low: Decimal | None = None,
    low_excluded: bool = False,
    high: Decimal | None = None,
    high_excluded: bool = False,
    multiple: Decimal | None = None,
    fractional: bool = False,
) -> Terminal:
    """A JSON number.

    Args:
        integer: Whether it has no decimal places.
        low: No number is less; None is no bound.
        low_excluded: Whether `low` itself is none of them.
        high: No number is more.
        high_excluded: Whether `high` itself is none of them.
        multiple: All are multiples of it, which `is_enforceable`.
        fractional: Whether none is an integer.
    """
    if (low is not None and low >= _LIMIT) or (high is not None and high <= -_LIMIT):
        return regex_terminal(NOTHING)
    low, high = _writable(low, ROUND_CEILING), _writable(high, ROUND_FLOOR)
    if low is None and high is None and multiple is None and not fractional:
        return regex_terminal(_free_number(integer))
    if fractional:
        integral = cat(repeat(literal("-"), 0, 1), repeat(_DIGIT, 1),
                       repeat(cat(_POINT, repeat(literal("0"))), 0, 1))  # fmt: skip
        within = _range(False, low, low_excluded, high, high_excluded)
        return regex_terminal(both(within, no(integral)))
    if multiple is None:
        return regex_terminal(_range(integer, low, low_excluded, high, high_excluded))
    modulus, places = in_digits(multiple, integer)
    integer = not places
    if (last := endings(modulus, places)) is not None:
        within = _range(integer, low, low_excluded, high, high_excluded)
        return regex_terminal(both(within, _ending_in(last, places)))
    limit = Decimal(_MOST_OF_MULTIPLE)
    low, high = -limit if low is None else low, limit if high is None else high
    words = {
        "type": "integer" if integer else "number",
        "exclusiveMinimum" if low_excluded else "minimum": _plain_number(low),
        "exclusiveMaximum" if high_excluded else "maximum": _plain_number(high),
        "multipleOf": _plain_number(Decimal(modulus).scaleb(-places)),
    }
    found = both(
        _range(integer, low, low_excluded, high, high_excluded), multiple_of(modulus, places)
    )
    if places:  # llguidance writes all places or none, and nothing between 0 and -1
        written = cat(repeat(_DIGIT), repeat(cat(_POINT, repeat(_DIGIT, places, places)), 0, 1))
        signed = cat(literal("-"), chars([(49, 57)]), written)
        found = both(found, either(written, signed))
    if low < 0 <= high:
        found = either(found, literal("-0"))  # which llguidance allows
    return Terminal(found, f"%json {json.dumps(words)}", is_rule=True)


def _ending_in(last: list[str], places: int) -> Regex:
    """Numbers whose digits, with all decimal places, end in one of some texts."""
    size, zeros = len(last[0]), repeat(literal("0"), 0, MOST_DIGITS)
    sign, digits = repeat(literal("-"), 0, 1), repeat(_DIGIT, 1, MOST_DIGITS)
    if not places:
        short = either(*(literal(str(int(text or 0))) for text in last))
        return cat(sign, either(short, cat(digits, either(*map(literal, last)))))
    before = places - size  # decimal places that may be anything
    some_zeros = zeros if before else repeat(literal("0"), 1, MOST_DIGITS)
    texts = dict.fromkeys(text.rstrip("0") for text in last)
    ends = either(*(cat(literal(text), zeros if text else some_zeros) for text in texts))
    fraction = cat(repeat(_DIGIT, before, before), ends)
    if before:
        fraction = either(fraction, cat(repeat(_DIGIT, 1, before), zeros))
    return cat(sign, digits, repeat(cat(_POINT, fraction), 0, 1))


def _writable(bound: Decimal | None, rounding: str) -> Decimal | None:
    """A bound in the digits that numbers may have; None if it bounds none of them."""
    if bound is None or abs(bound) >= _LIMIT:
        return None
    if -int(bound.as_tuple().exponent) <= MOST_DIGITS:
        return bound
    with localcontext(prec=4 * MOST_DIGITS):
        return bound.quantize(Decimal(10) ** -MOST_DIGITS, rounding)


def _plain_number(number: Decimal) -> int | float:
    return int(number) if number == int(number) else float(number)


@functools.cache
def _free_number(integer: bool) -> Regex:
    digits = either(literal("0"), cat(chars([(49, 57)]), repeat(_DIGIT, 0, MOST_DIGITS - 1)))
    whole = cat(repeat(literal("-"), 0, 1), digits)
    if integer:
        return whole
    fraction = repeat(cat(literal("."), repeat(_DIGIT, 1, MOST_DIGITS)), 0, 1)
    signs = chars([(43, 43), (45, 45)])
    exponent = cat(chars([(69, 69), (101, 101)]), repeat(signs, 0, 1), repeat(_DIGIT, 1, 2))
    return cat(whole, fraction, repeat(exponent, 0, 1))


def _range(
    integer: bool, low: Decimal | None, low_out: bool, high: Decimal | None, high_out: bool
) -> Regex:
    """The numbers between two bounds, written without exponent."""
    zero = Decimal(0)
    positive = NOTHING
    if high is None or high > 0 or (high == 0 and not high_out):
        least, least_out = (zero, False) if low is None or low < 0 else (low, low_out)
        positive = _between(integer, least, least_out, high, high_out, "")
    negative = NOTHING
    if low is None or low < 0:
        least, least_out = (zero, True) if high is None or high >= 0 else (-high, high_out)
        most = None if low is None else -low
        negative = _between(integer, least, least_out, most, low_out, "-")
    return either(positive, negative)


def _between(
    integer: bool, low: Decimal, low_out: bool, high: Decimal | None, high_out: bool, sign: str
) -> Regex:
    """Numbers that are not negative, between two bounds, after a sign."""
    if integer:  # the bounds become whole numbers that belong to the range
        least = int(low) + (1 if low > int(low) or (low_out and low == int(low)) else 0)
        parts = [_whole_from(least)]
        if high is not None:
            most = int(high) - (1 if high_out and high == int(high) else 0)
            if most < least:
                return NOTHING
            parts.append(_whole_to(most))
    else:
        parts = [_decimal_from(low, low_out)]
        if high is not None:
            if high < low or (high == low and (low_out or high_out)):
                return NOTHING
            parts.append(_decimal_to(high, high_out))
    return both(*(cat(literal(sign), part) for part in parts))


def _whole_from(least: int) -> Regex:
    """Whole numbers from one on."""
    digits = str(least)
    longer = cat(chars([(49, 57)]), repeat(_DIGIT, len(digits), MOST_DIGITS - 1))
    same = _from_digits(digits, first=len(digits) > 1)
    return either(same, longer)


def _from_digits(digits: str, *, first: bool) -> Regex:
    """Numbers of as many digits that are not less."""
    if not digits:
        return EMPTY
    digit, rest = int(digits[0]), digits[1:]
    larger = cat(_digits(max(digit + 1, first), 9), repeat(_DIGIT, len(rest), len(rest)))
    return either(larger, cat(literal(digits[0]), _from_digits(rest, first=False)))


def _whole_to(most: int) -> Regex:
    """Whole numbers up to one."""
    digits = str(most)
    shorter = [literal("0")] if len(digits) > 1 else []
    if len(digits) > 1:
        shorter.append(cat(chars([(49, 57)]), repeat(_DIGIT, 0, len(digits) - 2)))
    return either(*shorter, _to_digits(digits, first=len(digits) > 1))


def _to_digits(digits: str, *, first: bool) -> Regex:
    """Numbers of as many digits that are not more."""
    if not digits:
        return EMPTY
    digit, rest = int(digits[0]), digits[1:]
    smaller = cat(_digits(int(first), digit - 1), repeat(_DIGIT, len(rest), len(rest)))
    return either(smaller, cat(literal(digits[0]), _to_digits(rest, first=False)))


def _digits(low: int, high: int) -> Regex:
    return chars([(48 + low, 48 + high)]) if low <= high else NOTHING


_ANY_FRACTION = repeat(cat(_POINT, repeat(_DIGIT, 1, MOST_DIGITS)), 0, 1)


def _split(bound: Decimal) -> tuple[int, str]:
    """The whole part of a bound, and its decimal places without zeros at the end."""
    whole = int(bound)
    return whole, format(bound - whole, "f").partition(".")[2].rstrip("0")


def _decimal_from(low: Decimal, out: bool) -> Regex:
    """Decimal numbers from one on."""
    whole, places = _split(low)
    above = cat(_whole_from(whole + 1), _ANY_FRACTION)
    if not places and not out:
        return either(above, cat(literal(str(whole)), _ANY_FRACTION))
    return either(above, cat(literal(f"{whole}."), _places_from(places, out)))


def _places_from(places: str, out: bool) -> Regex:
    """Decimal places that are worth at least as much, or more."""
    if not places:
        more = cat(repeat(literal("0")), chars([(49, 57)]), repeat(_DIGIT, 0, MOST_DIGITS))
        return more if out else repeat(_DIGIT, 0, MOST_DIGITS)
    larger = cat(_digits(int(places[0]) + 1, 9), repeat(_DIGIT, 0, MOST_DIGITS))
    return either(larger, cat(literal(places[0]), _places_from(places[1:], out)))


def _decimal_to(high: Decimal, out: bool) -> Regex:
    """Decimal numbers up to one."""
    whole, places = _split(high)
    options = [cat(_whole_to(whole - 1), _ANY_FRACTION)] if whole else []
    if places or not out:
        options.append(literal(str(whole)))
        options.append(cat(literal(f"{whole}."), _places_to(places, out)))
    return either(*options)


def _places_to(places: str, out: bool) -> Regex:
    """One or more decimal places that are worth at most as much, or less."""
    if not places:
        return NOTHING if out else repeat(literal("0"), 1, MOST_DIGITS)
    smaller = cat(_digits(0, int(places[0]) - 1), repeat(_DIGIT, 0, MOST_DIGITS))
    less = EMPTY if len(places) > 1 or not out else NOTHING
    return either(smaller, cat(literal(places[0]), either(less, _places_to(places[1:], out))))
