"""Tool-call formats: one file each, registered in `FORMATS`; answers are read in all of them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from langchain_llama_stop.chat.thoughts import TAGS
from langchain_llama_stop.chat.tool_formats.base import Call, ToolFormat
from langchain_llama_stop.chat.tool_formats.body import (
    JSON,
    Body,
    after_space,
    json_value,
    json_values,
    typed,
)
from langchain_llama_stop.chat.tool_formats.call_grammar import call_grammar
from langchain_llama_stop.chat.tool_formats.command_r import COMMAND_R
from langchain_llama_stop.chat.tool_formats.deepseek import (
    DEEPSEEK,
    DEEPSEEK_V3_1,
    DEEPSEEK_V3_2,
    DEEPSEEK_V4,
)
from langchain_llama_stop.chat.tool_formats.functionary import FUNCTIONARY
from langchain_llama_stop.chat.tool_formats.gemma import GEMMA
from langchain_llama_stop.chat.tool_formats.glm import GLM
from langchain_llama_stop.chat.tool_formats.granite import GRANITE
from langchain_llama_stop.chat.tool_formats.hermes import HERMES
from langchain_llama_stop.chat.tool_formats.hunyuan import HUNYUAN
from langchain_llama_stop.chat.tool_formats.kimi import KIMI
from langchain_llama_stop.chat.tool_formats.lfm import LFM
from langchain_llama_stop.chat.tool_formats.lists import (
    COHERE,
    MINIMAX_M1,
    NEMOTRON,
    TOOL_CALLS,
)
from langchain_llama_stop.chat.tool_formats.llama3 import LLAMA_3
from langchain_llama_stop.chat.tool_formats.minimax import MINIMAX
from langchain_llama_stop.chat.tool_formats.mistral import MISTRAL, MISTRAL_ARGS, MISTRAL_IDS
from langchain_llama_stop.chat.tool_formats.qwen_coder import QWEN_CODER, SEED

__all__ = [
    "FORMATS",
    "Parsed",
    "ToolFormat",
    "call_begins",
    "call_grammar",
    "call_tags",
    "is_known_format",
    "parse_tool_calls",
    "tool_format",
]

FORMATS: tuple[ToolFormat, ...] = (
    SEED,
    QWEN_CODER,
    FUNCTIONARY,
    HUNYUAN,
    GLM,
    MINIMAX,
    DEEPSEEK_V3_1,
    DEEPSEEK,
    DEEPSEEK_V3_2,
    DEEPSEEK_V4,
    KIMI,
    MISTRAL_IDS,
    MISTRAL_ARGS,
    MISTRAL,
    GRANITE,
    NEMOTRON,
    MINIMAX_M1,
    TOOL_CALLS,
    COHERE,
    COMMAND_R,
    GEMMA,
    LFM,
    HERMES,
    LLAMA_3,
)
"""All formats. The first one that recognises a template is taken for it."""
UNKNOWN = HERMES
"""The format for templates that no format recognises."""

_CONTROL = re.compile(r"<.+>|\[.+\]", re.DOTALL)
_EXAMPLE = [("f", {"a": "b", "c": 1}), ("f", {})]
_KEYS = {"name", "tool_name", "function", "id", "tool_call_id", "type"}
"""What an object of a call may hold besides its arguments."""


def tool_format(template: str, vocabulary: Mapping[str, int] = {}) -> ToolFormat:  # noqa: B006
    """Finds how calls are written under a chat template.

    Args:
        template: The chat template (Jinja).
        vocabulary: Ids of the added tokens that do not end an answer.

    Returns:
        The format, with the ids of the control tokens that the template or a call may write.
    """
    fmt = next((fmt for fmt in FORMATS if fmt.recognises(template)), UNKNOWN)
    texts = (fmt.write(_EXAMPLE), *fmt.closing_tags, *(tag for tags in TAGS for tag in tags))
    tokens = {
        token: number
        for token, number in vocabulary.items()
        if _CONTROL.fullmatch(token) and any(token in text for text in (template, *texts))
    }
    found = [tags for tags in TAGS if tags[0] in template or tags[0] in tokens]
    thoughts = dict.fromkeys((*fmt.thoughts, *found))
    return replace(fmt, tokens=tokens, thoughts=tuple(thoughts))


def is_known_format(template: str) -> bool:
    """Whether one of the formats recognises a chat template (Jinja)."""
    return any(fmt.recognises(template) for fmt in FORMATS)


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

    A call stands after an opening tag of a format, in one of the forms of that tag; or it is a
    JSON object of a name and `arguments` or `parameters`, or a list of such, without a tag, as the
    whole answer.

    Args:
        text: The answer, with its special tokens.
        names: Names of the tools, or a mapping of them to their parameters, which tell the types
            of arguments that are written as texts. JSON without a tag that names none of them is
            an answer.

    Returns:
        The calls and the rest.
    """
    opening = re.compile(_any(_opening_tags()))
    closing = re.compile(_any(_closing_tags()))
    pieces, calls, invalid, end, search = list[str](), list[Call](), [], 0, 0
    while opened := opening.search(text, search):
        search = opened.end()
        body = next((b for b in _bodies(opened[0]) if b.begins.match(text, search)), None)
        if body is None:  # the tag is a word
            continue
        pieces.append(text[end : opened.start()])
        try:
            values, end = body.read(text, search)
        except ValueError as error:
            closed = closing.search(text, search)
            end = search = closed.end() if closed else len(text)
            invalid.append((text[opened.start() : end], str(error)))
            continue
        if closed := closing.match(text, after_space(text, end)):
            end = closed.end()
        search = end
        try:
            calls += [_call(value, names) for value in values]
        except ValueError as error:
            invalid.append((text[opened.start() : end], str(error)))
    if end:
        return Parsed("".join([*pieces, text[end:]]).rstrip(), calls, invalid)
    body_text = _without_fence(text.strip())
    try:
        values, end = json_values(body_text, 0)
        calls = [_call(value, names, plain=True) for value in values]
    except ValueError:
        return Parsed(text, [], [])
    return Parsed("", calls, []) if calls and end == len(body_text) else Parsed(text, [], [])


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
    triggers = (*_opening_tags(), *plain)
    longest = max(map(len, triggers))
    last = range(max(0, len(text) - longest), len(text))
    start = next((i for i in last if any(t.startswith(text[i:]) for t in triggers)), len(text))
    for found in re.finditer(f"{_any(_opening_tags())}|{_any(plain)}", text):
        if found.start() >= start:
            break
        if found[0] in plain or any(
            body.begins.match(text, found.end()) or body.may_begin.match(text, found.end())
            for body in _bodies(found[0])
        ):
            start = found.start()
            break
    return len(text[:start].rstrip())


