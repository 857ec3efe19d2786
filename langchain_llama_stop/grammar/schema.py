"""Grammars that answers have to fit, and how they are made from JSON schemas."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_JSON_STYLE = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
"""As Python and most training data write JSON: other spacing makes models write nonsense."""

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf")
"""Keywords that hold schemas by name; keywords that hold a list of schemas, or one schema."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's Lark form.

    Attributes:
        lark: The grammar.
        parts: Grammars of what a single token can begin: a sub-value, a call. Each has a shortest
            answer; the budget keeps the longest of these in reserve. Without parts, every step is
            checked.
        unconstrained: Whether an answer without a call is any text: the grammar does not end it.
        argument: The user's argument that it was made from, for error messages.
    """

    lark: str
    parts: tuple[str, ...] = ()
    unconstrained: bool = False
    argument: str = "`grammar`"

    @classmethod
    def parse(cls, value: object) -> Grammar | None:
        """Checks what a user gives as `grammar`: a grammar, its Lark text, or None.

        Raises:
            ValueError: If it is something else, or cannot be compiled.
        """
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"`grammar` has to be a Lark grammar (`start: ...`) or None, but is {value!r}."
            )
        if problem := compile_error(value):
            raise ValueError(
                "`grammar` has to be in llguidance's Lark form (`start: ...`), but cannot be "
                f"compiled; correct it there: {problem}"
            )
        return cls(value)


def json_grammar(schema: Mapping[str, Any], argument: str = "`json_schema`") -> Grammar:
    """Makes a grammar of a JSON schema.

    Args:
        schema: The schema. Its objects hold the properties they name and no others, unless
            `additionalProperties` allows them.
        argument: The user's argument that it comes from, for error messages.

    Returns:
        The grammar.

    Raises:
        ValueError: If it is no JSON, or cannot be compiled.
    """
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{argument} has to be JSON (dicts, lists, strings, numbers), but is {schema!r}: "
            f"{error}."
        ) from error
    return _json_grammar(text, argument)


@functools.lru_cache(maxsize=32)
def _json_grammar(text: str, argument: str) -> Grammar:
    """The grammar of a JSON schema; cached, because one call needs it several times."""
    schema = json.loads(text)
    rule = f"start: {json_rule(schema)}"
    if problem := compile_error(rule):
        raise ValueError(
            f"{argument} has to be a schema that llguidance can compile, but cannot be compiled "
            f"({problem}): correct or leave out what this names."
        )
    return Grammar(rule, tuple(_parts(strict(schema))), argument=argument)


def json_rule(schema: Mapping[str, Any]) -> str:
    """Writes a JSON schema as the right side of a Lark grammar's rule."""
    return f"%json {json.dumps({'x-guidance': _JSON_STYLE, **strict(schema)})}"


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a schema whose objects hold only the properties they name, unless it says so.

    Objects that several schemas describe together (`allOf`, or `anyOf` beside `properties`) stay
    open: none of these schemas names all properties.
    """
    shared = _shared(schema)

    def closed(part: Any, keyword: str = "") -> Any:
        if not isinstance(part, Mapping):
            return part
        new = _map_subschemas(part, closed)
        if isinstance(new.get("properties"), Mapping) and id(part) not in shared:
            new.setdefault("additionalProperties", False)
        return new

    result: dict[str, Any] = closed(schema)
    return result


@functools.lru_cache(maxsize=32)
def compile_error(lark: str) -> str:
    """Returns llguidance's message about a grammar in Lark form; "" if it can be compiled."""
    from llguidance import LLMatcher

    message = str(LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark)))
    _, of_schema, problem = message.partition("failed to compile JSON schema: ")
    # It quotes our rule then, and not the user's schema.
    return re.sub(r"\n *\d+ \|.*", "", problem, flags=re.DOTALL) if of_schema else message.strip()


def _map_subschemas(schema: Mapping[str, Any], change: Callable[[Any, str], Any]) -> dict[str, Any]:
    """A copy of a schema with `change(subschema, keyword)` in place of each direct subschema."""
    new = dict(schema)
    for keyword in _NAMED:
        if isinstance(parts := schema.get(keyword), Mapping):
            new[keyword] = {name: change(part, keyword) for name, part in parts.items()}
    for keyword in _LISTED:
        if isinstance(parts := schema.get(keyword), list):
            new[keyword] = [change(part, keyword) for part in parts]
        elif keyword in schema:
            new[keyword] = change(parts, keyword)
    return new


def _shared(whole: Mapping[str, Any]) -> set[int]:
    """The `id`s of the schemas that describe one object together with other schemas."""
    shared: set[int] = set()
    seen: set[tuple[int, bool]] = set()

    def visit(part: Any, together: bool) -> None:
        if not isinstance(part, Mapping) or (id(part), together) in seen:
            return
        seen.add((id(part), together))
        all_of = part.get("allOf")
        others = len(all_of) if isinstance(all_of, list) else 0
        together |= others + len(part.keys() & {"properties", "anyOf", "oneOf", "$ref"}) > 1
        if together:
            shared.add(id(part))
        if together and "$ref" in part:
            visit(_target(str(part["$ref"]), whole), True)
        for keyword, inner in _subschemas(part):
            visit(inner, together and keyword in ("anyOf", "oneOf", "allOf"))

    visit(whole, False)
    return shared


def _target(ref: str, whole: Any) -> Any:
    """The target of a reference within a schema (`#/$defs/a`); None if there is none."""
    for key in ref.removeprefix("#").split("/")[1:]:
        if not isinstance(whole, Mapping):
            return None
        whole = whole.get(key.replace("~1", "/").replace("~0", "~"))
    return whole


def _parts(whole: Mapping[str, Any]) -> Iterator[str]:
    """Grammars of all schemas in a schema, each with the definitions it may refer to."""
    definitions = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    schemas = [whole]
    for part in schemas:  # grows as it is read
        schemas += [inner for _, inner in _subschemas(part) if isinstance(inner, Mapping)]
        yield f"start: {json_rule({**definitions, **part})}"
        properties = part.get("properties")
        # One token may begin a property: its name and its value are needed then.
        for name, value in properties.items() if isinstance(properties, Mapping) else ():
            one = {"type": "object", "properties": {name: value}, "required": [name]}
            yield f"start: {json_rule({**definitions, **one})}"


def _subschemas(schema: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The direct subschemas of a schema, each with its keyword."""
    pairs: list[tuple[str, Any]] = []
    _map_subschemas(schema, lambda part, keyword: pairs.append((keyword, part)))
    return pairs
