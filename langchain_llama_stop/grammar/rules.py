"""Context-free rules: what llguidance compiles, and where an answer stands in them.

`Place` follows an answer symbol by symbol (Earley, "An Efficient Context-Free Parsing Algorithm",
1970) and knows the shortest text that completes it. Texts are strings of symbols here: a character
below 256 is a byte, and 256 + id is a special token.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from langchain_llama_stop.grammar.regex import (
    EMPTY,
    NOTHING,
    Regex,
    both,
    either,
    literal,
    no,
)
from langchain_llama_stop.grammar.rewrite import lark_terminal

Kind = Literal["", "key", "name", "text"]


@dataclass(frozen=True, slots=True, eq=False)
class Terminal:
    """A piece of text, or one special token.

    Attributes:
        regex: What the text matches; NOTHING for a special token.
        lark: How llguidance writes it.
        token: The id of the special token.
        is_rule: Whether llguidance takes `lark` in rules alone.
        kind: "key" for any key of an object, "name" for one of some keys, "text" for text that is
            no JSON.
    """

    regex: Regex
    lark: str
    token: int | None = None
    is_rule: bool = False
    kind: Kind = ""

    @property
    def shortest(self) -> str | None:
        """Its shortest text, in symbols; None if there is none."""
        if self.token is not None:
            return chr(256 + self.token)
        text = self.regex.shortest
        return None if text is None else text.decode("latin-1")


def text_terminal(text: str) -> Terminal:
    """A text that stands as it is."""
    return Terminal(literal(text), json.dumps(text))


def regex_terminal(regex: Regex, kind: Kind = "") -> Terminal:
    """A text that matches an expression."""
    return Terminal(regex, lark_terminal(regex), kind=kind)


def token_terminal(token: int) -> Terminal:
    """A special token."""
    return Terminal(NOTHING, f"<[{token}]>", token)


Sequences = tuple[int | Terminal, ...]


@dataclass(slots=True, eq=False)
class Rules:
    """Rules; each is a list of alternatives, each a sequence of rules (by number) and terminals."""

    alternatives: list[list[Sequences]] = field(default_factory=list)

    def new(self, *alternatives: Iterable[int | Terminal]) -> int:
        """Adds a rule and returns its number."""
        self.alternatives.append([tuple(a) for a in alternatives])
        return len(self.alternatives) - 1


def _name(symbol: int | Terminal, names: dict[Terminal, str]) -> str:
    """How a rule names a symbol."""
    if not isinstance(symbol, Terminal):
        return f"r{symbol}"
    if symbol.token is not None or symbol.lark.startswith('"'):
        return symbol.lark
    return names.setdefault(symbol, f"{'t' if symbol.is_rule else 'T'}{len(names)}")


def _shortest_texts(alternatives: Sequence[Sequence[Sequences]]) -> list[str | None]:
    """The shortest text of each rule; None for rules that cannot be completed.

    Knuth, "A Generalization of Dijkstra's Algorithm", 1977, as rounds until nothing gets shorter.
    """
    texts: list[str | None] = [None] * len(alternatives)
    users: dict[int, set[int]] = {}
    for number, rule in enumerate(alternatives):
        for symbol in (s for a in rule for s in a if isinstance(s, int)):
            users.setdefault(symbol, set()).add(number)
    changed = dict.fromkeys(range(len(alternatives) - 1, -1, -1))
    while changed:
        number = next(iter(changed))
        del changed[number]
        for alternative in alternatives[number]:
            pieces = [s.shortest if isinstance(s, Terminal) else texts[s] for s in alternative]
            if any(piece is None for piece in pieces):
                continue
            text, old = "".join(p for p in pieces if p), texts[number]
            if old is None or len(text) < len(old):
                texts[number] = text
                changed.update(dict.fromkeys(users.get(number, ())))
    return texts


class Parser:
    """The rules that a start can reach and that can be completed; the start has the number 0.

    Attributes:
        alternatives: As in `Rules`.
        texts: The shortest text of each rule; None only for a start that nothing completes.
        has_keys: Whether an object may have keys that are not listed.
        has_names: Whether there may be no more of them after some.
        has_lists: Whether there may be a list.
    """

    def __init__(self, rules: Rules, start: int) -> None:
        """Works out the shortest texts, and leaves out what no answer can use."""
        shortest = _shortest_texts(rules.alternatives)

        def can(symbol: int | Terminal) -> bool:
            text = symbol.shortest if isinstance(symbol, Terminal) else shortest[symbol]
            return text is not None

        kept = [[a for a in rule if all(map(can, a))] for rule in rules.alternatives]
        reached = {start: 0}
        for number in (queue := [start]):  # grows as it is read
            for symbol in (s for a in kept[number] for s in a if isinstance(s, int)):
                if symbol not in reached:
                    reached[symbol] = len(reached)
                    queue.append(symbol)
        self.alternatives: list[list[Sequences]] = [
            [tuple(reached[s] if isinstance(s, int) else s for s in a) for a in kept[number]]
            for number in queue
        ]
        self.texts = [shortest[number] for number in queue]
        symbols = (s for rule in self.alternatives for a in rule for s in a)
        terminals = {s for s in symbols if isinstance(s, Terminal)}
        kinds = {terminal.kind for terminal in terminals}
        self.has_names = "name" in kinds
        self.has_keys = "key" in kinds or self.has_names
        self.has_lists = any(terminal.lark == '"["' for terminal in terminals)
        self._rests: dict[tuple[int, int], str] = {}

    def lark(self) -> str:
        """The rules in llguidance's Lark form."""
        names: dict[Terminal, str] = {}
        lines = ["start: r0"]
        for number, alternatives in enumerate(self.alternatives):
            texts = [" ".join(_name(s, names) for s in a) or '""' for a in alternatives]
            lines.append(f"r{number}: {' | '.join(texts)}")
        lines += [f"{name}: {terminal.lark}" for terminal, name in names.items()]
        return "\n".join(lines)

    def rest(self, symbols: Sequences, dot: int) -> str:
        """The shortest text of the symbols after a dot."""
        key = (id(symbols), dot)
        if key not in self._rests:
            texts = [
                s.shortest if isinstance(s, Terminal) else self.texts[s] for s in symbols[dot:]
            ]
            self._rests[key] = "".join(text or "" for text in texts)
        return self._rests[key]

    def begin(self) -> Place:
        """The place before the first symbol. It and what follows are for one answer."""
        place = Place(self, {}, [])
        place.close([_Item(_WHOLE, (0,), 0, place)])
        return place