def _bodies(tag: str) -> list[Body]:
    """The forms of calls that may follow an opening tag."""
    return [*(body for fmt in FORMATS if tag in fmt.opening_tags for body in fmt.bodies), JSON]


def _without_fence(text: str) -> str:
    """A text without the fence of a code block, if it is one."""
    if len(text) < 6 or not text.startswith("```") or not text.endswith("```"):
        return text
    return text[3:-3].removeprefix("json").strip()


def call_tags() -> list[str]:
    """The tags around calls, in all formats."""
    return [*_opening_tags(), *_closing_tags()]


def _opening_tags() -> list[str]:
    return [tag for fmt in FORMATS for tag in fmt.opening_tags]


def _closing_tags() -> list[str]:
    return [tag for fmt in FORMATS for tag in fmt.closing_tags]


def _any(texts: Collection[str]) -> str:
    """A regular expression for any of some texts."""
    return "|".join(map(re.escape, texts)) or r"(?!)"


def _call(value: Any, names: Collection[str], *, plain: bool = False) -> Call:
    """Name and arguments of a call; one without a tag must have arguments."""
    if not isinstance(value, dict):
        raise ValueError(f"A tool call has to be a JSON object, but is {value!r}.")
    function = value["function"] if isinstance(value.get("function"), dict) else value
    name = function.get("name", function.get("tool_name"))
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"The tool has to be one of {', '.join(sorted(names))}, not {name!r}.")
    given = [function[key] for key in ("arguments", "parameters") if key in function]
    if not given and (others := [key for key in function if key not in _KEYS]):
        raise ValueError(
            f"A tool's arguments have to stand under `arguments`, but the call has {others[0]!r}."
        )
    if plain and not given:
        raise ValueError("A tool's arguments have to stand under `arguments`.")
    arguments = given[0] if given else {}
    if isinstance(arguments, str):
        stripped = arguments.strip()
        arguments, end = json_value(stripped, 0)
        if end < len(stripped):
            raise ValueError(f"A tool's arguments have to be one object, but are {stripped!r}.")
    if not isinstance(arguments, dict):
        raise ValueError(f"A tool's arguments have to be an object, but are {arguments!r}.")
    return name, typed(arguments, names[name] if isinstance(names, Mapping) else None)
