"""The grammar of answers that may call tools, in any tool-call format."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from langchain_llama_stop.chat.tool_formats.base import THINKING, ToolFormat
from langchain_llama_stop.grammar.schema import Grammar, json_grammar, json_rule


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    fmt: ToolFormat,
    *,
    choice: str | None,
    several: bool = True,
    schema: Mapping[str, Any] | None = None,
) -> Grammar:
    """Makes a grammar of answers that may call tools.

    Args:
        tools: Tools in OpenAI's form, with parameters.
        fmt: How calls are written.
        choice: "any" demands calls; a name demands one call of that tool. With None and "auto" the
            model chooses: the answer is any text until a call begins, and ends with the calls.
        several: Whether one answer may hold several calls.
        schema: What an answer that calls no tool has to fit; None allows any text.

    Returns:
        The grammar.
    """
    functions = [tool["function"] for tool in tools]
    demanded = [f for f in functions if f["name"] == choice]
    calls = "\n".join(
        f"call_{i}: {fmt.rule(fmt.name + json.dumps(f['name']) + fmt.arguments)} "
        f"{json_rule(f['parameters'])} {fmt.rule(fmt.end)}"
        for i, f in enumerate(demanded or functions)
    )
    calls += f"\ncall: {' | '.join(f'call_{i}' for i in range(len(demanded or functions)))}"
    begin, between, close = map(fmt.rule, (fmt.trigger, fmt.between, fmt.close))
    one = f"start: {begin} call {close}\n{calls}"
    parts = [one, *(part for f in functions for part in json_grammar(f["parameters"]).parts)]
    make = partial(Grammar, argument="`tools`")
    if demanded:
        return make(one, tuple(parts))
    rest = f"call ({between} call)* {close}" if several else f"call {close}"
    if choice == "any":
        return make(f"start: {begin} {rest}\n{calls}", tuple(parts))
    if schema is not None:
        parts += json_grammar(schema).parts
        return make(f"start: {json_rule(schema)} | {begin} {rest}\n{calls}", tuple(parts))
    if fmt.plain:
        start = f"start: TEXT | {begin} {rest}\nTEXT: /{_not_beginning_with(fmt.trigger)}/"
    elif fmt.trigger.startswith(tuple(fmt.tokens)):  # a single token: no text can contain it
        thoughts = [fmt.rule(tag) for tag in THINKING if tag in fmt.tokens]
        text = f"({' | '.join(['TEXT', *thoughts])})*"
        start = f"start: {text} | {text} {begin} {rest}\nTEXT: /(.|\\n)+/"
    else:
        start = f"start: TEXT | head {rest}\nhead[lazy]: TEXT {begin}\nTEXT: /(.|\\n)*/"
    return make(f"{start}\n{calls}", tuple(parts), unconstrained=True)


def _not_beginning_with(prefix: str) -> str:
    """A regular expression for texts that do not begin with `prefix`."""
    texts = [f"{re.escape(prefix[:i])}([^{re.escape(c)}](.|\\n)*)?" for i, c in enumerate(prefix)]
    return "|".join(texts)
