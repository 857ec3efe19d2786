"""Stop strings, against a definition written with `str.find`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_llama_stop.ending.stop_strings import (
    find_stop,
    held_back,
    held_back_ids,
    match_token_ids,
    parse_stop,
    parse_stop_token_ids,
)

texts = st.text(alphabet="ab\n é😀", max_size=30)
stops = st.lists(st.text(alphabet="ab\n é😀", min_size=1, max_size=4), min_size=1, max_size=8)


def first_completion(text: str, stops: list[str]) -> tuple[int, int] | None:
    """The definition: grow the text by a character; the first stop it ends with wins."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stops if text[:end].endswith(s)]
        if starts:
            return min(starts), end
    return None


@given(texts, stops)
def test_find_stop_follows_the_definition(text, stops):
    match = find_stop(text, stops)
    expected = first_completion(text, stops)
    assert (match and (match.start, match.end)) == expected
    if match:
        assert text[match.start : match.end] == match.stop


@given(texts, stops, st.data())
def test_a_searched_prefix_changes_nothing(text, stops, data):
    match = find_stop(text, stops)
    limit = match.end - 1 if match else len(text)
    searched = data.draw(st.integers(0, max(0, limit)))
    assert find_stop(text, stops, searched) == match


def test_earliest_completion_wins_over_earliest_start():
    assert find_stop("abcdef", ["bcdef", "cd"]).stop == "cd"


def test_of_two_that_complete_together_the_longer_wins():
    match = find_stop("the END", ["D", "END"])
    assert (match.stop, match.start) == ("END", 4)


@given(texts, stops)
def test_held_back_is_what_may_still_become_a_stop(text, stops):
    if find_stop(text, stops):
        return
    held = held_back(text, stops)
    may_become = [k for k in range(len(text) + 1) if any(_continues(text[k:], s) for s in stops)]
    assert held == (len(text) - min(may_become) if may_become else 0)


def _continues(tail: str, stop: str) -> bool:
    return 0 < len(tail) < len(stop) and stop.startswith(tail)


@pytest.mark.parametrize(
    ("ids", "sequences", "expected"),
    [
        ([1, 2, 3], [(3,)], (3,)),
        ([1, 2, 3], [(2, 3), (3,)], (2, 3)),
        ([1, 2, 3], [(1, 2)], None),
        ([3], [(2, 3)], None),
        ([], [(3,)], None),
    ],
)
def test_match_token_ids(ids, sequences, expected):
    assert match_token_ids(ids, sequences) == expected


@pytest.mark.parametrize(
    ("ids", "sequences", "expected"),
    [([1, 2], [(2, 3)], 1), ([1, 2], [(1, 2, 3), (2, 9)], 2), ([1], [(1,)], 0), ([], [(1, 2)], 0)],
)
def test_held_back_ids(ids, sequences, expected):
    assert held_back_ids(ids, sequences) == expected


@pytest.mark.parametrize("value", ["END", [""], [1], 5, {"a": 1}])
def test_a_wrong_stop_is_refused(value):
    with pytest.raises(ValueError, match="`stop` has to"):
        parse_stop(value)


@pytest.mark.parametrize("value", [3, [[]], [-1], ["a"], [True], [[1, "a"]]])
def test_wrong_stop_token_ids_are_refused(value):
    with pytest.raises(ValueError, match="`stop_token_ids`"):
        parse_stop_token_ids(value)


def test_stops_are_kept_once_and_in_order():
    assert parse_stop(["b", "a", "b"]) == ("b", "a")
    assert parse_stop_token_ids([5, [1, 2], 5]) == ((5,), (1, 2))


def test_one_string_is_no_list_of_stops():
    with pytest.raises(ValueError, match="`stops` has to be a list of strings, but is 'ef'"):
        find_stop("abcdef", "ef")
