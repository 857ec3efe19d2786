"""Arguments that are no JSON object: one element each, or Python's or Gemma's own writing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from langchain_llama_stop.grammar.facets import Facets, Schema
from langchain_llama_stop.grammar.json_rules import JsonRules
from langchain_llama_stop.grammar.json_text import mark_terminal
from langchain_llama_stop.grammar.read_schema import read
from langchain_llama_stop.grammar.regex import (
    ANYTHING,
    EMPTY,
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
    without,
)
from langchain_llama_stop.grammar.rewrite import alternatives_of, parts_of
from langchain_llama_stop.grammar.rules import Rules
from langchain_llama_stop.grammar.terminal import (
    Terminal,
    regex_terminal,
    text_terminal,
    token_terminal,
)

NUMBER = "\ue000"
"""In the texts of a format: the number of a call in its answer, from 0 on."""
ID = "\ue002"
"""In the texts of a format: an id of the call, of nine letters and digits."""
LINE = "\ue001"
"""In the texts of a format: a line end, which a model may leave out."""

json_text = partial(json.dumps, ensure_ascii=False)
GEMMA_QUOTE = '<|"|>'
GEMMA_SIGNS = {", ": ",", ": ": ":"}
_SIGNS = tuple((ord(c), ord(c)) for c in "\n\"'(),:<=>[]{}")
_BARE = repeat(chars(without(EVERY, _SIGNS)), 1)
"""Keys without quotes."""

Pieces = list[int | Terminal]


def text_or_json(value: Any) -> str:
    """A value as it stands between tags: a string as it is, others as JSON."""
    return value if isinstance(value, str) else json_text(value)


def python_text(value: Any) -> str:
    """A value as Python writes it, with strings as in JSON."""
    return _written(value, json_text, json_text, ", ", ": ", python=True)


def gemma_text(value: Any) -> str:
    """A value as Gemma 4 writes it."""
    return _written(value, str, lambda text: f"{GEMMA_QUOTE}{text}{GEMMA_QUOTE}", ",", ":")


def _written(
    value: Any,
    key: Callable[[str], str],
    string: Callable[[str], str],
    comma: str,
    colon: str,
    *,
    python: bool = False,
) -> str:
    if isinstance(value, str):
        return string(value)
    again: Callable[[Any], str] = partial(
        _written, key=key, string=string, comma=comma, colon=colon, python=python
    )
    if isinstance(value, Mapping):
        return "{" + comma.join(f"{key(k)}{colon}{again(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + comma.join(map(again, value)) + "]"
    is_word = value is None or isinstance(value, bool)
    return repr(value) if is_word and python else json_text(value)


@dataclass(frozen=True, slots=True)
class Element:
    """How one argument is written: `begin`, its name, `middle`, its value, `end`, `after`.

    Attributes:
        begin: The text before the name.
        middle: The text between name and value.
        end: The text after the value; no value contains it, but for a `LINE` before it.
        after: The text after each argument.
        between: The text between two arguments.
        json_middle: `middle` for values that are no strings, where it is another one.
        write: Writes a value.
        style: The rules of values: by default, strings stand as they are and others are JSON.
    """

    begin: str = ""
    middle: str = ""
    end: str = ""
    after: str = ""
    between: str = ""
    json_middle: str | None = None
    write: Callable[[Any], str] = text_or_json
    style: type[ArgumentRules] | None = None

    def join(self, arguments: Mapping[str, str]) -> str:
        """Arguments whose values are written already."""
        return self.between.join(
            f"{self.begin}{key}{self.middle}{value}{self.end}{self.after}"
            for key, value in arguments.items()
        )

    def write_all(self, arguments: Mapping[str, Any]) -> str:
        """Some arguments."""
        return self.between.join(
            f"{self.begin}{key}{self._middle(value)}{self.write(value)}{self.end}{self.after}"
            for key, value in arguments.items()
        )

    def _middle(self, value: Any) -> str:
        is_json = self.json_middle is not None and not isinstance(value, str)
        return str(self.json_middle) if is_json else self.middle


def pieces(rules: Rules, tokens: Mapping[str, int], text: str) -> Pieces:
    """A text of a format as terminals: single tokens by their ids, JSON as schemas write it.

    llguidance takes the longest piece that may come next; so what may begin alike has to be cut
    alike.
    """
    named = "|".join(map(re.escape, tokens)) or "(?!)"
    found = re.findall(
        rf'{named}|{LINE}|{ID}|"[^"]*"|[{{}}\[\]]|, |: |[^"{{}}\[\],:<{LINE}{ID}]+|.',
        text,
        re.DOTALL,
    )
    return [_piece(rules, tokens, piece) for piece in found]


def _piece(rules: Rules, tokens: Mapping[str, int], piece: str) -> int | Terminal:
    if piece in tokens:
        return token_terminal(tokens[piece])
    if piece == LINE:
        return rules.new([], [text_terminal("\n")])
    if piece == ID:
        return regex_terminal(repeat(chars((ord(a), ord(b)) for a, b in ("09", "AZ", "az")), 9, 9))
    if NUMBER in piece:
        before, after = piece.split(NUMBER)
        digits = repeat(chars([(ord("0"), ord("9"))]), 1, 3)
        return regex_terminal(cat(literal(before), digits, literal(after)))
    return text_terminal(piece)


def contains(text: str) -> Regex:
    """Any text with a text in it."""
    return cat(ANYTHING, literal(text), ANYTHING)


def up_to(text: str, before: Regex = ANYTHING) -> Regex:
    """A text that matches `before`, and after it another text for the first time."""
    return both(
        _before(before, literal(text)), no(cat(ANYTHING, literal(text), chars(EVERY), ANYTHING))
    )


def _before(part: Regex, tail: Regex) -> Regex:
    """An expression, then another; `&` and `~` stay outside, where llguidance reads them."""
    if options := alternatives_of(part):
        return either(*(_before(option, tail) for option in options))
    if parts := parts_of(part):
        written = [no(_before(p, tail)) if negated else _before(p, tail) for negated, p in parts]
        return both(_before(ANYTHING, tail), *written)
    return cat(part, tail)


class ArgumentRules(JsonRules):
    """Adds the rules of a tool's arguments, each of them an element."""

    def __init__(self, rules: Rules, element: Element, tokens: Mapping[str, int]) -> None:
        """Begins with some rules, which grow, and with the ids of tokens that texts may name."""
        super().__init__(rules)
        self._element, self._tokens, self._outside = element, tokens, False

    def add_arguments(self, schema: Mapping[str, Any]) -> int:
        """Adds the rules of a tool's parameters; returns the number of the one for its arguments.

        Raises:
            ValueError: As `add`.
        """
        self.add(schema)  # which checks it
        arguments = self._rules.new()
        self._outside = True
        for facets in read(self._root, self._root):
            found = self._object(facets) if "object" in facets.types else []
            self._rules.alternatives[arguments] += [tuple(a) for a in found]
        self._outside = False
        self._add_waiting()
        return arguments

    def _pieces(self, text: str) -> Pieces:
        return pieces(self._rules, self._tokens, text)

    def _braces(self) -> tuple[Pieces, Pieces, Pieces]:
        if not self._outside:
            return super()._braces()
        return [], self._pieces(self._element.between), []

    def _key(self, name: str) -> Terminal:
        return self._text(name) if self._outside else super()._key(name)

    def _keys(self, names: Regex, *, some: bool) -> Terminal:
        if not self._outside:
            return super()._keys(names, some=some)
        return regex_terminal(both(names, _BARE))

    def _pairs(self, key: Terminal, schemas: tuple[Schema, ...]) -> list[Pieces]:
        if not self._outside:
            return super()._pairs(key, schemas)
        element = self._element
        begin, after = self._pieces(element.begin), self._pieces(element.after)
        return [[*begin, key, *value, *after] for value in self._values(schemas)]

    def _values(self, schemas: tuple[Schema, ...]) -> list[Pieces]:
        """What stands between the name of an argument and what follows its element."""
        element, schema = self._element, {"allOf": list(schemas)}
        texts = self._name(schema)
        middle = self._pieces(element.middle)
        raw = [] if texts is NOTHING else self._raw(texts, element.end)
        found = [[*middle, *text] for text in raw]
        if texts is ANYTHING and element.json_middle is None:  # JSON is such a text too
            return found
        others: Schema = {"allOf": [*schemas, {"not": {"type": "string"}}]}
        if read(others, self._root):
            middle = self._pieces(element.json_middle or element.middle)
            end = self._pieces(element.end)
            found.append([*middle, self._value(others), *end])
            found += [[*middle, self._text(word), *end] for word in self._words(others)]
        return found

    def _words(self, schema: Schema) -> list[str]:
        """Words of Python that a model may write for those of JSON."""
        kinds = {kind for f in read(schema, self._root) if f.values is None for kind in f.types}
        words = {"True": "boolean", "False": "boolean", "None": "null"}
        return [word for word, kind in words.items() if kind in kinds]

    def _raw(self, texts: Regex, end: str) -> list[Pieces]:
        """Strings that stand as they are, up to the text after them."""
        tag = end.removeprefix(LINE)
        # After any text, a line end before the tag is one more character of it.
        is_line = end != tag and texts is not ANYTHING
        text = _before(texts, repeat(chars([(10, 10)]), 0, 1) if is_line else EMPTY)
        if tag not in self._tokens:
            return [[regex_terminal(up_to(tag, text), "text")]]
        last = token_terminal(self._tokens[tag])
        some = both(text, no(contains(tag)), cat(chars(EVERY), ANYTHING))
        found: list[Pieces] = [[regex_terminal(some, "text"), last]]
        return [*found, [last]] if text.nullable else found


