"""The items of the lists in a growing JSON text: none is written over and over."""

from __future__ import annotations

from typing import NamedTuple

_MOST_REPEATED, _MOST_NUMBERS = 16, 64
"""Items of a list that may be a repetition of at most `_LONGEST_CYCLE` items: texts, lists and
objects; numbers, true, false and null. As with the digits of a number: not tuned, nobody needs more
by far, and a model in a loop writes items until its budget is spent."""
_LONGEST_CYCLE = 4


class _Open(NamedTuple):
    """A container that is open: whether it is a list, its last items, where the next one begins."""

    is_list: bool
    items: tuple[str, ...]
    begin: int


class Items(NamedTuple):
    """Where a JSON text stands, as far as items of lists are concerned.

    Attributes:
        text: The text.
        open: The containers that are open, the innermost one last.
        in_string, escaped: Whether a string is open, and a backslash in it.
        looped: The length of the text before the last comma that continued a loop; -1 if none did.
    """

    text: str = ""
    open: tuple[_Open, ...] = ()
    in_string: bool = False
    escaped: bool = False
    looped: int = -1

    def after(self, text: str) -> Items:
        """The same after more of the text; `looped` is about that part."""
        whole, stack, looped = self.text + text, list(self.open), -1
        in_string, escaped = self.in_string, self.escaped
        for place, character in enumerate(text, len(self.text)):
            if in_string:
                in_string = character != '"' or escaped
                escaped = character == "\\" and not escaped
            elif character == '"':
                in_string = True
            elif character in "[{":
                stack.append(_Open(character == "[", (), place + 1))
            elif character in "]}" and stack:
                stack.pop()
            elif character == "," and stack and stack[-1].is_list:
                _, items, begin = stack[-1]
                items = (*items, whole[begin:place].strip())[-_MOST_NUMBERS:]
                stack[-1] = _Open(True, items, place + 1)
                if _is_loop(items):
                    looped = place
        return Items(whole, tuple(stack), in_string, escaped, looped)

    @property
    def nears_loop(self) -> bool:
        """Whether the next comma may continue a loop."""
        last = self.open[-1] if self.open else None
        return last is not None and last.is_list and _is_loop(last.items, missing=1)


def _is_loop(items: tuple[str, ...], missing: int = 0) -> bool:
    """Whether the last items are a cycle that was written too often, or is but for some items."""
    most = _MOST_REPEATED if items and items[-1][:1] in ('"', "[", "{") else _MOST_NUMBERS
    last = items[missing - most :]
    return len(last) == most - missing and any(
        last[size:] == last[:-size] for size in range(1, _LONGEST_CYCLE + 1)
    )
