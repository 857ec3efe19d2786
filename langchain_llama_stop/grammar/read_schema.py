"""Reads JSON schemas: drafts 4 to 2020-12, and OpenAPI's `nullable`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal
from math import isfinite
from typing import Any

from langchain_llama_stop.grammar.facets import (
    MOST_ALTERNATIVES,
    Facets,
    Schema,
    overlap,
    product,
)
from langchain_llama_stop.grammar.json_text import FORMATS, format_regex
from langchain_llama_stop.grammar.references import ANY_OF_SEVERAL, resolve, without_nulls

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_MOST_REFERENCES = 64
MOST_NESTED = 100
"""Dicts and lists that a schema may hold inside of each other. Not tuned: Python and LangChain walk
schemas by recursion, and people's have some twenty."""

ANNOTATIONS = {
    "$schema", "$id", "id", "$anchor", "$comment", "$defs", "definitions", "$vocabulary", "title",
    "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
    "contentEncoding", "contentMediaType", "contentSchema", "discriminator", "xml", "externalDocs",
}  # fmt: skip
"""Keywords that ask nothing of a value."""


_COUNTS = {
    f"{side}{noun}": (kind, f"fewest_{facet}", f"most_{facet}")
    for side in ("min", "max")
    for noun, kind, facet in (
        ("Length", "string", "chars"),
        ("Items", "array", "items"),
        ("Properties", "object", "properties"),
    )
}
"""Keywords of numbers: the type that they are about, and the two facets."""


def read(schema: Schema, root: Schema, references: tuple[str, ...] = ()) -> list[Facets]:
    """Reads a schema.

    Args:
        schema: The schema.
        root: The whole schema that its references point into.
        references: The references that led here, to tell a circle.

    Returns:
        Its alternatives: a value fits the schema if it fits one of them.

    Raises:
        ValueError: If a keyword cannot be read, or cannot be enforced at all; it is named.
    """
    if schema is True:
        return [Facets()]
    if schema is False:
        return []
    if not isinstance(schema, Mapping):
        raise ValueError(f"a schema has to be an object, true or false, but one is {schema!r}")
    found = [_own(schema)]
    for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
        if keyword in schema:
            reference = str(schema[keyword])
            if reference == ANY_OF_SEVERAL:
                found = [_unchecked(f, keyword) for f in found]
                continue
            if reference in references or len(references) > _MOST_REFERENCES:
                raise ValueError(f"`{keyword}: {reference}` leads back to itself")
            target = resolve(reference, root)
            found = product(found, read(target, root, (*references, reference)))
    for keyword in ("allOf", "anyOf", "oneOf"):
        if keyword not in schema:
            continue
        if not isinstance(schema[keyword], list | tuple):
            raise ValueError(f"`{keyword}` has to be a list, but is {schema[keyword]!r}")
        branches = [read(part, root, references) for part in schema[keyword]]
        if keyword == "allOf":
            for branch in branches:
                found = product(found, branch)
            continue
        if keyword == "oneOf" and overlap(branches):
            branches = [[_unchecked(f, "oneOf") for f in branch] for branch in branches]
        found = product(found, [f for branch in branches for f in branch])
    if "not" in schema:
        negated = _negations(schema["not"], root, references)
        if negated is None:
            raise ValueError(f"`not` cannot be enforced for {json.dumps(schema['not'])[:80]}")
        found = product(found, negated)
    if "if" in schema and ("then" in schema or "else" in schema):
        then = product(read(schema["if"], root, references),
                        read(schema.get("then", True), root, references))  # fmt: skip
        other = read(schema.get("else", True), root, references)
        negated = _negations(schema["if"], root, references)
        if negated is None:
            other = [_unchecked(f, "if") for f in other]
        else:
            other = product(other, negated)
        found = product(found, then + other)
    found = _dependents(found, schema, root, references)
    return [_closed(f, schema) for f in found]


def validator(schema: Schema) -> Any:
    """What `jsonschema` checks values with: of the draft whose words a schema uses.

    Formats count as far as decoding enforces them, so that `oneOf` can tell them apart.
    """
    from jsonschema import (
        Draft4Validator,
        Draft201909Validator,
        Draft202012Validator,
        ValidationError,
    )
    from jsonschema.validators import extend, validator_for

    schema = without_nulls(schema)
    text = json.dumps(schema)
    if '"exclusiveMinimum": true' in text or '"exclusiveMaximum": true' in text:
        kind = Draft4Validator
    elif '"items": [' in text:
        kind = Draft201909Validator
    else:
        kind = validator_for(schema, default=Draft202012Validator)

    def or_null(keyword: str) -> Any:
        def check(checker: Any, asked: Any, value: Any, within: Any) -> Any:
            if value is not None or within.get("nullable") is not True:
                yield from kind.VALIDATORS[keyword](checker, asked, value, within) or ()

        return check

    def has_format(_: Any, name: Any, value: Any, __: Any) -> Any:
        if name in FORMATS and isinstance(value, str) and not format_regex(name).matches(value):
            yield ValidationError(f"{value!r} is no {name!r}")

    checks = {keyword: or_null(keyword) for keyword in ("type", "enum")}
    return extend(kind, {**checks, "format": has_format})(schema)


