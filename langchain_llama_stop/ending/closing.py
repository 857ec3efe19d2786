"""What closes an unfinished text: pure text."""

import json
import re

from langchain_llama_stop.ending.boundaries import CLOSING_CHARS, may_end, open_constructs
from langchain_llama_stop.ending.markup import json_values
from langchain_llama_stop.ending.open_words import OPEN_CHARACTERS, OPEN_WORDS

_AFTER_WORD = re.compile(rf"[^\W_][{CLOSING_CHARS}]*\Z")
_SENTENCES = re.compile(r"[.!?…][\"'”’»)*_]*\s+|[。！？]|\n")
_WORDS = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*")
_LEAST_WORDS = 3  # of a sentence that we close: "So." and "We can." are none
_LAST_SENTENCE = 300  # characters from the end in which the words of a sentence are counted
_BLOCKS = ("\n", "`" * 3, "~" * 3, "|")
_CODE = re.compile(r"[;{][ \t]*(?:\n|\Z)")
_UNFINISHED_LINE = ("(", "[", "{", ",", ":", "\\", "=")  # more lines belong to what it begins


def close_text(text: str, following: str | None = None) -> str:
    """What has to be appended so that an unfinished text may end: a full stop, and all it owes.

    Args:
        text: The answer so far.
        following: What follows the closing: "" if the answer ends there for good, None if that is
            unknown. Then no full stop is put after a short number.

    Returns:
        The first of the usual closings that works; "" if the text may end as it is, or if none
        works (after a bare list marker, or a comma in JSON).
    """
    if may_end(text):
        return ""
    owed = "".join(open_constructs(text))
    if text.endswith("\n"):
        owed = owed.removeprefix("\n")  # a fence needs a line of its own, and has one
    closings = [owed]
    if "}" in owed and _CODE.search(text):
        # Code without a fence: its braces close on a line of their own.
        closings = [owed if json_values(text)[1] or text.endswith("\n") else "\n" + owed]
    elif _AFTER_WORD.search(text):  # a full stop after anything else would end nothing
        outside, inside = owed + ".", "." + owed  # (a cat). but "A cat."
        closings += [outside, inside] if owed[:1] in (")", "]") else [inside, outside]
    for closing in closings:
        ends = closing and may_end(text + closing, following=following)
        if ends and _valid_json(text, closing):
            return closing
    return ""


def can_close(text: str, closing: str, following: str = "") -> bool:
    """Whether a closing makes of a text something that reads as finished.

    No number and no word of prose is cut, and the words before a full stop can end a sentence.
    Code, JSON and tables hold no sentences: there only numbers must be whole.

    Args:
        text: The answer up to the closing.
        closing: What is put in after it.
        following: What the answer went on with, as far as it is known.
    """
    last, first = text[-1:], following[:1]
    if last.isdigit() and re.match(r"[\w%°]|[.,:/]\d", following):
        return False
    if closes_block(text, closing):
        return _fills_block(text, closing)
    if last.isalnum() and first.isalnum() and first < "\u2e80":
        return False
    words = text.rstrip().rstrip("*_`\"'”’»)]}")
    if words[-1:] >= "\u2e80":
        return words[-1] not in OPEN_CHARACTERS
    if "\u0e00" <= words[-1:] < "\u0f00":
        return True  # Thai and Lao: no spaces tell the words
    sentence = _WORDS.findall(_SENTENCES.split(words[-_LAST_SENTENCE:])[-1])
    return len(sentence) >= _LEAST_WORDS and sentence[-1].lower() not in OPEN_WORDS


def closes_block(text: str, closing: str) -> bool:
    """Whether a closing ends a block of code, a table row or a JSON value: more than a sentence."""
    block = closing.lstrip(" ").startswith(_BLOCKS) or not closing.strip("\n}")
    return block or bool(json_values(text)[1])


def line_breaks(closing: str, text: str, following: str) -> int:
    """How badly a closing breaks code: 2 within a line, 1 after a line that needs more, else 0."""
    if not closing.lstrip("\n ").startswith(_BLOCKS[1:3]):
        return 0
    if not (text.endswith("\n") or following.startswith("\n")):
        return 2
    return int(text.rstrip().endswith(_UNFINISHED_LINE))


def _fills_block(text: str, closing: str) -> bool:
    """Whether the block that a closing ends holds something, and its last line is whole enough."""
    line = text.rstrip().rpartition("\n")[2].strip()
    if json_values(text)[1]:
        return True
    if closing.startswith("|"):
        return re.search(r"[^|\s]", line) is not None
    if not closing.strip("\n}"):
        return line.endswith((";", "}"))
    return not line.startswith(_BLOCKS[1:3])


def _valid_json(text: str, closing: str) -> bool:
    """Whether `closing` makes the JSON that `text` leaves open valid; True if it leaves none."""
    values, owed = json_values(text)
    if not owed:
        return True
    try:
        json.loads(text[(values or [0])[-1] :] + closing)
    except (ValueError, RecursionError):  # a model in a loop nests ever deeper
        return False
    return True
