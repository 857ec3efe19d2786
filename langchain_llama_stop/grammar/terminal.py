"""The terminals of rules: pieces of text and special tokens, read symbol by symbol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

from langchain_llama_stop.grammar.regex import LAST, NOTHING, Regex, literal
from langchain_llama_stop.grammar.rewrite import lark_terminal

Kind = Literal["", "key", "name", "list", "text"]


@dataclass(frozen=True, slots=True, eq=False)
class Terminal:
    """A piece of text, or one special token.

    Attributes:
        regex: What the text matches; NOTHING for a special token.
        lark: How llguidance writes it.
        token: The id of the special token.
        is_rule: Whether llguidance takes `lark` in rules alone.
        kind: "key" for any key of an object, "name" for one of some keys, "list" for the bracket
            that opens a list, "text" for text that is no JSON.
        lazy: Whether the text ends as soon as it can; else it goes on as long as it can.
    """

    regex: Regex
    lark: str
    token: int | None = None
    is_rule: bool = False
    kind: Kind = ""
    lazy: bool = False

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


def shortest_end(terminal: Terminal, state: Regex, begun: bytes) -> str | None:
    """The shortest text that ends a terminal, in symbols; None if there is none."""
    if terminal.token is not None:
        return terminal.shortest
    if not begun:
        text = state.shortest
        return None if text is None else text.decode("latin-1")
    texts = [
        chr(point).encode()[len(begun) :] + after.shortest
        for point, after in state.following(*characters(begun))
        if after.shortest is not None
    ]
    return min(texts, key=len).decode("latin-1") if texts else None


def after_symbol(state: Regex, begun: bytes, symbol: int) -> tuple[Regex, bytes]:
    """The state of a terminal after a byte, and the bytes of the character that it begins."""
    if symbol < 128 and not begun:
        return state.after(symbol), b""
    if symbol > 255:
        return NOTHING, b""
    begun += bytes([symbol])
    try:
        return state.after(ord(begun.decode())), b""
    except (UnicodeDecodeError, TypeError):
        low, high = characters(begun)
        possible = any(True for _ in state.following(low, high)) if low <= high else False
        return (state, begun) if possible else (NOTHING, b"")


def characters(begun: bytes) -> tuple[int, int]:
    """The least and the last code point that begins with some bytes of UTF-8."""
    if not begun:
        return 0, LAST
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
