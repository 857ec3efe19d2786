"""Grammars in llguidance's Lark form as rules, whose shortest completions are known.

Read is what most grammars consist of: rules and terminals, their operators, `%ignore`, `%import
common`, special tokens, `lazy` and `suffix`. Of the rest, `UnknownLark` says what it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from langchain_llama_stop.grammar.pattern import UnknownPattern, parse_expression
from langchain_llama_stop.grammar.regex import EMPTY, Regex, both, cat, chars, either, literal, no
from langchain_llama_stop.grammar.regex import repeat as repeated
from langchain_llama_stop.grammar.rules import Parser, Rules, Sequences
from langchain_llama_stop.grammar.terminal import Terminal, token_terminal

_TOKEN = re.compile(
    r"""(?P<skip>(?:\#|//)[^\n]*|[ \t]+|%llguidance[ ]*\{[ ]*\})
    |(?P<newline>(?:\r?\n)+[ \t]*)
    |(?P<string>"(?:\\.|[^"\\])*"i?)
    |(?P<regex>/(?:\\.|[^/\\])+/[imsux]*)
    |(?P<special><[^<>\s]+>)
    |(?P<directive>%(?:ignore|import))
    |(?P<name>!?[?_]?[a-z][-_a-z0-9]*|_?[A-Z][-_A-Z0-9]*)
    |(?P<number>[0-9]+)
    |(?P<sign>->|\.\.|[:|()\[\]{},.~&=+*?])""",
    re.VERBOSE,
)
_FLOAT = r"([0-9]+\.[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+"
_COMMON = {
    "DIGIT": "[0-9]", "HEXDIGIT": "[0-9A-Fa-f]", "INT": "[0-9]+", "SIGNED_INT": "[+-]?[0-9]+",
    "DECIMAL": r"[0-9]+\.[0-9]*|\.[0-9]+", "FLOAT": _FLOAT, "SIGNED_FLOAT": f"[+-]?({_FLOAT})",
    "NUMBER": f"[0-9]+|{_FLOAT}", "SIGNED_NUMBER": f"[+-]?([0-9]+|{_FLOAT})",
    "ESCAPED_STRING": r'"([^"\\]|\\.)*"', "LCASE_LETTER": "[a-z]", "UCASE_LETTER": "[A-Z]",
    "LETTER": "[A-Za-z]", "WORD": "[A-Za-z]+", "CNAME": "[A-Za-z_][A-Za-z0-9_]*",
    "WS_INLINE": r"[ \t]+", "WS": r"[ \t\f\r\n]+", "CR": r"\r", "LF": r"\n",
    "NEWLINE": r"(\r?\n)+",
}  # fmt: skip


class UnknownLark(ValueError):
    """A grammar with something that is not read; its text says what."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a rule: what it is, and how often it stands there."""

    kind: Literal["choice", "not", "string", "regex", "range", "name", "special"]
    text: str = ""
    choice: _Choice = ()
    fewest: int = 1
    most: int | None = 1


_Choice = tuple[tuple[tuple[_Part, ...], ...], ...]
"""Alternatives; each is some sequences that `&` joins."""


def lark_parser(text: str, token_id: Callable[[str], int | None]) -> Parser:
    """Reads a grammar.

    Args:
        text: The grammar, which llguidance can compile.
        token_id: Gives the id of a special token's text; None if there is none.

    Returns:
        The parser of its rules.

    Raises:
        UnknownLark: If something in it is not read.
    """
    reader = _Reader(text)
    try:
        return _Builder(reader, token_id).parser()
    except (UnknownPattern, RecursionError) as problem:
        raise UnknownLark(str(problem)) from problem


class _Reader:
    """Reads definitions: `choices` by name, those that end as soon as they can, what is skipped."""

    def __init__(self, text: str) -> None:
        self.choices: dict[str, _Choice] = {}
        self.lazy: dict[str, _Part | None] = {}
        self.ignored: list[_Choice] = []
        self._tokens = list(_tokens(text))
        self._at = 0
        while self._at < len(self._tokens):
            if not self._take("newline"):
                self._definition()

    def _take(self, kind: str, *texts: str) -> str:
        """The text of the next token if it is of a kind and one of some texts; else ""."""
        if self._at == len(self._tokens):
            return ""
        found, text = self._tokens[self._at]
        if found != kind or (texts and text not in texts):
            return ""
        self._at += 1
        return text

    def _expect(self, kind: str, *texts: str) -> str:
        if text := self._take(kind, *texts):
            return text
        found = self._tokens[self._at][1] if self._at < len(self._tokens) else "the end"
        raise UnknownLark(f"{found!r}")

    def _definition(self) -> None:
        if directive := self._take("directive"):
            if directive == "%ignore":
                self.ignored.append(self._choice())
            else:
                self._import()
            return
        name = self._expect("name").lstrip("!?")
        if self._take("sign", "["):
            while not self._take("sign", "]"):
                self._attribute(name)
                self._take("sign", ",")
        self._expect("sign", ":")
        self.choices[name] = self._choice()

    def _attribute(self, name: str) -> None:
        key = self._expect("name")
        if key not in ("capture", "lazy", "suffix"):
            raise UnknownLark(f"the attribute {key!r}")
        value = self._atom() if self._take("sign", "=") else None
        if key != "capture":
            self.lazy[name] = value

    def _import(self) -> None:
        path = [self._expect("name")]
        while self._take("sign", "."):
            path.append(self._expect("name"))
        names = path[1:]
        if self._take("sign", "("):
            names = [self._expect("name")]
            while self._take("sign", ","):
                names.append(self._expect("name"))
            self._expect("sign", ")")
        alias = self._expect("name") if self._take("sign", "->") else None
        for name in names:
            if path[0] != "common" or name not in _COMMON:
                raise UnknownLark(f"the import of {name!r}")
            self.choices[alias or name] = (((_Part("regex", f"/{_COMMON[name]}/"),),),)

    def _choice(self) -> _Choice:
        alternatives = [self._alternative()]
        while self._take("sign", "|"):
            alternatives.append(self._alternative())
        return tuple(alternatives)

    def _alternative(self) -> tuple[tuple[_Part, ...], ...]:
        joined = [self._sequence()]
        while self._take("sign", "&"):
            joined.append(self._sequence())
        if self._take("sign", "->"):
            self._expect("name")
        return tuple(joined)

    def _sequence(self) -> tuple[_Part, ...]:
        parts = []
        while self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind == "newline" or (kind == "sign" and text in ("|", ")", "]", "&", "->")):
                break
            parts.append(self._counted(self._atom()))
        return tuple(parts)

    def _atom(self) -> _Part:
        if self._take("sign", "~"):
            return _Part("not", choice=(((self._atom(),),),))
        if opening := self._take("sign", "(", "["):
            choice = self._choice()
            self._expect("sign", ")" if opening == "(" else "]")
            return _Part("choice", choice=choice, fewest=int(opening == "("))
        if first := self._take("string"):
            if self._take("sign", ".."):
                return _Part("range", _string(first)[0] + _string(self._expect("string"))[0])
            return _Part("string", first)
        if text := self._take("regex"):
            return _Part("regex", text)
        if text := self._take("special"):
            return _Part("special", text)
        return _Part("name", self._expect("name"))

    def _counted(self, part: _Part) -> _Part:
        fewest: int
        most: int | None
        if sign := self._take("sign", "*", "+", "?"):
            fewest, most = int(sign == "+"), 1 if sign == "?" else None
        elif self._take("sign", "~"):
            fewest = most = int(self._expect("number"))
            if self._take("sign", ".."):
                most = int(self._expect("number"))
        elif self._take("sign", "{"):
            number = self._take("number")
            fewest, most = int(number or 0), int(number or 0)
            if self._take("sign", ","):
                last = self._take("number")
                most = int(last) if last else None
            self._expect("sign", "}")
        else:
            return part
        if (part.fewest, part.most) == (1, 1):
            return replace(part, fewest=fewest, most=most)
        return _Part("choice", choice=(((part,),),), fewest=fewest, most=most)


class _Builder:
    """Makes rules of what was read."""

    def __init__(self, reader: _Reader, token_id: Callable[[str], int | None]) -> None:
        self._reader, self._token_id = reader, token_id
        self._rules = Rules()
        self._numbers: dict[str, int] = {}
        self._regexes: dict[str, Regex] = {}
        self._terminals: dict[Regex, Terminal] = {}
        self._skip: Sequences = ()

    def parser(self) -> Parser:
        """The parser of the whole grammar."""
        if self._reader.ignored:
            skipped = either(*map(self._choice_regex, self._reader.ignored))
            self._skip = (self._any_number((self._terminal(skipped),)),)
        whole = self._rules.new((*self._skip, self._named("start")))
        return Parser(self._rules, whole, overlap=True)

    def _terminal(self, regex: Regex, *, lazy: bool = False) -> Terminal:
        if lazy:
            return Terminal(regex, "", lazy=True)
        return self._terminals.setdefault(regex, Terminal(regex, ""))

    def _named(self, name: str) -> int:
        """The number of a rule."""
        if name not in self._numbers:
            number = self._numbers[name] = self._rules.new()
            choice = self._reader.choices[name]
            if name in self._reader.lazy:
                end = self._reader.lazy[name]
                regex = cat(self._choice_regex(choice), self._part_regex(end) if end else EMPTY)
                self._rules.alternatives[number].append(self._lexeme(regex, lazy=True))
            else:
                self._rules.alternatives[number] += self._sequences(choice)
        return self._numbers[name]

    def _sequences(self, choice: _Choice) -> list[Sequences]:
        """The alternatives of a rule."""
        return [tuple(s for part in joined[0] for s in self._symbols(part)) for joined in choice]

    def _symbols(self, part: _Part) -> Sequences:
        """A part with its count."""
        once = self._once(part)
        if (part.fewest, part.most) == (1, 1) or not once:
            return once
        if part.most is None:
            return (*self._times(once, part.fewest), self._any_number(once))
        return (*self._times(once, part.fewest), *self._up_to(once, part.most - part.fewest))

    def _any_number(self, symbols: Sequences) -> int:
        number = self._rules.new()
        self._rules.alternatives[number] += [(), (number, *symbols)]
        return number

    def _times(self, symbols: Sequences, count: int) -> Sequences:
        """A number of times, in rules that grow with its logarithm."""
        if count < 2:
            return symbols * count
        half = self._rules.new(self._times(symbols, count // 2))
        return (half, half, *symbols * (count % 2))

    def _up_to(self, symbols: Sequences, count: int) -> Sequences:
        """At most a number of times, likewise."""
        if count < 2:
            return (self._rules.new((), symbols),) * count
        half = self._rules.new(self._up_to(symbols, count // 2))
        return (half, half, *self._up_to(symbols, count % 2))

    def _once(self, part: _Part) -> Sequences:
        if part.kind == "choice":
            return (self._rules.new(*self._sequences(part.choice)),)
        if part.kind == "name" and part.text in self._reader.choices and _is_rule(part.text):
            return (self._named(part.text),)
        if part.kind == "special":
            return self._special(part.text)
        if part.kind == "string" and not _string(part.text)[0]:
            return ()
        return self._lexeme(self._part_regex(replace(part, fewest=1, most=1)))

    def _lexeme(self, regex: Regex, *, lazy: bool = False) -> Sequences:
        """A terminal, and what may be skipped after it."""
        return (self._terminal(regex, lazy=lazy), *self._skip)

    def _special(self, text: str) -> Sequences:
        number = re.fullmatch(r"<\[(\d+)\]>", text)
        token = int(number[1]) if number else self._token_id(text)
        if token is None:
            raise UnknownLark(f"the token {text!r}")
        return (token_terminal(token), *self._skip)

    def _choice_regex(self, choice: _Choice) -> Regex:
        """The expression of what a terminal consists of."""
        return either(
            *(
                both(*(cat(*map(self._part_regex, sequence)) for sequence in joined))
                for joined in choice
            )
        )

    def _part_regex(self, part: _Part) -> Regex:
        return repeated(self._one_regex(part), part.fewest, part.most)

    def _one_regex(self, part: _Part) -> Regex:
        if part.kind == "choice":
            return self._choice_regex(part.choice)
        if part.kind == "not":
            return no(self._choice_regex(part.choice))
        if part.kind == "string":
            text, flags = _string(part.text)
            return parse_expression(re.escape(text), flags) if flags else literal(text)
        if part.kind == "range":
            return chars([(ord(part.text[0]), ord(part.text[1]))])
        if part.kind == "regex":
            source, _, flags = part.text[1:].rpartition("/")
            return parse_expression(source, flags)
        if part.text not in self._reader.choices:
            raise UnknownLark(f"the name {part.text!r}")
        if part.text not in self._regexes:
            self._regexes[part.text] = self._choice_regex(self._reader.choices[part.text])
        return self._regexes[part.text]


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """The tokens of a grammar, without what means nothing; a line may go on with `|`."""
    at, held = 0, False
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise UnknownLark(f"{text[at : at + 20]!r}")
        kind, at = str(found.lastgroup), found.end()
        if kind == "skip":
            continue
        if kind == "newline":
            held = True
            continue
        if held and found[0] != "|":
            yield "newline", "\n"
        held = False
        yield kind, found[0]


def _string(source: str) -> tuple[str, str]:
    """The text of a string in quotes, and its flags."""
    body, _, flags = source.rpartition('"')
    text: str = json.loads(re.sub(r"\\x(..)", r"\\u00\1", body) + '"')
    return text, flags


def _is_rule(name: str) -> bool:
    """Whether a name is a rule's and not a terminal's."""
    return name.lstrip("_")[:1].islower()
