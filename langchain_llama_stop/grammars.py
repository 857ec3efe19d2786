"""What an answer has to fit, as a grammar: a JSON schema, or calls of some tools."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_JSON_STYLE = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
"""As Python and most training data write JSON: models are led into nonsense by another spacing."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's Lark form.

    Attributes:
        lark: The grammar.
        parts: Grammars of what a single token can make due: a sub-value, a call. The longest of
            them is the reserve that is kept of a budget.
    """

    lark: str
    parts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, value: object) -> Grammar | None:
        """Reads what a user writes.

        Args:
            value: A grammar, its text, or None.

        Returns:
            The grammar; None for None.

        Raises:
            ValueError: If it is something else.
        """
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, str) or not value.strip():
            raise ValueError(
                f"`grammar` has to be a Lark grammar (`start: ...`) or None, but is {value!r}."
            )
        return cls(value)


def json_grammar(schema: Mapping[str, Any]) -> Grammar:
    """Makes a grammar of a JSON schema.

    Args:
        schema: The schema. Its objects hold the properties they name and no others, unless it
            says so.

    Returns:
        The grammar.
    """
    whole = strict(schema)
    parts = tuple(f"start: {json_rule(part)}" for part in _parts(whole, whole))
    return Grammar(f"start: {json_rule(whole)}", parts)


def json_rule(schema: Mapping[str, Any]) -> str:
    """Writes a JSON schema as a rule of a Lark grammar.

    Args:
        schema: The schema.

    Returns:
        The rule's right side.
    """
    return f"%json {json.dumps({'x-guidance': _JSON_STYLE, **strict(schema)})}"


def strict(schema: Any) -> Any:
    """A schema whose objects hold the properties they name and no others, unless it says so."""
    if isinstance(schema, Mapping):
        closed = {key: strict(value) for key, value in schema.items()}
        if "properties" in closed and isinstance(closed["properties"], dict):
            closed.setdefault("additionalProperties", False)
        return closed
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    return schema


def compile_error(grammar: Grammar) -> str:
    """Says what is wrong with a grammar.

    Args:
        grammar: The grammar.

    Returns:
        llguidance's message; "" if the grammar can be compiled.
    """
    from llguidance import LLMatcher

    return str(LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(grammar.lark)))


def _parts(schema: Any, whole: Any) -> Iterator[dict[str, Any]]:
    """The schemas within a schema, each with the definitions it may refer to."""
    if isinstance(schema, list):
        for item in schema:
            yield from _parts(item, whole)
    if not isinstance(schema, dict):
        return
    if schema.keys() & {"type", "anyOf", "oneOf", "allOf", "enum", "const", "$ref"}:
        shared = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
        yield {**shared, **schema}
        for name in schema.get("properties") or ():  # its name becomes due with its value
            one = {"properties": {name: schema["properties"][name]}, "required": [name]}
            yield {**shared, "type": "object", **one, "additionalProperties": False}
    for value in schema.values():
        yield from _parts(value, whole)
