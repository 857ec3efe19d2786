"""The grammar of answers that may call tools, in any tool-call format."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_llama_stop.chat.tool_formats.base import THINKING, ToolFormat
from langchain_llama_stop.grammar.regex import ANYTHING, EVERY, both, cat, chars, literal, no
from langchain_llama_stop.grammar.rules import (
    Rules,
    Terminal,
    regex_terminal,
    text_terminal,
    token_terminal,
)
from langchain_llama_stop.grammar.schema import Grammar, add_schema, tool_argument


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
    rules, unchecked = Rules(), dict[str, None]()
    functions = [tool["function"] for tool in tools]
    demanded = [f for f in functions if f["name"] == choice]

    def value(part: Mapping[str, Any], argument: str) -> int:
        number, weak = add_schema(rules, part, argument)
        unchecked.update(dict.fromkeys(weak))
        return number

    call = rules.new(
        *(
            [
                *_pieces(fmt, fmt.name + json.dumps(f["name"]) + fmt.arguments),
                value(f["parameters"], tool_argument(f["name"])),
                *_pieces(fmt, fmt.end),
            ]
            for f in demanded or functions
        )
    )
    begin, between, close = (_pieces(fmt, t) for t in (fmt.trigger, fmt.between, fmt.close))
    more = rules.new([])
    if several and not demanded:
        rules.alternatives[more].append((more, *between, call))
    calls = (call, more, *close)
    free = schema is None and not demanded and choice != "any"
    if not free:
        options: list[Sequence[int | Terminal]] = [(*begin, *calls)]
        if schema is not None and not demanded and choice != "any":
            options.insert(0, (value(schema, "`json_schema`"),))
        start = rules.new(*options)
    elif fmt.plain:
        other = regex_terminal(no(cat(literal(fmt.trigger), ANYTHING)), "text")
        start = rules.new((other,), (text_terminal(fmt.trigger), *calls))
    elif fmt.trigger.startswith(tuple(fmt.tokens)):  # a single token: no text can contain it
        text = rules.new([])
        thoughts = [token_terminal(fmt.tokens[tag]) for tag in THINKING if tag in fmt.tokens]
        some = regex_terminal(cat(chars(EVERY), ANYTHING), "text")
        rules.alternatives[text] += [(text, piece) for piece in (some, *thoughts)]
        start = rules.new((text,), (text, *begin, *calls))
    else:  # any text up to the first trigger, or without one
        last = cat(ANYTHING, literal(fmt.trigger))
        other = regex_terminal(no(cat(last, ANYTHING)), "text")
        head = regex_terminal(both(last, no(cat(last, chars(EVERY), ANYTHING))), "text")
        start = rules.new((other,), (head, *calls))
    return Grammar.of_rules(
        rules, start, unconstrained=free, argument="`tools`", unchecked=tuple(unchecked)
    )


def _pieces(fmt: ToolFormat, text: str) -> list[int | Terminal]:
    """A text of a format as terminals: single tokens by their ids, JSON as schemas write it.

    llguidance takes the longest piece that may come next; so what may begin alike has to be cut
    alike.
    """
    tokens = "|".join(map(re.escape, fmt.tokens)) or "(?!)"
    pieces = re.findall(rf'{tokens}|"[^"]*"|[{{}}\[\]]|, |: |[^"{{}}\[\],:<]+|.', text, re.DOTALL)
    return [
        token_terminal(fmt.tokens[piece]) if piece in fmt.tokens else text_terminal(piece)
        for piece in pieces
    ]