class _Item(NamedTuple):
    """An alternative of a rule, read up to a dot, begun at a place."""

    rule: int
    symbols: Sequences
    dot: int
    origin: Place


class _Scan(NamedTuple):
    """A terminal that is being read: the item after it, its state, a begun character's bytes."""

    item: _Item
    terminal: Terminal
    state: Regex
    begun: bytes


_WHOLE = -1
"""The number of the rule that is the whole answer."""


class Place:
    """Where an answer stands: everything that the rules allow there.

    Places are made as they are reached; one inside a terminal is found again.

    Attributes:
        accepting: Whether the answer is complete here.
        parser: What it was made by.
    """

    def __init__(
        self, parser: Parser, inside: dict[frozenset[_Scan], Place], scans: list[_Scan]
    ) -> None:
        """Begins with the terminals that are being read."""
        self.accepting = False
        self.parser, self._inside, self._scans = parser, inside, scans
        self._waiting: dict[int, list[_Item]] = {}
        self._after: dict[int, Place | None] = {}
        self._ends: dict[int, str] | None = None
        self._completion: str | None = None

    def close(self, items: list[_Item]) -> None:
        """Adds items, what they predict and what they complete."""
        seen = set[tuple[int, int, int]]()
        for item in items:  # grows as it is read
            key = (id(item.symbols), item.dot, id(item.origin))
            if key in seen:
                continue
            seen.add(key)
            if item.dot == len(item.symbols):
                if item.rule == _WHOLE:
                    self.accepting = True
                elif item.origin is not self:  # else it is empty, which is seen to below
                    items += [w._replace(dot=w.dot + 1) for w in item.origin._waiting[item.rule]]
                continue
            symbol, after = item.symbols[item.dot], item._replace(dot=item.dot + 1)
            if isinstance(symbol, Terminal):
                self._scans.append(_Scan(after, symbol, symbol.regex, b""))
                empty = symbol.regex.nullable
            else:
                if symbol not in self._waiting:
                    self._waiting[symbol] = []
                    alternatives = self.parser.alternatives[symbol]
                    items += [_Item(symbol, a, 0, self) for a in alternatives]
                self._waiting[symbol].append(item)
                empty = self.parser.texts[symbol] == ""
            if empty:
                items.append(after)

    def after(self, text: str) -> Place | None:
        """The place after some symbols; None if the rules do not allow them."""
        place = self
        for symbol in map(ord, text):
            if symbol not in place._after:
                place._after[symbol] = place._next(symbol)
            following = place._after[symbol]
            if following is None:
                return None
            place = following
        return place

    def _next(self, symbol: int) -> Place | None:
        scans, items = list[_Scan](), list[_Item]()
        for scan in self._scans:
            if scan.terminal.token is not None:
                if symbol == 256 + scan.terminal.token:
                    items.append(scan.item)
                continue
            state, begun = _step(scan.state, scan.begun, symbol)
            if state is not NOTHING and state is not EMPTY:
                scans.append(_Scan(scan.item, scan.terminal, state, begun))
            if state.nullable and not begun:
                items.append(scan.item)
        if not scans and not items:
            return None
        if items:
            place = Place(self.parser, self._inside, scans)
            place.close(items)
            return place
        key = frozenset(scans)
        if key not in self._inside:
            self._inside[key] = Place(self.parser, self._inside, scans)
        return self._inside[key]

    @property
    def completion(self) -> str | None:
        """The shortest text that completes the answer, in symbols; None if there is none."""
        if self._completion is None and not self.accepting:
            texts = [
                text + self.parser.rest(item.symbols, item.dot) + item.origin.end(item.rule)
                for item, terminal, state, begun in self._scans
                if (text := _shortest(terminal, state, begun)) is not None
            ]
            self._completion = min(texts, key=len, default=None)
        return "" if self.accepting else self._completion

    @property
    def in_text(self) -> bool:
        """Whether what comes next may be text that is no JSON."""
        return any(scan.terminal.kind == "text" for scan in self._scans)

    def other_key(self, taken: Iterable[str]) -> str | None:
        """The shortest end of the key that is open, but for those that are taken."""
        others = no(either(*(literal(t.encode("latin-1").decode(errors="replace")) for t in taken)))
        texts = [
            text.decode("latin-1")
            for _, terminal, state, begun in self._scans
            if terminal.kind in ("key", "name")
            and not begun
            and (text := both(state, others).shortest) is not None
        ]
        return min(texts, key=len, default=None)

    def end(self, rule: int) -> str:
        """The shortest text after a rule that was begun here, up to the answer's end."""
        if rule == _WHOLE:
            return ""
        if self._ends is None:
            ends: dict[int, str] = {}
            self._ends = ends
            changed = True
            while changed:
                changed = False
                for number, items in self._waiting.items():
                    for item in items:
                        if item.origin is not self or item.rule == _WHOLE:
                            last = item.origin.end(item.rule)
                        elif item.rule in ends:
                            last = ends[item.rule]
                        else:
                            continue
                        text = self.parser.rest(item.symbols, item.dot + 1) + last
                        if number not in ends or len(text) < len(ends[number]):
                            ends[number], changed = text, True
        return self._ends[rule]