def fitting(schema: Mapping[str, Any], values: Iterable[Any], root: Any) -> tuple[Any, ...]:
    """Those of some values that fit a schema of a document."""
    check = validator(root).evolve(schema=schema)
    return tuple(value for value in values if check.is_valid(value))


def require_shallow(schema: Any) -> None:
    """Refuses what is nested more deeply than JSON's parsers bear."""
    level, depth = [schema], 0
    while level:
        depth += 1
        if depth > MOST_NESTED:
            raise ValueError(f"it has to be at most {MOST_NESTED} levels deep, but is deeper")
        parts = [p.values() if isinstance(p, Mapping) else p for p in level
                 if isinstance(p, Mapping | list | tuple)]  # fmt: skip
        level = [inner for part in parts for inner in part]


def _own(schema: Mapping[str, Any]) -> Facets:
    """What a schema's own keywords ask, without those that hold alternatives."""
    get = schema.get
    unchecked = {k for k in ("minContains", "maxContains") if k in schema and "contains" in schema}
    if get("minContains") in (0, 1):
        unchecked.discard("minContains")
    if get("uniqueItems") is True:
        unchecked.add("uniqueItems")
    low, low_excluded = _bound(schema, "minimum", "exclusiveMinimum", max)
    high, high_excluded = _bound(schema, "maximum", "exclusiveMaximum", min)
    prefix, items = get("prefixItems", ()), get("items")
    if isinstance(items, list | tuple):  # as drafts before 2020 write it
        prefix, items = items, get("additionalItems")
    values: tuple[Any, ...] | None = tuple(schema["enum"]) if "enum" in schema else None
    if "const" in schema:
        values = (schema["const"],)
    types = _types(schema)
    if get("nullable") is True:  # as OpenAPI 3.0 writes it
        types |= {"null"}
        values = None if values is None else (*values, None)
    multiple = None if "multipleOf" not in schema else _number(schema, "multipleOf")
    if multiple is not None and multiple <= 0:
        raise ValueError(f"`multipleOf` has to be over 0, but is {multiple}")
    found = Facets(
        types=types,
        values=values,
        low=low,
        low_excluded=low_excluded,
        high=high,
        high_excluded=high_excluded,
        multiples=() if multiple is None else (multiple,),
        patterns=(str(schema["pattern"]),) if "pattern" in schema else (),
        formats=(str(schema["format"]),) if "format" in schema else (),
        fewest_chars=_count(schema, "minLength") or 0,
        most_chars=_count(schema, "maxLength"),
        named="properties" in schema,
        properties={str(k): (v,) for k, v in _mapping(schema, "properties").items()},
        required=tuple(dict.fromkeys(map(str, _listed(schema, "required")))),
        by_pattern=tuple(_mapping(schema, "patternProperties").items()),
        others=(schema["additionalProperties"],) if "additionalProperties" in schema else None,
        names=(schema["propertyNames"],) if "propertyNames" in schema else (),
        fewest_properties=_count(schema, "minProperties") or 0,
        most_properties=_count(schema, "maxProperties"),
        prefix=tuple((part,) for part in prefix),
        items=None if items is None else () if items is True else (items,),
        contains=(schema["contains"],) if "contains" in schema and get("minContains") != 0 else (),
        fewest_items=_count(schema, "minItems") or 0,
        most_items=_count(schema, "maxItems"),
        unchecked=frozenset(unchecked),
    )
    return found


def _types(schema: Mapping[str, Any]) -> frozenset[str]:
    named = schema.get("type", list(Facets().types))
    names = [named] if isinstance(named, str) else named
    if (
        not isinstance(names, list | tuple)
        or not names
        or not set(map(str, names)) <= {*TYPES, "any"}
    ):
        raise ValueError(f"`type` has to be one or some of {', '.join(TYPES)}, but is {named!r}")
    found = Facets().types if "any" in names else frozenset(names)
    return found - {"integer"} if "number" in found else found


def _number(schema: Mapping[str, Any], keyword: str) -> Decimal:
    value = schema[keyword]
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise ValueError(f"`{keyword}` has to be a number, but is {value!r}")
    return Decimal(str(value))


def _bound(
    schema: Mapping[str, Any], plain: str, excluded: str, stricter: Any
) -> tuple[Decimal | None, bool]:
    """A bound, and whether it is excluded itself; draft 4 writes that as true."""
    if isinstance(schema.get(excluded), bool):
        return (_number(schema, plain), schema[excluded]) if plain in schema else (None, False)
    found = [(_number(schema, k), k == excluded) for k in (plain, excluded) if k in schema]
    if len(found) == 2 and found[0][0] == found[1][0]:
        return found[1]
    return stricter(found) if found else (None, False)


