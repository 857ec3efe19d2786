"""The grammar of answers that may call tools, in any tool-call format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_llama_stop.chat.tool_formats.arguments import (
    ArgumentRules,
    Pieces,
    contains,
    pieces,
    up_to,
)
from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.grammar.regex import (
    ANYTHING,
    EVERY,
    NOTHING,
    Regex,
    both,
    cat,
    chars,
    either,
    literal,
    no,
    repeat,
)
from langchain_llama_stop.grammar.rules import Rules
from langchain_llama_stop.grammar.schema import Grammar, add_schema, tool_argument
from langchain_llama_stop.grammar.terminal import (
    Terminal,
    regex_terminal,
    text_terminal,
    token_terminal,
)

_BLANKS = repeat(chars([(ord(c), ord(c)) for c in " \n\t\r"]))


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    fmt: ToolFormat,
    *,
    choice: str | None,
    several: bool = True,
    schema: Mapping[str, Any] | None = None,
    thought: str = "",
) -> Grammar:
    """Makes a grammar of answers that may call tools.

    Args:
        tools: Tools in OpenAI's form, with parameters.
        fmt: How calls are written.
        choice: "any" demands calls; a name demands one call of that tool. With None and "auto" the
            model chooses: the answer is any text until a call begins, and ends with the calls. In
            its thoughts no call begins.
        several: Whether one answer may hold several calls.
        schema: What an answer that calls no tool has to fit; None allows any text.
        thought: The tag that closes the thought that the prompt has begun; "" if it has begun none.

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

    def arguments(function: Mapping[str, Any]) -> int:
        if fmt.element is None:
            return value(function["parameters"], tool_argument(function["name"]))
        added = (fmt.element.style or ArgumentRules)(rules, fmt.element, fmt.tokens)
        number = added.add_arguments(function["parameters"])
        unchecked.update(dict.fromkeys(added.unchecked))
        return number

    def written(text: str) -> Pieces:
        return pieces(rules, fmt.tokens, text)

    def named(name: str) -> Pieces:
        if not fmt.is_bare:
            return written(fmt.name + fmt.written_name(name) + fmt.arguments)
        return [*written(fmt.name), text_terminal(name), *written(fmt.arguments)]

    call = rules.new(
        *([*named(f["name"]), arguments(f), *written(fmt.end)] for f in demanded or functions)
    )
    more = rules.new([])
    if several and not demanded:
        rules.alternatives[more].append((more, *written(fmt.between), call))
    calls = (call, more, *written(fmt.close))
    free = schema is None and not demanded and choice != "any"
    if free:
        start = _free(rules, fmt, calls, thought)
    else:
        start = rules.new((*written(fmt.trigger), *calls))
        if schema is not None and not demanded and choice != "any":
            rules.alternatives[start].insert(0, (value(schema, "`json_schema`"),))
    return Grammar.of_rules(
        rules, start, unconstrained=free, argument="`tools`", unchecked=tuple(unchecked)
    )


@dataclass(frozen=True, slots=True)
class _Text:
    """Rules of a free text.

    Attributes:
        inside: Any text without the tag that ends it.
        whole: Any text up to that tag, tag included.
    """

    inside: int
    whole: int


def _free(rules: Rules, fmt: ToolFormat, calls: Sequence[int | Terminal], thought: str) -> int:
    """The rule of an answer in which the model may call, or not."""
    thoughts = list[tuple[Pieces, _Text]]()
    begun: Regex = NOTHING  # a text that begins with a thought whose tag is text
    for opening, closing in fmt.thoughts:
        if any(opening.startswith(token) for token in fmt.tokens):
            inside = _text(rules, fmt, closing)
            thoughts.append((pieces(rules, fmt.tokens, opening), inside))
        else:
            begun = either(begun, cat(_BLANKS, literal(opening)))
            before = cat(_BLANKS, literal(opening), ANYTHING)
            unclosed = both(before, no(contains(closing)))
            thoughts.append(
                (
                    [],
                    _Text(
                        rules.new([regex_terminal(unclosed, "text")]),
                        rules.new([regex_terminal(up_to(closing, before), "text")]),
                    ),
                )
            )
    if fmt.plain:
        rest = _plain(rules, fmt, begun, thoughts, calls)
    else:
        text = _text(rules, fmt, fmt.trigger, thoughts, begun, last=">")
        rest = rules.new([text.inside], [text.whole, *calls])
    if not thought:
        return rest
    first = _text(rules, fmt, thought)
    return rules.new([first.inside], [first.whole, rest])


