"""Whether a full stop ends a sentence: numbers, initials, abbreviations, and what follows it.

`boundaries` finds the full stop. Here the words before it are judged, and those after it, as far
as they are known.
"""

import re
from typing import NamedTuple

from langchain_llama_stop.ending.abbreviations import (
    ABBREVIATIONS,
    BEFORE_HOMOGRAPH,
    DOTTED_ENDS,
    HOMOGRAPHS,
    LETTER_NOUNS,
    SELDOM_END,
    SENTENCE_STARTERS,
    UNITS,
)
from langchain_llama_stop.ending.markup import OPENERS

_AFTER = re.compile(r"(\s*+)(\S{0,24})")
_SETTLED = re.compile(r"\S|[^\S\n]*+(?:\n|\S{24}|\S++\s)")
_SHORT_NUMBER = re.compile(r"(?<![\d.,:/])\d{1,3}\Z")  # 3. may become 3.14; 1889., 5:30. may not
_HALF_ADDRESS = re.compile(r"(?:://|\w@|\bwww\.)[^\s./]*\Z|\bwww\Z")
_INITIAL = re.compile(r"(?<![\w.'’>/])((?:[^\W\d_]\.[ -]?)*)([^\W\d_])\Z")
# Lower-case letters that start an abbreviation (a.m., e.g., i.e., p.m., d.h.) or are one.
_LETTER_ABBREVIATIONS = "acdeipsuvzκčřгдпствркмнч"
_UNIT = re.compile(r"(?:\d[\d.,]*\s?|\b[IVXLC]+\s)[°µ]?([^\W\d_]{1,4})\Z|°([A-Z])\Z")
_ORDINAL = re.compile(  # am 3. Oktober, den 5. Mai, Ludwig der 14.
    r"(?:\b(?i:am|im|vom|zum|zur|bis|seit|der|die|das|den|dem|des|ab|beim)|Art|Nr|Kap)\s+\d{1,3}\Z"
)
# A word without a vowel is one that was shortened (Cmdr); smrt and vlk are words: r and l sound.
_NO_VOWELS = re.compile(
    r"(?!\w*[^\W_][rlрл][^\W_])(?:[B-DF-HJ-NP-TV-XZŠČŽĐ][b-df-hj-np-tvxzčďňřšťžßśźćńłż]{1,6}|"
    r"[бвгджзклмнпрстфхцчшщ]{2,6})\Z"
)
_STREET = re.compile(r"\w{2}(?:str|pl)\Z")  # Bahnhofstr., Marktpl.
_SOUNDS = frozenset(
    "Hm Hmm Hmmm Sh Shh Psst Pst Brr Mm Mmm Mhm Tsk Pfft Grr Zzz Nth Xth Phd".split()
)
_PARTS = re.compile(r"[.\-–/(]|(?<=[a-z])(?=[A-Z])")
_MARKER = re.compile(r"(?:\A|[.!\n]\s*|[:;(]\s*(?=[1aAiI]\Z))(?:\d{1,3}|[A-Za-z])\Z")
_NAME_BEFORE = frozenset(
    "by of from with and for to per von van de du del di da by: author: von: от и".split()
)


class After(NamedTuple):
    """What follows a place in a text.

    Attributes:
        gap: The whitespace.
        word: What stands after it, up to the next whitespace; "" if nothing is known, or follows.
        known: Whether all that follows is known; then no word means that the text is over.
    """

    gap: str
    word: str
    known: bool

    @property
    def newline(self) -> bool:
        """Whether a line ends here."""
        return "\n" in self.gap


def after(text: str, stop: int, known: bool) -> After:
    """What follows `text[:stop]` in the text."""
    found = _AFTER.match(text, stop)
    assert found is not None  # every part of the pattern is optional
    return After(found[1], found[2], known)


def settles(following: str) -> bool:
    """Whether so much is known of what follows a text that more of it changes no verdict."""
    return _SETTLED.match(following) is not None


def goes_on(end: str, tail: str, then: After) -> bool:
    """Whether what follows a terminator and its closers shows that the sentence continues."""
    if tail.endswith("]") and then.word[:1].islower():
        return True  # "It is so. [2] shows more": the source is the next sentence's
    if then.gap or not then.word:
        return False
    first = then.word[0]
    if end.isascii() and not tail and first.isalnum() and first < "\u2e80":
        return True  # index.html, 3.14
    return end.isascii() and first in ",;"


