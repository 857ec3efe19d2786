"""Tool calls in the forms that Llama-family models write them: out of text, and as a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from langchain_llama_stop.grammars import Grammar, json_grammar, json_rule

_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)", re.DOTALL)
_PYTHON_TAG = "<|python_tag|>"
_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)


class CallForm(NamedTuple):
    """How a family of models writes a call.

    Attributes:
        trigger: How a call begins.
        name: What stands between that and the name, which is written as JSON.
        arguments: What stands between the name and the arguments.
        end: What stands behind the arguments.
        between: What stands between two calls.
    """

    trigger: str
    name: str
    arguments: str
    end: str
    between: str


HERMES = CallForm("<tool_call>", '\n{"name": ', ', "arguments": ', "}\n</tool_call>", "\n")
LLAMA_3 = CallForm('{"name": ', "", ', "parameters": ', "}", "; ")


def call_form(template: str) -> CallForm:
    """Finds how calls are written under a chat template.

    Args:
        template: The chat template (Jinja).

    Returns:
        Llama 3's form where the template asks for `parameters`, else that of Hermes and Qwen,
        which `chat_templates.tools_text` asks for too.
    """
    own = "tools" in template and "<tool_call>" not in template
    return LLAMA_3 if own and '"parameters"' in template else HERMES


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    form: CallForm,
    *,
    choice: str | None,
    several: bool = True,
    schema: Mapping[str, Any] | None = None,
) -> Grammar:
    """Makes a grammar of answers that may call tools.

    Args:
        tools: Tools in OpenAI's form, with parameters.
        form: How calls are written.
        choice: "any" demands calls, a name one call of that tool; None and "auto" leave it to the
            model: an answer is free until a call begins, and nothing stands behind the calls.
        several: Whether one answer may hold several calls.
        schema: What an answer that calls no tool has to fit; None leaves it free.

    Returns:
        The grammar.
    """
    functions = [tool["function"] for tool in tools]
    named = [f for f in functions if f["name"] == choice]
    calls = "\n".join(
        f"call_{i}: {_text(form.name + json.dumps(f['name']) + form.arguments)} "
        f"{json_rule(f['parameters'])} {_text(form.end)}"
        for i, f in enumerate(named or functions)
    )
    calls += f"\ncall: {' | '.join(f'call_{i}' for i in range(len(named or functions)))}"
    begin, between = _text(form.trigger), _text(form.between + form.trigger)
    one = f"start: {begin} call\n{calls}"
    parts = [one, *(part for f in functions for part in json_grammar(f["parameters"]).parts)]
    made = partial(Grammar, argument="`tools`")
    if named:
        return made(one, tuple(parts))
    rest = f"call ({between} call)*" if several else "call"
    if choice == "any":
        return made(f"start: {begin} {rest}\n{calls}", tuple(parts))
    if schema is not None:
        parts += json_grammar(schema).parts
        return made(f"start: {json_rule(schema)} | {begin} {rest}\n{calls}", tuple(parts))
    if form.trigger[0] == "<":  # it may stand behind text
        free = f"start: TEXT | head {rest}\nhead[lazy]: TEXT {begin}\nTEXT: /(.|\\n)*/"
    else:
        free = f"start: TEXT | {begin} {rest}\nTEXT: /{_not_beginning_with(form.trigger)}/"
    return made(f"{free}\n{calls}", tuple(parts), free=True)


def _text(text: str) -> str:
    """A text as a Lark grammar writes it."""
    return json.dumps(text)


def _not_beginning_with(prefix: str) -> str:
    """A regular expression for texts that do not begin with another."""
    ways = [f"{re.escape(prefix[:i])}([^{re.escape(c)}](.|\\n)*)?" for i, c in enumerate(prefix)]
    return "|".join(ways)


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
