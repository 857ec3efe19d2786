"""Stop strings and stop token ids: where an answer stops, and what a stream has to hold back.

Text only. The definition that every path of the package follows: the answer is what precedes the
stop string whose *completion* comes first in the generated text. Where two stops complete at the
same character ("END" and "D"), the one that begins first wins, so that no part of a stop is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StopMatch:
    """A stop string found in a text.

    Attributes:
        stop: The stop string.
        start: Offset of its first character; `text[:start]` is the answer.
        end: Offset behind its last character.
    """

    stop: str
    start: int
    end: int


def find_stop(text: str, stops: Sequence[str], searched: int = 0) -> StopMatch | None:
    """Finds the stop string that completes first.

    Args:
        text: The generated text, without the prompt.
        stops: The stop strings; none of them empty.
        searched: Length of a prefix of `text` that is known to hold no whole stop. Only
            completions behind it are looked for, which keeps a growing text linear.

    Returns:
        The match with the smallest `end` (among equals the smallest `start`), or None.
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
    """Counts the characters at the end of `text` that may still become a stop string.

    Args:
        text: Generated text that holds no whole stop.
        stops: The stop strings.

    Returns:
        Length of the longest suffix of `text` that is a proper prefix of a stop, or 0.
    """
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest


def match_token_ids(
    ids: Sequence[int], sequences: Sequence[tuple[int, ...]]
) -> tuple[int, ...] | None:
    """Finds the longest stop sequence of token ids that `ids` ends with.

    Args:
        ids: Generated token ids, without the prompt.
        sequences: The stop sequences; a single stop id is a sequence of one.

    Returns:
        The sequence, or None.
    """
    found: tuple[int, ...] | None = None
    for sequence in sequences:
        if tuple(ids[-len(sequence) :]) == sequence and (
            found is None or len(sequence) > len(found)
        ):
            found = sequence
    return found


def held_back_ids(ids: Sequence[int], sequences: Sequence[tuple[int, ...]]) -> int:
    """Counts the ids at the end of `ids` that may still become a stop sequence.

    Args:
        ids: Generated token ids that end with no whole stop sequence.
        sequences: The stop sequences.

    Returns:
        Length of the longest suffix of `ids` that is a proper prefix of a stop sequence.
    """
    longest = 0
    for sequence in sequences:
        for length in range(min(len(sequence) - 1, len(ids)), longest, -1):
            if tuple(ids[-length:]) == sequence[:length]:
                longest = length
                break
    return longest


def parse_stop(value: object) -> tuple[str, ...]:
    """Reads the `stop` option.

    Args:
        value: None, or a list of strings.

    Returns:
        The stop strings, each once.

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
    return tuple(dict.fromkeys(value))


def parse_stop_token_ids(value: object) -> tuple[tuple[int, ...], ...]:
    """Reads the `stop_token_ids` option.

    Args:
        value: None, a list of ids, or a list of lists of ids.

    Returns:
        Stop sequences, each once; a single id is a sequence of one.

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