def _plain(
    rules: Rules,
    fmt: ToolFormat,
    begun: Regex,
    thoughts: Sequence[tuple[Pieces, _Text]],
    calls: Sequence[int | Terminal],
) -> int:
    """The rule of an answer that is a call from its first character on, or no call."""
    call = literal(fmt.trigger)
    other = both(no(cat(call, ANYTHING)), no(cat(begun, ANYTHING)))
    rest = rules.new([regex_terminal(other, "text")], [text_terminal(fmt.trigger), *calls])
    blanks = regex_terminal(both(_BLANKS, cat(chars(EVERY), ANYTHING)), "text")
    for opening, inside in thoughts:
        for begin in ([blanks, *opening], opening) if opening else (opening,):
            rules.alternatives[rest] += [(*begin, inside.inside), (*begin, inside.whole, rest)]
    return rest


def _text(
    rules: Rules,
    fmt: ToolFormat,
    end: str,
    thoughts: Sequence[tuple[Pieces, _Text]] = (),
    begun: Regex = NOTHING,
    last: str = "",
) -> _Text:
    """The rules of any text without another one, and up to it.

    Args:
        rules: The rules, which grow.
        fmt: The format, with the tokens that may stand in the text.
        end: The text that ends it.
        thoughts: How thoughts begin in it, and the rules of what follows.
        begun: How a thought begins whose tag is text.
        last: What is begun as the end, up to these last characters of it, has to become the end:
            `<tool_call` becomes no `<tool_call_response>`.

    Returns:
        The rules. Between two special tokens there is one piece of text at most: so it is known
        which piece a character belongs to.
    """
    tag = next((token for token in fmt.tokens if end.startswith(token)), end)
    stem = tag if tag in fmt.tokens else tag.removesuffix(last)
    plain = both(no(contains(stem)), no(cat(begun, ANYTHING)))
    some = regex_terminal(both(plain, cat(chars(EVERY), ANYTHING)), "text")
    opened = {id_of(opening) for opening, _ in thoughts}
    others = [i for token, i in fmt.tokens.items() if token != tag and i not in opened]
    before = rules.new([])
    inside = rules.new([before], [before, some])
    whole = rules.new()
    pairs: list[Pieces] = [[token_terminal(i)] for i in others]
    for opening, text in thoughts:
        pairs.append([*opening, text.whole])
        rules.alternatives[inside].append((before, *opening, text.inside))
        if opening:
            rules.alternatives[inside].append((before, some, *opening, text.inside))
    for pair in pairs:
        rules.alternatives[before].append((before, *pair))
        if isinstance(pair[0], Terminal):
            rules.alternatives[before].append((before, some, *pair))
    if tag in fmt.tokens:
        rest = pieces(rules, fmt.tokens, end)
        rules.alternatives[whole] += [(before, *rest), (before, some, *rest)]
    else:
        first = regex_terminal(up_to(stem, no(cat(begun, ANYTHING))), "text")
        rest = [text_terminal(last)] if stem != tag else []
        rules.alternatives[whole].append((before, first, *rest))
    return _Text(inside, whole)


def id_of(opening: Pieces) -> int | None:
    """The id of the token with which a text of a format begins."""
    first = opening[0] if opening else None
    return first.token if isinstance(first, Terminal) else None
