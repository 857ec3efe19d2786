"""How an unfinished text is brought to its end: pure text."""

import json
import re

from langchain_llama_stop.ending.boundaries import CLOSERS, may_end, open_constructs
from langchain_llama_stop.ending.markup import json_values

_AFTER_WORD = re.compile(rf"[^\W_][{CLOSERS}]*\Z")


def close_text(text: str) -> str:
    """What brings an unfinished text to an end: a full stop, and all that is owed.

    Args:
        text: The answer so far.

    Returns:
        The first of the usual ways that works here; "" if the text may end as it is, or if none
        works (behind a bare list marker, or a comma in JSON).
    """
    if may_end(text):
        return ""
    owed = "".join(open_constructs(text))
    if text.endswith("\n"):
        owed = owed.removeprefix("\n")  # of a fence, which wants a line of its own
    ends = [owed]
    if _AFTER_WORD.search(text):  # a full stop behind anything else would end nothing
        outside, inside = owed + ".", "." + owed  # (a cat). but "A cat."
        ends += [outside, inside] if owed[:1] in (")", "]") else [inside, outside]
    for end in ends:
        if end and may_end(text + end) and _valid_json(text, end):
            return end
    return ""


def _valid_json(text: str, end: str) -> bool:
    """Whether `end` makes a value of the JSON that `text` leaves open; True if it leaves none."""
    values, owed = json_values(text)
    if not owed:
        return True
    try:
        json.loads(text[(values or [0])[-1] :] + end)
    except (ValueError, RecursionError):  # a model in a loop nests without end
        return False
    return True
