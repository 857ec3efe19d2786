"""Reads values that are nearly JSON: Python's, and Gemma 4's."""

from __future__ import annotations

import ast
import re
from typing import Any

from langchain_llama_stop.chat.tool_formats.body import Body, after_space, json_value

_QUOTE = '<|"|>'
_STRING = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"", re.DOTALL)
_WORD = re.compile(r"[^\s\"'(),:=\[\]{}<>]+")
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_CLOSERS = {"[": "]", "{": "}", "(": ")"}


def python_calls() -> Body:
    """Calls as Python writes them, in a list."""

    def read(text: str, start: int) -> tuple[list[Any], int]:
        calls, position = list[Any](), after_space(text, start) + 1
        while True:
            name, position = _key(text, after_space(text, position))
            arguments, position = members(text, position, "(", "=")
            calls.append({"name": name, "arguments": arguments})
            position = after_space(text, position)
            if text[position : position + 1] == "]":
                return calls, position + 1
            position = _expect(text, position, ",")

    return Body(
        re.compile(r"\s*\[\s*\w[\w.-]*\("), re.compile(r"\s*(?:\[\s*(?:\w[\w.-]*)?)?\Z"), read
    )


def gemma_call() -> Body:
    """One call as Gemma 4 writes it."""

    def read(text: str, start: int) -> tuple[list[Any], int]:
        name, position = _key(text, text.index(":", start) + 1)
        arguments, position = members(text, position, "{", ":")
        return [{"name": name, "arguments": arguments}], position

    return Body(
        re.compile(r"\s*call:\w[\w.-]*\{"),
        re.compile(r"\s*(?:c?a?l?l?|call:(?:\w[\w.-]*)?)\Z"),
        read,
    )


def members(text: str, position: int, opening: str, sign: str) -> tuple[dict[str, Any], int]:
    """Keys and values between brackets, and the offset of their end.

    Raises:
        ValueError: If that is not what stands there, or it is nested too deeply.
    """
    found: dict[str, Any] = {}
    position = after_space(text, _expect(text, position, opening))
    while text[position : position + 1] != _CLOSERS[opening]:
        key, position = _key(text, position)
        position = _expect(text, after_space(text, position), sign)
        found[key], position = _value(text, after_space(text, position))
        position = _next(text, position, _CLOSERS[opening])
    return found, position + 1


def _value(text: str, position: int) -> tuple[Any, int]:
    sign = text[position : position + 1]
    try:
        if sign == "{":
            return members(text, position, "{", ":")
        if sign == "[":
            items = list[Any]()
            position = after_space(text, position + 1)
            while text[position : position + 1] != "]":
                item, position = _value(text, position)
                items.append(item)
                position = _next(text, position, "]")
            return items, position + 1
    except RecursionError as error:
        raise ValueError("It is nested too deeply.") from error
    if text.startswith(_QUOTE, position) or sign in ("'", '"'):
        return _key(text, position)
    word = _WORD.match(text, position)
    if word and word[0] in _WORDS:
        return _WORDS[word[0]], word.end()
    return json_value(text, position)


def _key(text: str, position: int) -> tuple[str, int]:
    """A string in any quotes, or a word without."""
    if text.startswith(_QUOTE, position):
        begin = position + len(_QUOTE)
        end = text.find(_QUOTE, begin)
        if end < 0:
            raise ValueError("A string is not closed.")
        return text[begin:end], end + len(_QUOTE)
    if found := _STRING.match(text, position):
        try:
            value, _ = json_value(text, position)
        except ValueError:  # not as JSON writes it
            try:
                value = ast.literal_eval(found[0].replace("\n", "\\n"))
            except (SyntaxError, ValueError) as error:
                raise ValueError(f"{found[0]:.40} is no string.") from error
        return str(value), found.end()
    if found := _WORD.match(text, position):
        return found[0], found.end()
    raise ValueError(f"A name has to stand at {text[position : position + 20]!r}.")


def _next(text: str, position: int, closer: str) -> int:
    """The offset of the next item or of the closing bracket."""
    position = after_space(text, position)
    if text[position : position + 1] == closer:
        return position
    return after_space(text, _expect(text, position, ","))


def _expect(text: str, position: int, sign: str) -> int:
    if not text.startswith(sign, position):
        raise ValueError(f"{sign!r} has to stand at {text[position : position + 20]!r}.")
    return position + len(sign)
