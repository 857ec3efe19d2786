"""Tool-call formats: one file each, registered in `FORMATS`; answers are read in all of them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from langchain_llama_stop.chat.tool_formats.base import THINKING, Call, ToolFormat
from langchain_llama_stop.chat.tool_formats.call_grammar import call_grammar
from langchain_llama_stop.chat.tool_formats.hermes import HERMES
from langchain_llama_stop.chat.tool_formats.llama3 import LLAMA_3

__all__ = [
    "FORMATS",
    "Parsed",
    "ToolFormat",
    "call_begins",
    "call_grammar",
    "parse_tool_calls",
    "tool_format",
]

FORMATS: tuple[ToolFormat, ...] = (
    HERMES,  # the first is also the one for templates that no format recognises
    LLAMA_3,
)
"""All formats. The first one that recognises a template is taken for it."""

_BETWEEN = re.compile(r"[;\s]*(?=[{\[])")  # Llama writes several calls with semicolons between
_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


def tool_format(template: str, vocabulary: Mapping[str, int] = {}) -> ToolFormat:  # noqa: B006
    """Finds how calls are written under a chat template.

    Args:
        template: The chat template (Jinja).
        vocabulary: Ids of tokens; those of calls' tags and of thinking are used.

    Returns:
        The format, with the ids of the tags that are single tokens.
    """
    fmt = next((fmt for fmt in FORMATS if fmt.recognises(template)), FORMATS[0])
    tags = (*_opening_tags(), *_closing_tags(), *THINKING)
    return replace(fmt, tokens={tag: vocabulary[tag] for tag in tags if tag in vocabulary})


class Parsed(NamedTuple):
    """An answer taken apart.

    Attributes:
        content: The text beside the calls.
        calls: (name, arguments) of each call.
        invalid: (text, what is wrong with it) of each call that cannot be read.
    """

    content: str
    calls: list[Call]
    invalid: list[tuple[str, str]]


def parse_tool_calls(text: str, names: Collection[str]) -> Parsed:
    """Finds the tool calls in an answer, in whichever of the `FORMATS` they are written.

    A call is a JSON object of a name and `arguments` or `parameters`, or a list of such objects,
    after an opening tag of a format or, without a tag, as the whole answer.

    Args:
        text: The answer, with its special tokens.
        names: Names of the tools. JSON without a tag that names none of them is an answer.

    Returns:
        The calls and the rest.
    """
    opening = re.compile(rf"(?:{_any(_opening_tags())})\s*(?=[{{\[])")  # else the tag is a word
    closing = re.compile(rf"\s*(?:{_any(_closing_tags())})")
    content, calls, invalid, end = "", [], [], 0
    while opened := opening.search(text, end):
        content += text[end : opened.start()]
        try:
            values, end = _values(text, opened.end())
        except ValueError as error:
            closed = closing.search(text, opened.end())
            end = closed.end() if closed else len(text)
            invalid.append((text[opened.start() : end], str(error)))
            continue
        if closed := closing.match(text, end):
            end = closed.end()
        try:
            calls += [_call(value, names) for value in values]
        except ValueError as error:
            invalid.append((text[opened.start() : end], str(error)))
    if end:
        return Parsed((content + text[end:]).rstrip(), calls, invalid)
    fenced = _FENCED.match(text.strip())
    body = fenced[1] if fenced else text.strip()
    try:
        values, end = _values(body, 0)
        calls = [_call(value, names, plain=True) for value in values]
    except ValueError:
        return Parsed(text, [], [])
    return Parsed("", calls, []) if calls and end == len(body) else Parsed(text, [], [])


def call_begins(text: str) -> int:
    """Finds where a growing answer may hold a tool call.

    Args:
        text: The answer so far; tags that are special tokens may be missing.

    Returns:
        The offset, in characters, from which the text may be a call; the length of the text if
        it holds none so far. `parse_tool_calls` puts the text before it into the content, whatever
        follows.
    """
    begin = text.lstrip()
    if begin[:1] in ("", "{", "[") or "```".startswith(begin[:3]):
        return 0
    plain = [fmt.trigger for fmt in FORMATS if fmt.plain]
    complete = re.search(rf"(?:{_any(_opening_tags())})\s*(?:[{{\[]|\Z)|{_any(plain)}", text)
    triggers = (*_opening_tags(), *plain)
    longest = max(map(len, triggers))
    last = range(max(0, len(text) - longest), len(text))
    partial = (i for i in last if any(trigger.startswith(text[i:]) for trigger in triggers))
    start = complete.start() if complete else next(partial, len(text))
    return len(text[:start].rstrip())


def _opening_tags() -> list[str]:
    return [tag for fmt in FORMATS for tag in fmt.opening_tags]


def _closing_tags() -> list[str]:
    return [tag for fmt in FORMATS for tag in fmt.closing_tags]


def _any(texts: Collection[str]) -> str:
    """A regular expression for any of some texts."""
    return "|".join(map(re.escape, texts)) or r"(?!)"


def _values(text: str, start: int) -> tuple[list[Any], int]:
    """The JSON values that follow each other in a text, with lists taken apart; their end."""
    values: list[Any] = []
    while True:
        value, end = _decoded(text, start)
        values += value if isinstance(value, list) else [value]
        if not (between := _BETWEEN.match(text, end)):
            return values, end
        start = between.end()


def _decoded(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at an offset, and its end."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("It is nested too deeply.") from error


def _call(value: Any, names: Collection[str], *, plain: bool = False) -> Call:
    """Name and arguments of a call; one without a tag must have arguments."""
    if not isinstance(value, dict):
        raise ValueError(f"A tool call has to be a JSON object, but is {value!r}.")
    function = value["function"] if isinstance(value.get("function"), dict) else value
    name = function.get("name")
    arguments = function.get("arguments", function.get("parameters", None if plain else {}))
    if isinstance(arguments, str):
        stripped = arguments.strip()
        arguments, end = _decoded(stripped, 0)
        if end < len(stripped):
            raise ValueError(f"A tool's arguments have to be one object, but are {stripped!r}.")
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"The tool has to be one of {', '.join(sorted(names))}, not {name!r}.")
    if not isinstance(arguments, dict):
        raise ValueError(f"A tool's arguments have to be an object, but are {arguments!r}.")
    return name, arguments
