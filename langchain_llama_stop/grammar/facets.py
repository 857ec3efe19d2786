"""What a JSON schema asks of a value, as alternatives without `anyOf`, `allOf` or references."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from langchain_llama_stop.grammar.json_text import FORMATS, format_regex
from langchain_llama_stop.grammar.pattern import UnknownPattern, parse_pattern
from langchain_llama_stop.grammar.regex import Regex, both, literal, no

MOST_ALTERNATIVES = 256

Schema = Any
"""A schema: a dict, True (any value) or False (none)."""


@dataclass(frozen=True)
class Facets:
    """What one alternative of a schema asks of a value; all of it has to hold.

    Attributes:
        types: The types that a value may have; "number" includes integers.
        values: The values that are allowed; None allows all.
        forbidden: Values that are not allowed.
        low, low_excluded, high, high_excluded, multiples: Of a number.
        fractional: Whether a number may not be an integer.
        patterns, other_than, formats, fewest_chars, most_chars: Of a string; patterns of
            `other_than` do not match it.
        named: Whether the schema names properties, maybe none.
        properties: The schemas of each property that is named.
        required: Names of properties that an object must have.
        by_pattern: (pattern, schema) of properties whose names match.
        others: Schemas of all other properties; None if the schema does not say.
        names: Schemas of the names.
        fewest_properties, most_properties: Their number.
        prefix: Schemas of the first items, each a list of them.
        items: Schemas of the items after these; None if the schema does not say.
        contains: Schemas that at least one item fits.
        fewest_items, most_items: Their number.
        unchecked: Keywords that decoding does not enforce.
    """

    types: frozenset[str] = frozenset({"null", "boolean", "number", "string", "array", "object"})
    values: tuple[Any, ...] | None = None
    forbidden: tuple[Any, ...] = ()
    low: Decimal | None = None
    low_excluded: bool = False
    high: Decimal | None = None
    high_excluded: bool = False
    multiples: tuple[Decimal, ...] = ()
    fractional: bool = False
    patterns: tuple[str, ...] = ()
    other_than: tuple[str, ...] = ()
    formats: tuple[str, ...] = ()
    fewest_chars: int = 0
    most_chars: int | None = None
    named: bool = False
    properties: Mapping[str, tuple[Schema, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    by_pattern: tuple[tuple[str, Schema], ...] = ()
    others: tuple[Schema, ...] | None = None
    names: tuple[Schema, ...] = ()
    fewest_properties: int = 0
    most_properties: int | None = None
    prefix: tuple[tuple[Schema, ...], ...] = ()
    items: tuple[Schema, ...] | None = None
    contains: tuple[Schema, ...] = ()
    fewest_items: int = 0
    most_items: int | None = None
    unchecked: frozenset[str] = frozenset()


def canonical(value: Any) -> str:
    """A value's JSON in one spelling, so that equal values have equal texts."""

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {str(k): plain(v) for k, v in part.items()}
        if isinstance(part, list | tuple):
            return [plain(v) for v in part]
        return int(part) if isinstance(part, float) and part.is_integer() else part

    return json.dumps(plain(value), sort_keys=True)


def product(some: list[Facets], others: list[Facets]) -> list[Facets]:
    """The alternatives of two schemas that hold together."""
    if len(some) * len(others) > MOST_ALTERNATIVES:
        raise ValueError(
            f"its `anyOf`, `oneOf`, `if` and `allOf` together have over {MOST_ALTERNATIVES} "
            "alternatives"
        )
    found = (merge(a, b) for a in some for b in others)
    return [f for f in found if f is not None]


def overlap(branches: list[list[Facets]]) -> bool:
    """Whether a value may fit two of several schemas."""
    return any(
        _may_fit(merge(a, b))
        for i, branch in enumerate(branches)
        for other in branches[i + 1 :]
        for a in branch
        for b in other
    )


def _may_fit(facets: Facets | None) -> bool:
    """Whether a value may fit."""
    if facets is None or facets.types != {"string"} or facets.values is not None:
        return facets is not None
    text = both(*text_regexes(facets)[0])
    return text.shortest is not None or text.is_large


def text_regexes(facets: Facets) -> tuple[list[Regex], dict[str, UnknownPattern]]:
    """What a string's text has to match, and the patterns that cannot be read."""
    found = [format_regex(name) for name in facets.formats if name in FORMATS]
    unknown = dict[str, UnknownPattern]()
    given = [(p, False) for p in facets.patterns] + [(p, True) for p in facets.other_than]
    for pattern, negated in given:
        try:
            regex = parse_pattern(pattern)
        except UnknownPattern as problem:
            unknown[pattern] = problem
        else:
            found.append(no(regex) if negated else regex)
    found += [no(literal(v)) for v in facets.forbidden if isinstance(v, str)]
    return found, unknown