def _shortest(terminal: Terminal, state: Regex, begun: bytes) -> str | None:
    """The shortest text that ends a terminal, in symbols; None if there is none."""
    if terminal.token is not None:
        return terminal.shortest
    if not begun:
        text = state.shortest
        return None if text is None else text.decode("latin-1")
    texts = [
        chr(point).encode()[len(begun) :] + after.shortest
        for point, after in state.following(*_characters(begun))
        if after.shortest is not None
    ]
    return min(texts, key=len).decode("latin-1") if texts else None


def _step(state: Regex, begun: bytes, symbol: int) -> tuple[Regex, bytes]:
    """The state of a terminal after a byte, and the bytes of the character that it begins."""
    if symbol < 128 and not begun:
        return state.after(symbol), b""
    if symbol > 255:
        return NOTHING, b""
    begun += bytes([symbol])
    try:
        return state.after(ord(begun.decode())), b""
    except (UnicodeDecodeError, TypeError):
        low, high = _characters(begun)
        possible = any(True for _ in state.following(low, high)) if low <= high else False
        return (state, begun) if possible else (NOTHING, b"")


def _characters(begun: bytes) -> tuple[int, int]:
    """The least and the last code point that begins with some bytes of UTF-8."""
    first = begun[0]
    size = 2 if 0xC2 <= first < 0xE0 else 3 if 0xE0 <= first < 0xF0 else 4
    if not 0xC2 <= first < 0xF5 or len(begun) >= size:
        return 1, 0
    value = first & (0x7F >> size)
    for byte in begun[1:]:
        if not 0x80 <= byte < 0xC0:
            return 1, 0
        value = value << 6 | byte & 0x3F
    bits = 6 * (size - len(begun))
    least = {2: 0x80, 3: 0x800, 4: 0x10000}[size]
    return max(value << bits, least), min((value + 1 << bits) - 1, 0x10FFFF)