def _count(schema: Mapping[str, Any], keyword: str) -> int | None:
    if keyword not in schema:
        return None
    number = _number(schema, keyword)
    if number < 0 or number != int(number):
        raise ValueError(f"`{keyword}` has to be 0, 1, 2, …, but is {schema[keyword]!r}")
    return int(number)


def _mapping(schema: Mapping[str, Any], keyword: str) -> Mapping[str, Any]:
    value = schema.get(keyword, {})
    if not isinstance(value, Mapping):
        raise ValueError(f"`{keyword}` has to be an object, but is {value!r}")
    return value


def _listed(schema: Mapping[str, Any], keyword: str) -> Iterable[Any]:
    value = schema.get(keyword, ())
    if isinstance(value, bool):  # as draft 3 writes it, inside of a property
        return ()
    if not isinstance(value, list | tuple):
        raise ValueError(f"`{keyword}` has to be a list, but is {value!r}")
    return value


def _unchecked(facets: Facets, keyword: str) -> Facets:
    return replace(facets, unchecked=facets.unchecked | {keyword})


def _closed(facets: Facets, schema: Mapping[str, Any]) -> Facets:
    """`unevaluatedProperties` and `unevaluatedItems`, which see what other keywords have named."""
    if "unevaluatedProperties" in schema and facets.others is None:
        facets = replace(facets, others=(schema["unevaluatedProperties"],))
    if "unevaluatedItems" in schema and facets.items is None:
        facets = replace(facets, items=(schema["unevaluatedItems"],))
    for keyword in schema.keys() & {"unevaluatedProperties", "unevaluatedItems"}:
        if schema.keys() & {"not", "if"}:  # what these name counts as evaluated or not
            facets = _unchecked(facets, keyword)
    return facets


def _dependents(
    found: list[Facets], schema: Mapping[str, Any], root: Schema, references: tuple[str, ...]
) -> list[Facets]:
    """Adds `dependentRequired` and `dependentSchemas`, and what drafts before 2019 write so."""
    for keyword in ("dependentRequired", "dependentSchemas", "dependencies"):
        for name, needs in _mapping(schema, keyword).items():
            without = Facets(properties={name: (False,)})
            other = {"required": list(needs)} if isinstance(needs, list | tuple) else needs
            present = product([Facets(required=(name,))], read(other, root, references))
            if len(found) > MOST_ALTERNATIVES // 2:
                found = [_unchecked(f, keyword) for f in found]
            else:
                found = product(found, [without, *present])
    return found


def _negations(schema: Schema, root: Schema, references: tuple[str, ...]) -> list[Facets] | None:
    """The alternatives of what does not fit a schema; None if they cannot be written so."""
    if isinstance(schema, bool):
        return [] if schema else [Facets()]
    every, found = Facets().types, list[Facets]()
    told = {k: v for k, v in schema.items() if k not in ANNOTATIONS}
    objects = frozenset({"object"})
    for keyword, value in told.items():
        if keyword in ("const", "enum"):
            found.append(Facets(forbidden=tuple(value) if keyword == "enum" else (value,)))
        elif keyword == "type":
            types = _types(schema)
            found.append(Facets(types=every - types, fractional="integer" in types))
        elif keyword == "required":
            found += [Facets(types=objects, properties={str(n): (False,)}) for n in value]
        elif keyword == "properties":
            for name, part in value.items():
                wrong = _negations(part, root, references)
                if wrong is None:
                    return None
                if wrong:
                    not_fitting = {"not": part}
                    found.append(
                        Facets(types=objects, properties={name: (not_fitting,)}, required=(name,))
                    )
        elif keyword in ("minimum", "exclusiveMinimum"):
            number = _number(schema, keyword)
            found.append(Facets(types=frozenset({"number"}), high=number,
                                high_excluded=keyword == "minimum"))  # fmt: skip
        elif keyword in ("maximum", "exclusiveMaximum"):
            number = _number(schema, keyword)
            found.append(Facets(types=frozenset({"number"}), low=number,
                                low_excluded=keyword == "maximum"))  # fmt: skip
        elif keyword == "pattern":
            found.append(Facets(types=frozenset({"string"}), other_than=(str(value),)))
        elif keyword in _COUNTS:
            kind, fewest, most = _COUNTS[keyword]
            count = _count(schema, keyword) or 0
            bound: dict[str, Any] = (
                {fewest: count + 1} if keyword.startswith("max") else {most: count - 1}
            )
            if count or fewest in bound:
                found.append(Facets(types=frozenset({kind}), **bound))
        elif keyword == "not":
            found += read(value, root, references)
        elif keyword in ("anyOf", "allOf"):
            parts = [_negations(part, root, references) for part in value]
            if any(part is None for part in parts):
                return None
            lists = [part for part in parts if part is not None]
            if keyword == "allOf":
                found += [f for part in lists for f in part]
            else:
                together = [Facets()]
                for part in lists:
                    together = product(together, part)
                found += together
        elif keyword == "$ref" and str(value) not in references:
            target = resolve(str(value), root)
            wrong = _negations(target, root, (*references, str(value)))
            if wrong is None:
                return None
            found += wrong
        else:
            return None
    return found