def dot_ends(before: str, tail: str, then: After, lower: bool) -> bool:
    """Whether a full stop ends a sentence.

    Args:
        before: The text before it, in its line.
        tail: The closers after it.
        then: What follows these.
        lower: Whether this text begins its sentences with small letters.
    """
    if before.endswith("."):
        return before.endswith("..")  # an ellipsis, not half of one
    if not before or before[-1].isspace():
        return False
    words = before.rsplit(None, 2)
    word = words[-1].lstrip(OPENERS)
    on_line = then.word and then.gap and not then.newline
    if on_line and not lower and then.word[0].islower() and len(word) < 6:
        return False  # "at 9 a.m. on", "10 km. away", an ordinal (5. mai), any abbreviation
    if _is_unit(before, then):
        return True
    if before.endswith(DOTTED_ENDS):
        return True
    if _is_abbreviation(word):
        return False
    previous = words[-2].lstrip(OPENERS) if len(words) > 1 else ""
    if word in HOMOGRAPHS and previous.lower() in BEFORE_HOMOGRAPH:
        return False
    if then.newline:
        return True
    if word == "No":  # an answer, or the abbreviation of number
        return not (before[:-2].rstrip()[-1:].isalnum() or then.word[:1].isdigit())
    if _HALF_ADDRESS.search(before):
        return False
    if word in SELDOM_END:
        return _starts_sentence(then)
    if _SHORT_NUMBER.search(before):
        if tail:
            return True
        return _doubt_is_gone(then) and not (
            _MARKER.search(before) or (then.word and _is_ordinal(before, then))
        )
    initial = _INITIAL.search(before)
    if not initial:
        return True
    if not (initial[1] or initial[2].isupper()):
        return initial[2] not in _LETTER_ABBREVIATIONS or _starts_sentence(then)
    return _capital_ends(before, initial, previous, tail, then)


def _is_abbreviation(word: str) -> bool:
    """Whether a word, or the last part of it (Dipl.-Ing), is one that never ends a sentence."""
    if word in ABBREVIATIONS or _PARTS.split(word)[-1] in ABBREVIATIONS:
        return True
    if _STREET.search(word):
        return True
    return word not in SELDOM_END and word not in _SOUNDS and bool(_NO_VOWELS.match(word))


def _is_unit(before: str, then: After) -> bool:
    """Whether a number and a unit stand before a full stop; "5 a" may be half of "5 a.m."."""
    found = _UNIT.search(before)
    if not found or (then.word and not then.gap):
        return False
    return found[2] is not None or found[1] in UNITS


def _doubt_is_gone(then: After) -> bool:
    """Whether nothing more can follow at once: a space and a word do, or the end of the text."""
    return bool(then.gap and then.word) or (then.known and not then.word)


def _starts_sentence(then: After) -> bool:
    """Whether a word follows that begins sentences rather than names."""
    word = then.word.strip("\"'“”‘’«»*_(,;:!?.…")
    return bool(then.gap) and word[:1].isupper() and word.lower() in SENTENCE_STARTERS


def _is_ordinal(before: str, then: After) -> bool:
    """Whether a number counts what follows, as in am 3. Oktober."""
    return bool(_ORDINAL.search(before)) and not _starts_sentence(then)


def _capital_ends(
    before: str, initial: re.Match[str], previous: str, tail: str, then: After
) -> bool:
    """Whether a capital, or letters with full stops, end a sentence: "is B.", not "by J."."""
    letters = initial[1].replace(".", "") + initial[2]
    closed = tail[:1] in tuple('"”’»)]')  # the quotation or bracket ends with the letter
    if not letters.isupper() or " " in initial[1] or not (closed or _doubt_is_gone(then)):
        return False  # e.g., z. B., J. K.
    if _starts_sentence(then):
        return not (initial[1] == "" and _MARKER.search(before))
    if then.word and (initial[1] or not re.match(r"[\W\d]|[^\W\d_]{2}", then.word)):
        return False  # U.S. Senate; J. R. Tolkien
    if _MARKER.search(before):
        return False
    if previous.lower().strip(",;:") in LETTER_NOUNS or not previous:
        return True
    names = previous.lower() in _NAME_BEFORE or previous[:1].isupper()
    return bool(initial[1]) or not names
