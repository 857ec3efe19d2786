"""Stop strings and stop token ids: where an answer stops, and what may still become a stop.

Pure text. Every path of the package follows one definition: the answer is the text before the stop
string that is *completed* first in the generated text. Where two stops are completed by the same
character ("END" and "D"), the one that begins first wins, so that no part of a stop remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from langchain_llama_stop._checks import check_text

S = TypeVar("S", str, tuple[int, ...])


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string found in a text.

    Attributes:
        stop: The stop string.
        start: Offset of its first character; `text[:start]` is the answer.
        end: Offset after its last character.
    """

    stop: str
    start: int
    end: int


def find_stop(text: str, stops: Sequence[str], searched: int = 0) -> StopMatch | None:
    """Finds the stop string that is completed first.

    Args:
        text: The generated text, without the prompt.
        stops: The stop strings; none of them empty.
        searched: Length of a prefix of `text` that holds no whole stop. Only stops that end after
            it are looked for, which keeps the cost of a growing text linear.

    Returns:
        The match with the smallest `end` (of equal ones, the smallest `start`), or None.

    Raises:
        ValueError: If `stops` is a string.
    """
    if isinstance(stops, str):
        raise ValueError(f"`stops` has to be a list of strings, but is {stops!r}.")
    best: StopMatch | None = None
    for stop in stops:
        start = text.find(stop, max(0, searched - len(stop) + 1))
        if start < 0:
            continue
        match = StopMatch(stop, start, start + len(stop))
        if best is None or (match.end, match.start) < (best.end, best.start):
            best = match
    return best


def held_back(text: str, stops: Sequence[str]) -> int:
    """Number of characters at the end of `text` that may still become a stop string.

    Args:
        text: Generated text that holds no whole stop.
        stops: The stop strings.
    """
    return _longest_start(text, stops)


def match_token_ids(
    ids: Sequence[int], sequences: Sequence[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """The longest stop sequence that the generated ids end with; None if there is none.

    Args:
        ids: Generated token ids, without the prompt.
        sequences: The stop sequences; a single stop id is a sequence of one.
    """
    matches = [sequence for sequence in sequences if tuple(ids[-len(sequence) :]) == sequence]
    return max(matches, key=len, default=None)


def held_back_ids(ids: Sequence[int], sequences: Sequence[tuple[int, ...]]) -> int:
    """Number of ids at the end of `ids` that may still become a stop sequence."""
    longest = max(map(len, sequences), default=1)
    return _longest_start(tuple(ids[-longest:]), sequences)


def _longest_start(generated: S, stops: Sequence[S]) -> int:
    """Length of the longest suffix of `generated` that is a proper prefix of a stop, or 0."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(generated)), longest, -1):
            if generated[-length:] == stop[:length]:
                longest = length
                break
    return longest


def parse_stop(value: object) -> tuple[str, ...]:
    """Reads the `stop` option: None, or a list of strings, of which each is kept once.

    Raises:
        ValueError: If it is something else, or a string is empty.
    """
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, (list, tuple, set, frozenset)):
        raise ValueError(f"`stop` has to be a list of strings, but is {value!r}.")
    for stop in value:
        if not isinstance(stop, str) or not stop:
            raise ValueError(
                f"`stop` has to hold strings of at least one character, but holds {stop!r}."
            )
        check_text("`stop`", stop)
    return tuple(dict.fromkeys(value))


def parse_stop_token_ids(value: object) -> tuple[tuple[int, ...], ...]:
    """Reads the `stop_token_ids` option: None, a list of ids, or a list of lists of ids.

    Returns:
        The stop sequences, each once; a single id is a sequence of one.

    Raises:
        ValueError: If it is something else, a sequence is empty, or an id is negative.
    """
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(
            f"`stop_token_ids` has to be a list of ids or of lists of ids, but is {value!r}."
        )
    sequences = []
    for item in value:
        sequence = tuple(item) if isinstance(item, (list, tuple)) else (item,)
        if not sequence:
            raise ValueError("`stop_token_ids` holds an empty sequence, which stops nowhere.")
        for token_id in sequence:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
                raise ValueError(
                    f"`stop_token_ids` has to hold ids of 0 or more, but holds {token_id!r}."
                )
        sequences.append(sequence)
    return tuple(dict.fromkeys(sequences))
