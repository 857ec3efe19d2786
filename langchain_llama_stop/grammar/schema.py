"""Grammars that answers have to fit, and how they are made from JSON schemas."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from langchain_llama_stop.grammar.json_rules import JsonRules
from langchain_llama_stop.grammar.keys import Keys, shortest_completion
from langchain_llama_stop.grammar.read_schema import validator
from langchain_llama_stop.grammar.rules import Parser, Rules

logger = logging.getLogger("langchain_llama_stop")

_MOST_KEPT = 32
"""Grammars of schemas that are kept. One takes some 100 kB."""
_kept: dict[str, Grammar] = {}


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar in llguidance's Lark form.

    Attributes:
        lark: The grammar.
        parser: The `Parser` of its rules; None for a grammar that the user wrote.
        unconstrained: Whether an answer without a call is any text: the grammar does not end it.
        argument: The user's argument that it was made from, for error messages.
        unchecked: Keywords of the schema that decoding does not enforce.
        schema: The JSON schema that it was made from, as text.
    """

    lark: str
    parser: Any = field(default=None, compare=False, repr=False)  # Pydantic looks at the type
    unconstrained: bool = False
    argument: str = "`grammar`"
    unchecked: tuple[str, ...] = ()
    schema: str | None = None

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

    @classmethod
    def of_rules(
        cls,
        rules: Rules,
        start: int,
        *,
        argument: str,
        unconstrained: bool = False,
        unchecked: tuple[str, ...] = (),
        schema: str | None = None,
    ) -> Grammar:
        """A grammar of some rules, without those that no answer can use.

        Raises:
            ValueError: If no answer fits.
        """
        parser = Parser(rules, start)
        if shortest_completion(parser.begin(), Keys()) is None:
            raise ValueError(f"{argument} has to be a schema that some value fits, but none does.")
        lark = parser.lark()
        if problem := compile_error(lark):
            raise ValueError(
                f"{argument} has to be a schema that llguidance can compile, but it cannot: "
                f"{problem}: simplify it."
            )
        return cls(lark, parser, unconstrained, argument, unchecked, schema)


def json_grammar(schema: Mapping[str, Any], argument: str = "`json_schema`") -> Grammar:
    """Makes a grammar of a JSON schema.

    Args:
        schema: The schema. Its objects hold the properties they name, in their order, and no
            others, unless `additionalProperties` allows them. What decoding cannot enforce is
            told by a warning.
        argument: The user's argument that it comes from, for error messages.

    Returns:
        The grammar.

    Raises:
        ValueError: If it is no JSON, no value fits it, or it holds what cannot be enforced at all.
    """
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{argument} has to be JSON (dicts, lists, strings, numbers), but is {schema!r:.200}: "
            f"{error}."
        ) from error
    # Kept, because one call needs it several times, under the names of several arguments.
    grammar = _kept.get(text)
    if grammar is None:
        grammar = _kept[text] = _json_grammar(text, argument)
        for oldest in list(_kept)[:-_MOST_KEPT]:
            _kept.pop(oldest, None)
    return replace(grammar, argument=argument)


def _json_grammar(text: str, argument: str) -> Grammar:
    """The grammar of a JSON schema; a warning tells what it does not enforce."""
    rules = Rules()
    start, unchecked = add_schema(rules, json.loads(text), argument)
    if unchecked:
        logger.warning(
            "%s: decoding does not enforce %s; answers are checked after they are complete.",
            argument,
            ", ".join(f"`{keyword}`" for keyword in unchecked),
        )
    return Grammar.of_rules(rules, start, argument=argument, unchecked=unchecked, schema=text)


def add_schema(
    rules: Rules, schema: Mapping[str, Any], argument: str
) -> tuple[int, tuple[str, ...]]:
    """Adds a JSON schema to some rules.

    Args:
        rules: The rules, which grow.
        schema: The schema.
        argument: The user's argument that it comes from, for error messages.

    Returns:
        The number of the rule for its values, and the keywords that decoding does not enforce.

    Raises:
        ValueError: As `json_grammar`.
    """
    added = JsonRules(rules)
    try:
        start = added.add(schema)
    except ValueError as error:
        raise ValueError(
            f"{argument} has to be a schema that can be enforced, but {error}: correct or leave "
            "out what this names."
        ) from error
    return start, tuple(added.unchecked)


@functools.lru_cache(maxsize=32)
def compile_error(lark: str) -> str:
    """Returns llguidance's message about a grammar in Lark form; "" if it can be compiled."""
    from llguidance import LLMatcher

    return str(LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(lark))).strip()


def violation(schema: Mapping[str, Any], value: Any, argument: str) -> str:
    """What in a value does not fit a schema, as far as decoding may not have enforced it.

    Args:
        schema: The schema, which `json_grammar` takes.
        value: The value of an answer.
        argument: The user's argument that the schema comes from, as `json_grammar` was told.

    Returns:
        What `jsonschema` says about the first violation; "" if there is none.
    """
    from referencing.exceptions import Unresolvable

    if not json_grammar(schema, argument).unchecked:
        return ""
    try:
        found = next(validator(schema).iter_errors(value), None)
    except (re.error, Unresolvable):  # a pattern or a reference that `jsonschema` does not know
        return ""
    return "" if found is None else str(found.message)


def tool_argument(name: str) -> str:
    """How errors and warnings call the schema of a tool."""
    return f"The schema of the tool {name!r}"
