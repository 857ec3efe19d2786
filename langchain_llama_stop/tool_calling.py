"""Tool calls out of text, in the forms that Llama-family models write them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any, NamedTuple

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"
_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


class Parsed(NamedTuple):
    """An answer taken apart.

    Attributes:
        content: The text beside the calls.
        calls: (name, arguments) of each call.
        invalid: (text, what is wrong with it) of each call that cannot be read.
    """

    content: str
    calls: list[tuple[str, dict[str, Any]]]
    invalid: list[tuple[str, str]]


def parse_tool_calls(text: str, names: Collection[str]) -> Parsed:
    """Finds the tool calls in an answer.

    Known forms: `<tool_call>{…}</tool_call>` (Hermes, Qwen), `<|python_tag|>{…}` and plain JSON
    (Llama 3.1), each an object of a name and `arguments` or `parameters`, or a list of them.

    Args:
        text: The answer, with its special tokens.
        names: The tools there are; JSON that names none of them is an answer, and no call.

    Returns:
        The calls and the rest.
    """
    if bodies := _TAGGED.findall(text):
        content, sure = _TAGGED.sub("", text).strip(), True
    elif _PYTHON_TAG in text:
        content, _, body = text.partition(_PYTHON_TAG)
        bodies, content, sure = [body.strip()], content.strip(), True
    else:
        fenced = _FENCED.match(text.strip())
        bodies, content, sure = [fenced[1] if fenced else text.strip()], "", False
    calls, invalid = [], []
    for body in bodies:
        try:
            found = _calls(body, names)
        except ValueError as error:
            if not sure:
                return Parsed(text, [], [])
            invalid.append((body, str(error)))
        else:
            calls += found
    return Parsed(content, calls, invalid)


def call_begins(text: str) -> int:
    """Finds where a growing answer may hold a tool call.

    Args:
        text: The answer so far.

    Returns:
        The offset from which on it may be one; the length of the text if it is none so far.
    """
    start = len(text) - len(text.lstrip())
    if text[start:][:1] in ("", "{", "[") or "```".startswith(text[start : start + 3]):
        return 0
    tag = "<tool_call>"
    found = text.find(tag)
    if found < 0:
        found = next((i for i in range(len(text)) if tag.startswith(text[i:])), len(text))
    return len(text[:found].rstrip())


def _calls(body: str, names: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
    """The calls that a JSON text holds."""
    if body[:1] not in ("{", "["):
        raise ValueError("A tool call has to be JSON.")
    found, rest = [], body
    while rest:  # Llama writes several objects, with a semicolon between them
        value, end = json.JSONDecoder().raw_decode(rest)
        rest = rest[end:].lstrip("; \n")
        found += value if isinstance(value, list) else [value]
    calls = []
    for value in found:
        if not isinstance(value, dict):
            raise ValueError(f"A tool call has to be a JSON object, but is {value!r}.")
        function = value["function"] if isinstance(value.get("function"), dict) else value
        name = function.get("name")
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            arguments = json.loads(arguments)
        if not isinstance(name, str) or name not in names:
            raise ValueError(f"The tool has to be one of {', '.join(sorted(names))}, not {name!r}.")
        if not isinstance(arguments, dict):
            raise ValueError(f"A tool's arguments have to be an object, but are {arguments!r}.")
        calls.append((name, arguments))
    return calls
