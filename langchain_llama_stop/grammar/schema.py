"""What an answer has to fit, as a grammar: a JSON schema, or calls of some tools."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_JSON_STYLE = {"whitespace_flexible": False, "key_separator": ": ", "item_separator": ", "}
"""As Python and most training data write JSON: models are led into nonsense by another spacing."""

_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_LISTED = ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf")
"""The keywords under which schemas stand: by name; in a list, or one alone."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's Lark form.

    Attributes:
        lark: The grammar.
        parts: Grammars of what a single token can make due: a sub-value, a call. The longest of
            them is the reserve that is kept of a budget. Without any, every step is checked.
        free: Whether an answer may end anywhere, as long as it holds no call: such an answer is
            not ended by its grammar.
        argument: What it was made of, as messages call it.
    """

    lark: str
    parts: tuple[str, ...] = ()
    free: bool = False
    argument: str = "`grammar`"

    @classmethod
    def parse(cls, value: object) -> Grammar | None:
        """Reads what a user writes.

        Args:
            value: A grammar, its text, or None.

        Returns:
            The grammar; None for None.

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
                f"compiled; mend it there: {problem}"
            )
        return cls(value)


def json_grammar(schema: Mapping[str, Any], argument: str = "`json_schema`") -> Grammar:
    """Makes a grammar of a JSON schema.

    Args:
        schema: The schema. Its objects hold the properties they name and no others, unless it
            says so.
        argument: What it was given as, as messages call it.

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


@functools.lru_cache(maxsize=256)
def _json_grammar(text: str, argument: str) -> Grammar:
    """The grammar of a JSON schema; a call asks for the same one several times."""
    schema = json.loads(text)
    rule = f"start: {json_rule(schema)}"
    if problem := compile_error(rule):
        raise ValueError(
            f"{argument} has to be a schema that decoding can be constrained to, but cannot be "
            f"compiled ({problem}): mend or leave out what this names."
        )
    return Grammar(rule, tuple(_parts(strict(schema))), argument=argument)


def json_rule(schema: Mapping[str, Any]) -> str:
    """Writes a JSON schema as a rule of a Lark grammar.

    Args:
        schema: The schema.

    Returns:
        The rule's right side.
    """
    return f"%json {json.dumps({'x-guidance': _JSON_STYLE, **strict(schema)})}"


def strict(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Closes the objects of a schema: they hold the properties they name, unless it says so.

    Args:
        schema: The schema.

    Returns:
        A new schema. Objects that several schemas describe together (`allOf`, or `anyOf` beside
        `properties`) stay open: none of these schemas names all properties.
    """
    shared = _shared(schema)

    def closed(part: Any, keyword: str = "") -> Any:
        if not isinstance(part, Mapping):
            return part
        new = _changed(part, closed)
        if isinstance(new.get("properties"), Mapping) and id(part) not in shared:
            new.setdefault("additionalProperties", False)
        return new

    result: dict[str, Any] = closed(schema)
    return result


@functools.lru_cache(maxsize=256)
def compile_error(lark: str) -> str:
    """Says what is wrong with a grammar.

    Args:
        lark: The grammar, in Lark form.

    Returns:
        llguidance's message; "" if the grammar can be compiled.
    """
    from llguidance import LLMatcher

    message = str(LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark)))
    _, of_schema, problem = message.partition("failed to compile JSON schema: ")
    # What it quotes is our rule then, and not what the user has written.
    return re.sub(r"\n *\d+ \|.*", "", problem, flags=re.DOTALL) if of_schema else message.strip()


def _changed(schema: Mapping[str, Any], change: Callable[[Any, str], Any]) -> dict[str, Any]:
    """A schema with other schemas in place of those in it; `change` is told their keyword."""
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
    """The `id`s of the schemas that describe an object together with others."""
    shared: set[int] = set()
    seen: set[tuple[int, bool]] = set()

    def look(part: Any, together: bool) -> None:
        if not isinstance(part, Mapping) or (id(part), together) in seen:
            return
        seen.add((id(part), together))
        all_of = part.get("allOf")
        others = len(all_of) if isinstance(all_of, list) else 0
        together |= others + len(part.keys() & {"properties", "anyOf", "oneOf", "$ref"}) > 1
        if together:
            shared.add(id(part))
        if together and "$ref" in part:
            look(_target(str(part["$ref"]), whole), True)
        for keyword, inner in _within(part):
            look(inner, together and keyword in ("anyOf", "oneOf", "allOf"))

    look(whole, False)
    return shared


def _target(ref: str, whole: Any) -> Any:
    """What a reference within a schema (`#/$defs/a`) points to; None if there is nothing."""
    for key in ref.removeprefix("#").split("/")[1:]:
        if not isinstance(whole, Mapping):
            return None
        whole = whole.get(key.replace("~1", "/").replace("~0", "~"))
    return whole


def _parts(whole: Mapping[str, Any]) -> Iterator[str]:
    """Grammars of the schemas within a schema, each with the definitions it may refer to."""
    definitions = {key: whole[key] for key in ("$defs", "definitions") if key in whole}
    found = [whole]
    for part in found:
        found += [inner for _, inner in _within(part) if isinstance(inner, Mapping)]
        yield f"start: {json_rule({**definitions, **part})}"
        properties = part.get("properties")
        # The name of a property becomes due together with its value.
        for name, value in properties.items() if isinstance(properties, Mapping) else ():
            one = {"type": "object", "properties": {name: value}, "required": [name]}
            yield f"start: {json_rule({**definitions, **one})}"


def _within(schema: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The schemas in a schema, with the keyword each stands under."""
    found: list[tuple[str, Any]] = []
    _changed(schema, lambda part, keyword: found.append((keyword, part)))
    return found