def merge(a: Facets, b: Facets) -> Facets | None:
    """What two alternatives ask together; None if no value can fit both."""
    types = a.types & b.types
    if (
        "integer" in a.types | b.types
        and {"number", "integer"} & a.types
        and ({"number", "integer"} & b.types)
    ):
        types |= {"integer"}
    values = b.values if a.values is None else a.values
    if a.values is not None and b.values is not None:
        known = set(map(canonical, b.values))
        values = tuple(v for v in a.values if canonical(v) in known)
    low, low_excluded = max(
        [(f.low, f.low_excluded) for f in (a, b) if f.low is not None], default=(None, False)
    )
    high, high_excluded = min(
        [(f.high, not f.high_excluded) for f in (a, b) if f.high is not None],
        default=(None, True),
    )
    names = dict.fromkeys([*a.properties, *b.properties])
    length = max(len(a.prefix), len(b.prefix))
    merged = Facets(
        types=frozenset(types),
        values=values,
        forbidden=a.forbidden + b.forbidden,
        low=low,
        low_excluded=low_excluded,
        high=high,
        high_excluded=not high_excluded,
        multiples=a.multiples + b.multiples,
        fractional=a.fractional or b.fractional,
        patterns=_joined(a.patterns, b.patterns),
        other_than=_joined(a.other_than, b.other_than),
        formats=_joined(a.formats, b.formats),
        fewest_chars=max(a.fewest_chars, b.fewest_chars),
        most_chars=_least(a.most_chars, b.most_chars),
        named=a.named or b.named,
        properties={n: _schemas(property_schemas(a, n) + property_schemas(b, n)) for n in names},
        required=_joined(a.required, b.required),
        by_pattern=tuple(
            (pattern, schema if other.others is None else {"allOf": [schema, *other.others]})
            for one, other in ((a, b), (b, a))
            for pattern, schema in one.by_pattern
        ),
        others=None if a.others is None and b.others is None
        else _schemas((a.others or ()) + (b.others or ())),
        names=_schemas(a.names + b.names),
        fewest_properties=max(a.fewest_properties, b.fewest_properties),
        most_properties=_least(a.most_properties, b.most_properties),
        prefix=tuple(_schemas(item_schemas(a, i) + item_schemas(b, i)) for i in range(length)),
        items=None if a.items is None and b.items is None
        else _schemas((a.items or ()) + (b.items or ())),
        contains=a.contains + b.contains,
        fewest_items=max(a.fewest_items, b.fewest_items),
        most_items=_least(a.most_items, b.most_items),
        unchecked=a.unchecked | b.unchecked,
    )  # fmt: skip
    return None if _contradicts(merged) else merged


def property_schemas(facets: Facets, name: str) -> tuple[Schema, ...]:
    """The schemas of a property, by its name, by patterns, or as one of the others."""
    matching = tuple(
        schema for pattern, schema in facets.by_pattern if parse_pattern(pattern).matches(name)
    )
    if name in facets.properties or matching:
        return facets.properties.get(name, ()) + matching
    return facets.others or ()


def item_schemas(facets: Facets, index: int) -> tuple[Schema, ...]:
    """The schemas of an item."""
    return facets.prefix[index] if index < len(facets.prefix) else facets.items or ()


def _joined(some: tuple[str, ...], others: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*some, *others)))


def _schemas(schemas: Iterable[Schema]) -> tuple[Schema, ...]:
    """Schemas without those that say nothing or that are there twice."""
    return tuple({canonical(s): s for s in schemas if s is not True and s != {}}.values())


def _least(a: int | None, b: int | None) -> int | None:
    return a if b is None else b if a is None else min(a, b)


def _contradicts(facets: Facets) -> bool:
    """Whether it is plain that no value fits."""
    if not facets.types or facets.values == ():
        return True
    if facets.values is not None:
        return not any(type_of(v) & facets.types for v in facets.values)
    if facets.types != {"object"}:
        return False
    for name in facets.required:
        schemas = property_schemas(facets, name)
        choices = [
            set(map(canonical, s.get("enum", [s["const"]] if "const" in s else ())))
            for s in schemas
            if isinstance(s, Mapping) and s.keys() & {"enum", "const"}
        ]
        if False in schemas or (choices and not set.intersection(*choices)):
            return True
    return False


def forbids(facets: Facets, value: Any) -> bool:
    """Whether a value is one of those that are not allowed."""
    return any(canonical(value) == canonical(v) for v in facets.forbidden)


def type_of(value: Any) -> set[str]:
    """The types that a value has."""
    if value is None or isinstance(value, bool):
        return {"null" if value is None else "boolean"}
    if isinstance(value, int | float):
        return {"number", "integer"} if value == int(value) else {"number"}
    return {
        "string" if isinstance(value, str) else "object" if isinstance(value, Mapping) else "array"
    }


def subsets(count: int) -> Iterable[tuple[int, ...]]:
    """All subsets of the numbers below a count."""
    if count > 6:
        raise ValueError(f"`patternProperties` has to hold at most 6 patterns, but holds {count}")
    return [tuple(i for i in range(count) if bits >> i & 1) for bits in range(1 << count)]