class PythonRules(ArgumentRules):
    """Arguments as Python writes them in a call; strings as JSON writes them."""

    def _values(self, schemas: tuple[Schema, ...]) -> list[Pieces]:
        return [[*self._pieces(self._element.middle), self._all(schemas)]]

    def _literal(self, value: Any) -> Terminal:
        if value is None or isinstance(value, bool):
            return self._text(repr(value))
        return super()._literal(value)


class GemmaRules(PythonRules):
    """Arguments as Gemma 4 writes them: keys without quotes, strings between tokens of its own.

    Attributes:
        quote: The token before and after a string.
    """

    quote = GEMMA_QUOTE

    def _text(self, text: str) -> Terminal:
        return super()._text(GEMMA_SIGNS.get(text, text))

    def _mark(self, mark: str) -> Terminal:
        return mark_terminal(mark, lines=False)

    def _literal(self, value: Any) -> Terminal:
        return self._text(json_text(value))

    def _key(self, name: str) -> Terminal:
        return self._text(name)

    def _keys(self, names: Regex, *, some: bool) -> Terminal:
        return regex_terminal(both(names, _BARE))

    def _constant(self, value: Any) -> Pieces:
        if not isinstance(value, str):
            return super()._constant(value)
        quote = self._pieces(self.quote)
        return [*quote, *([self._text(value)] if value else []), *quote]

    def _string(self, facets: Facets) -> Pieces:
        texts = self._raw(self._text_of(facets), self.quote)
        return [*self._pieces(self.quote), self._rules.new(*texts)]
