"""The keys of the objects in a growing JSON text: none may be written twice."""

from __future__ import annotations

from dataclasses import dataclass, replace

from langchain_llama_stop.grammar.rules import Place


@dataclass(frozen=True, slots=True)
class Keys:
    """Where a JSON text stands, as far as keys are concerned.

    Attributes:
        outer: The same of the container around this one; None outside of all.
        written: The keys of this object; None in a list.
        string: The text of the string that is open, as it is written; None outside of strings.
        is_key: Whether the next or the open string is a key.
        repeated: Whether a key has just ended that the object has already.
    """

    outer: Keys | None = None
    written: frozenset[str] | None = None
    string: str | None = None
    is_key: bool = False
    repeated: bool = False
    _escaped: bool = False

    def after(self, text: str) -> Keys:
        """The same after more of the text."""
        if self.string is not None and not self._escaped and not {'"', "\\"} & {*text}:
            return replace(self, string=self.string + text)
        state, repeated = self, False
        for character in text:
            state = state._next(character)
            repeated |= state.repeated
        return replace(state, repeated=repeated) if repeated is not state.repeated else state

    @property
    def taken(self) -> list[str]:
        """What of the keys that are written would follow the key that is open, quote included."""
        if self.string is None or not self.is_key or self._escaped or not self.written:
            return []
        size = len(self.string)
        return [f'{key[size:]}"' for key in self.written if key.startswith(self.string)]

    @property
    def opens_key(self) -> bool:
        """Whether the quote of a key has just been opened."""
        return self.is_key and self.string == ""

    @property
    def all_written(self) -> frozenset[str]:
        """The keys of all objects around here."""
        outer = frozenset[str]() if self.outer is None else self.outer.all_written
        return outer | (self.written or frozenset())

    def _next(self, character: str) -> Keys:
        if self.string is not None:
            if character != '"' or self._escaped:
                escaped = character == "\\" and not self._escaped
                return replace(self, string=self.string + character, _escaped=escaped)
            if self.is_key and self.written is not None:
                again, written = self.string in self.written, self.written | {self.string}
                return replace(self, string=None, written=written, is_key=False, repeated=again)
            return replace(self, string=None)
        if self.repeated:
            return replace(self, repeated=False)._next(character)
        if character == '"':
            return replace(self, string="")
        if character == "{":
            return Keys(self, frozenset(), is_key=True)
        if character == "[":
            return Keys(self)
        if character in "}]":
            return self.outer or Keys()
        if character == "," and self.written is not None:
            return replace(self, is_key=True)
        return self


def shortest_completion(place: Place, keys: Keys) -> str | None:
    """The shortest text that completes an answer and writes no key twice; None if there is none."""
    done = ""
    while not keys.repeated and (rest := place.completion) is not None:
        if not place.parser.has_keys or place.in_text:
            return done + rest
        state, begun, at_key = keys, 0, keys
        for index, symbol in enumerate(rest):
            following = state.after(symbol)
            if following.repeated:
                break
            if following.opens_key:
                begun, at_key = index + 1, following
            state = following
        else:
            return done + rest
        before = place.after(rest[:begun])
        other = None if before is None else before.other_key(at_key.taken)
        after = None if before is None or other is None else before.after(other)
        if after is None or other is None:
            return None
        done += rest[:begun] + other
        place, keys = after, at_key.after(other)
    return None
