"""Context-free rules: what llguidance compiles, and where an answer stands in them.

`Place` follows an answer symbol by symbol (Earley, "An Efficient Context-Free Parsing Algorithm",
1970) and knows the shortest text that completes it. Texts are strings of symbols here: a character
below 256 is a byte, and 256 + id is a special token.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from langchain_llama_stop.grammar.regex import (
    EMPTY,
    NOTHING,
    Regex,
    both,
    either,
    literal,
    no,
    one_of_each,
)
from langchain_llama_stop.grammar.rewrite import detour
from langchain_llama_stop.grammar.terminal import Terminal, after_symbol, characters, shortest_end

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
        overlap: Whether a terminal may take what is meant for the one after it.
        detour: Symbols by which one more may lengthen the way to the end of a terminal.
    """

    def __init__(self, rules: Rules, start: int, *, overlap: bool = False) -> None:
        """Works out the shortest texts, and leaves out what no answer can use."""
        self.overlap = overlap
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
        self.has_lists = "list" in kinds
        self._rests: dict[tuple[int, int], str] = {}
        self.detour = max((detour(terminal.regex) for terminal in terminals), default=0)

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


_MOST_PLACES = 1_000
"""Places that a search may visit. Not tuned: it takes some tenths of a second."""
_WHOLE = -1
"""The number of the rule that is the whole answer."""


class Place:
    """Where an answer stands: everything that the rules allow there.

    Places are made as they are reached; one inside a terminal is found again. As in llguidance, a
    terminal goes on as long as it can.

    Attributes:
        accepting: Whether the answer is complete here.
        parser: What it was made by.
    """

    def __init__(
        self, parser: Parser, inside: dict[frozenset[_Scan], Place], scans: list[_Scan]
    ) -> None:
        """Begins with the terminals that are being read; `close` adds those that may come next."""
        self.accepting = False
        self.parser, self._inside, self._scans = parser, inside, scans
        self._next_scans: list[_Scan] = []
        self._waiting: dict[int, list[_Item]] = {}
        self._after: dict[int, Place | None] = {}
        self._ends: dict[int, str] | None = None

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
                self._next_scans.append(_Scan(after, symbol, symbol.regex, b""))
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
        scans, items = _read(self._scans, symbol)
        if not scans and not items:
            scans, items = _read(self._next_scans, symbol)
        if items:
            place = Place(self.parser, self._inside, scans)
            place.close(items)
            return place
        if not scans:
            return None
        key = frozenset(scans)
        if key not in self._inside:
            self._inside[key] = Place(self.parser, self._inside, scans)
        return self._inside[key]

    @property
    def completion(self) -> str | None:
        """The shortest text that completes the answer, in symbols; None if none is found."""
        return self._longest if self.parser.overlap and not self.accepting else self._nearest

    @cached_property
    def _nearest(self) -> str | None:
        """The completion, if every terminal ends where that is best."""
        texts = [
            text + self.parser.rest(item.symbols, item.dot) + item.origin.end(item.rule)
            for item, terminal, state, begun in self._scans + self._next_scans
            if (text := shortest_end(terminal, state, begun)) is not None
        ]
        return "" if self.accepting else min(texts, key=len, default=None)

    @cached_property
    def _longest(self) -> str | None:
        """The completion, if terminals go on as long as they can. A*, by the nearest one."""
        paths: list[tuple[int, int, str, Place]] = [(0, 0, "", self)]
        for number in range(_MOST_PLACES):
            if not paths:
                break
            _, _, text, place = heapq.heappop(paths)
            if place.accepting:
                return text
            if (near := place._nearest) is None:
                continue
            end = place.after(near)
            if end is not None and end.accepting:
                heapq.heappush(paths, (len(text + near), -number, text + near, end))
                continue
            for symbols in place._symbols():
                after = place.after(symbols)
                if after is not None and (rest := after._nearest) is not None:
                    longer = text + symbols
                    heapq.heappush(paths, (len(longer + rest), -number, longer, after))
        return None

    def _symbols(self) -> set[str]:
        """What may come next: one character of each class, and special tokens."""
        scans = self._scans + self._next_scans
        tokens = {chr(256 + s.terminal.token) for s in scans if s.terminal.token is not None}
        begun = next((s.begun for s in scans if s.begun), b"")
        points = one_of_each((s.state for s in scans), *characters(begun))
        return tokens | {chr(p).encode()[len(begun) :].decode("latin-1") for p in points}

    @property
    def in_text(self) -> bool:
        """Whether what comes next may be text that is no JSON."""
        return any(s.terminal.kind == "text" for s in self._scans + self._next_scans)

    def other_key(self, taken: Iterable[str]) -> str | None:
        """The shortest end of the key that is open, but for those that are taken."""
        others = no(either(*(literal(t.encode("latin-1").decode(errors="replace")) for t in taken)))
        texts = [
            text.decode("latin-1")
            for _, terminal, state, begun in self._scans + self._next_scans
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


def _read(scans: Iterable[_Scan], symbol: int) -> tuple[list[_Scan], list[_Item]]:
    """The terminals that are still being read after a symbol, and the items of those that end."""
    still, items = list[_Scan](), list[_Item]()
    for item, terminal, state, begun in scans:
        if terminal.token is not None:
            if symbol == 256 + terminal.token:
                items.append(item)
            continue
        state, begun = after_symbol(state, begun, symbol)
        ends = state.nullable and not begun
        if ends:
            items.append(item)
        if state is not NOTHING and state is not EMPTY and not (ends and terminal.lazy):
            still.append(_Scan(item, terminal, state, begun))
    return still, items
