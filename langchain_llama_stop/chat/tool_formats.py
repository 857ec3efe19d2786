"""Tool calls in the forms that Llama-family models write them: out of text, and as a grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from langchain_llama_stop.grammar.schema import Grammar, json_grammar, json_rule

_TAGS = ("<tool_call>", "<|python_tag|>")
_TAG = "|".join(map(re.escape, _TAGS))
_OPENED = re.compile(rf"(?:{_TAG})\s*(?=[{{\[])")  # a tag that stands before no JSON is a word
_CLOSED = re.compile(r"\s*</tool_call>")
_MAY_OPEN = re.compile(rf'(?:{_TAG})\s*(?:[{{\[]|\Z)|\{{"name": ')
_MAY_GROW = (*_TAGS, '{"name": ')
_BETWEEN = re.compile(r"[;\s]*(?=[{\[])")  # Llama writes several calls with semicolons between
_FENCED = re.compile(r"\A```(?:json)?\s*(.*?)\s*```\Z", re.DOTALL)

CALL_TOKENS = ("<tool_call>", "</tool_call>", "<think>", "</think>")
"""What some vocabularies have as one token, which is no text to a grammar then."""


class CallForm(NamedTuple):
    """How a family of models writes a call.

    Attributes:
        trigger: How a call begins.
        name: What stands between that and the name, which is written as JSON.
        arguments: What stands between the name and the arguments.
        end: What stands behind the arguments.
        between: What stands between two calls.
        tokens: Which of `CALL_TOKENS` are single tokens, with their ids.
    """

    trigger: str
    name: str
    arguments: str
    end: str
    between: str
    tokens: Mapping[str, int] = {}

    def rule(self, text: str) -> str:
        """A text as a Lark grammar writes it; single tokens by their ids."""
        pieces = re.split(f"({'|'.join(map(re.escape, self.tokens)) or '(?!)'})", text)
        return " ".join(
            f"<[{self.tokens[piece]}]>" if piece in self.tokens else json.dumps(piece)
            for piece in pieces
            if piece
        )


HERMES = CallForm("<tool_call>", '\n{"name": ', ', "arguments": ', "}\n</tool_call>", "\n")
LLAMA_3 = CallForm('{"name": ', "", ', "parameters": ', "}", "; ")


def call_form(template: str, tokens: Mapping[str, int] = {}) -> CallForm:  # noqa: B006
    """Finds how calls are written under a chat template.

    Args:
        template: The chat template (Jinja).
        tokens: Which of `CALL_TOKENS` are single tokens, with their ids.

    Returns:
        Llama 3's form where the template asks for `parameters`, else that of Hermes and Qwen,
        which `chat_templates.tools_text` asks for too.
    """
    own = "tools" in template and "<tool_call>" not in template
    form = LLAMA_3 if own and '"parameters"' in template else HERMES
    return form._replace(tokens=tokens)


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
        f"call_{i}: {form.rule(form.name + json.dumps(f['name']) + form.arguments)} "
        f"{json_rule(f['parameters'])} {form.rule(form.end)}"
        for i, f in enumerate(named or functions)
    )
    calls += f"\ncall: {' | '.join(f'call_{i}' for i in range(len(named or functions)))}"
    begin, between = form.rule(form.trigger), form.rule(form.between + form.trigger)
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
    if form.trigger in form.tokens:  # it may stand behind text, in which it is no token
        thinking = [form.rule(t) for t in ("<think>", "</think>") if t in form.tokens]
        text = f"({' | '.join(['TEXT', *thinking])})*"
        free = f"start: {text} | {text} {begin} {rest}\nTEXT: /(.|\\n)+/"
    elif form.trigger[0] == "<":
        free = f"start: TEXT | head {rest}\nhead[lazy]: TEXT {begin}\nTEXT: /(.|\\n)*/"
    else:
        free = f"start: TEXT | {begin} {rest}\nTEXT: /{_not_beginning_with(form.trigger)}/"
    return made(f"{free}\n{calls}", tuple(parts), free=True)


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
    content, calls, invalid, end = "", [], [], 0
    while opened := _OPENED.search(text, end):
        content += text[end : opened.start()]
        try:
            values, end = _values(text, opened.end())
        except ValueError as error:
            closed = _CLOSED.search(text, opened.end())
            end = closed.end() if closed else len(text)
            invalid.append((text[opened.start() : end], str(error)))
            continue
        if closed := _CLOSED.match(text, end):
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
        found = [_call(value, names, bare=True) for value in values]
    except ValueError:
        return Parsed(text, [], [])
    return Parsed("", found, []) if found and end == len(body) else Parsed(text, [], [])


def call_begins(text: str) -> int:
    """Finds where a growing answer may hold a tool call.

    Args:
        text: The answer so far; tags that are special tokens may be missing.

    Returns:
        The offset from which on it may be one; the length of the text if it is none so far. Up to
        there it stands in the content of `parse_tool_calls`, whatever follows.
    """
    begin = text.lstrip()
    if begin[:1] in ("", "{", "[") or "```".startswith(begin[:3]):
        return 0
    opened = _MAY_OPEN.search(text)
    longest = max(map(len, _MAY_GROW))
    first = range(max(0, len(text) - longest), len(text))
    grows = (i for i in first if any(tag.startswith(text[i:]) for tag in _MAY_GROW))
    found = opened.start() if opened else next(grows, len(text))
    return len(text[:found].rstrip())


def _values(text: str, start: int) -> tuple[list[Any], int]:
    """The JSON values that stand behind each other in a text, lists taken apart; their end."""
    found: list[Any] = []
    while True:
        value, end = _decoded(text, start)
        found += value if isinstance(value, list) else [value]
        if not (between := _BETWEEN.match(text, end)):
            return found, end
        start = between.end()


def _decoded(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at a place, and its end."""
    try:
        return json.JSONDecoder().raw_decode(text, start)
    except RecursionError as error:
        raise ValueError("It is nested too deeply.") from error


def _call(value: Any, names: Collection[str], *, bare: bool = False) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a call; a bare one, without a tag, has to bear arguments."""
    if not isinstance(value, dict):
        raise ValueError(f"A tool call has to be a JSON object, but is {value!r}.")
    function = value["function"] if isinstance(value.get("function"), dict) else value
    name = function.get("name")
    arguments = function.get("arguments", function.get("parameters", None if bare else {}))
    if isinstance(arguments, str):
        written = arguments.strip()
        arguments, end = _decoded(written, 0)
        if end < len(written):
            raise ValueError(f"A tool's arguments have to be one object, but are {written!r}.")
    if not isinstance(name, str) or name not in names:
        raise ValueError(f"The tool has to be one of {', '.join(sorted(names))}, not {name!r}.")
    if not isinstance(arguments, dict):
        raise ValueError(f"A tool's arguments have to be an object, but are {arguments!r}.")
    return name, arguments
