"""What closes an unfinished text: pure text."""

import json
import re

from langchain_llama_stop.ending.boundaries import CLOSING_CHARS, may_end, open_constructs
from langchain_llama_stop.ending.markup import json_values

_AFTER_WORD = re.compile(rf"[^\W_][{CLOSING_CHARS}]*\Z")


def close_text(text: str) -> str:
    """What has to be appended so that an unfinished text may end: a full stop, and all it owes.

    Args:
        text: The answer so far.

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
    if _AFTER_WORD.search(text):  # a full stop after anything else would end nothing
        outside, inside = owed + ".", "." + owed  # (a cat). but "A cat."
        closings += [outside, inside] if owed[:1] in (")", "]") else [inside, outside]
    for closing in closings:
        if closing and may_end(text + closing) and _valid_json(text, closing):
            return closing
    return ""


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
