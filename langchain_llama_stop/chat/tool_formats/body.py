"""How the calls after an opening tag are read: JSON, or a name and its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_BETWEEN = re.compile(r"[;,\s]*(?=[{\[])")  # Llama writes several calls with semicolons between
_NAME = r"\"?\w[\w.-]*\"?"
_SPACE = re.compile(r"\s*")


class Text(str):
    """The value of an argument as a model has written it, whatever its type is."""


@dataclass(frozen=True, slots=True)
class Body:
    """What stands between the tags of a call.

    Attributes:
        begins: Matches the beginning of such a body, right after the opening tag.
        may_begin: Matches, to the end of a growing text, what may become such a beginning.
        read: Takes a text and an offset where `begins` matches. Returns calls, each as a dict of
            `name` and `arguments`, and the offset of their end; raises ValueError.
    """

    begins: re.Pattern[str]
    may_begin: re.Pattern[str]
    read: Callable[[str, int], tuple[list[Any], int]]


def json_value(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at an offset, and its end."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("It is nested too deeply.") from error


def json_values(text: str, start: int) -> tuple[list[Any], int]:
    """The JSON values that follow each other in a text, with lists taken apart; their end."""
    values: list[Any] = []
    end = after_space(text, start)
    while True:
        value, end = json_value(text, end)
        values += value if isinstance(value, list) else [value]
        if not (between := _BETWEEN.match(text, end)):
            return values, end
        end = between.end()


def after_space(text: str, start: int) -> int:
    """The offset of the first character that is no blank."""
    space = _SPACE.match(text, start)
    return space.end() if space else start


def named(head: str, tail: str, *, after: str = "", partial: str) -> Body:
    """Makes a body of a name and its arguments in JSON, as often as they follow.

    Args:
        head: Regular expression of what stands before the name.
        tail: Regular expression of what stands between name and arguments.
        after: Regular expression of what stands after the arguments. Another name may follow it.
        partial: Regular expression of any beginning of head, name and tail.

    Returns:
        The body.
    """
    begin = re.compile(rf"{head}(?P<name>{_NAME}){tail}(?=\{{)")
    rest = re.compile(after)

    def read(text: str, start: int) -> tuple[list[Any], int]:
        calls, end, match = list[Any](), start, begin.match(text, start)
        while match:
            arguments, end = json_value(text, match.end())
            calls.append({"name": match["name"].strip('"'), "arguments": arguments})
            if found := rest.match(text, end):
                end = found.end()
            match = begin.match(text, end) if after else None
        return calls, end

    return Body(begin, re.compile(rf"(?:{partial})\Z"), read)


def elements(
    begin: str,
    name_end: str,
    key: str,
    value_end: str,
    end: str,
    *,
    between: str = "",
    partial: str,
) -> Body:
    """Makes a body of a name and elements, one for each argument, with texts in them.

    Args:
        begin: Regular expression of what stands before the name.
        name_end: Regular expression of what stands after it.
        key: Regular expression of what stands before a value, with a group `key`, and `json` or
            `text` where the value is known to be that.
        value_end: The text after a value.
        end: Regular expression of what stands after the last element.
        between: Regular expression of what stands before another name; "" if there is none.
        partial: Regular expression of any beginning of begin and name.

    Returns:
        The body.
    """
    head = re.compile(rf"{begin}(?P<name>{_NAME}){name_end}")
    opening, last, more = re.compile(key), re.compile(end), re.compile(between)

    def read(text: str, start: int) -> tuple[list[Any], int]:
        calls, position, match = list[Any](), start, head.match(text, start)
        while match:
            arguments, position = dict[str, Any](), match.end()
            while found := opening.match(text, position):
                close = text.find(value_end, found.end())
                if close < 0:
                    raise ValueError(f"The argument {found['key']!r} is not closed.")
                value: Any = Text(text[found.end() : close])
                if found[0].endswith("\n"):  # then one before the closing element is not its own
                    value = Text(value.removesuffix("\n"))
                kinds = found.groupdict()
                if kinds.get("json"):
                    value = json_value(value.strip(), 0)[0]
                elif kinds.get("text"):
                    value = str(value)
                arguments[found["key"]] = value
                position = close + len(value_end)
            if not (closed := last.match(text, position)):
                raise ValueError("The call is not closed.")
            position = closed.end()
            calls.append({"name": match["name"].strip('"'), "arguments": arguments})
            other = more.match(text, position) if between else None
            match = head.match(text, other.end()) if other else None
        return calls, position

    return Body(head, re.compile(rf"(?:{partial})\Z"), read)


def fenced() -> Body:
    """A list of JSON objects in a fence."""
    fence = re.compile(r"\s*```(?:json)?\s*(?=\[)")

    def read(text: str, start: int) -> tuple[list[Any], int]:
        found = fence.match(text, start)
        values, end = json_values(text, found.end() if found else start)
        closed = re.compile(r"\s*```").match(text, end)
        return values, closed.end() if closed else end

    return Body(fence, re.compile(r"\s*(?:`{1,3}(?:j|js|jso|json)?\s*)?\Z"), read)


JSON = Body(re.compile(r"\s*[{\[]"), re.compile(r"\s*\Z"), json_values)
"""JSON objects of a name and arguments, or a list of such."""


def typed(arguments: dict[str, Any], parameters: Any) -> dict[str, Any]:
    """Arguments in the types that a tool's parameters (a JSON schema) give them.

    Args:
        arguments: The values; those that are a `Text` have no type yet.
        parameters: The schema; without one, or where it names strings only, texts stay texts.

    Returns:
        The values. A text that may be a string or something else is what it can be besides a
        string, if the schema allows that.
    """
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    known = properties if isinstance(properties, Mapping) else {}
    return {
        key: _typed(value, known.get(key), parameters) if isinstance(value, Text) else value
        for key, value in arguments.items()
    }


def _typed(text: Text, schema: Any, root: Any) -> Any:
    kinds = _kinds(schema)
    if not kinds - {"string"}:
        return str(text)
    written = {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text.strip())
    try:
        value, end = json_value(written, 0)
    except ValueError:
        return str(text)
    if end < len(written) or ("string" in kinds and not _is_other(value, schema, root)):
        return str(text)
    return value


def _is_other(value: Any, schema: Any, root: Any) -> bool:
    """Whether a value that is no string fits a schema."""
    from jsonschema import Draft202012Validator

    named = {k: v for k, v in root.items() if k in ("$defs", "definitions")}
    check = Draft202012Validator({**named, **schema})
    return not isinstance(value, str) and bool(check.is_valid(value))


def _kinds(schema: Any) -> set[str]:
    """The types that a schema allows, as far as it says so."""
    if not isinstance(schema, Mapping):
        return set()
    kinds = schema.get("type", [])
    found = {kinds} if isinstance(kinds, str) else {*kinds}
    for word in ("anyOf", "oneOf"):
        for one in schema.get(word) or ():
            found |= _kinds(one)
    if "$ref" in schema:
        found.add("object")
    values = schema.get("enum") or ()
    return found | {"string" for value in values if isinstance(value, str)}
