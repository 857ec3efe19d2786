"""Expressions as automata, against Python's own regular expressions."""

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.grammar.multiple import multiple_of
from langchain_llama_stop.grammar.pattern import UnknownPattern, parse_pattern
from langchain_llama_stop.grammar.regex import (
    ANYTHING,
    EMPTY,
    NOTHING,
    both,
    cat,
    chars,
    either,
    literal,
    no,
    repeat,
)

LETTERS = "abé"
TEXTS = ["".join(t) for n in range(5) for t in itertools.product(LETTERS, repeat=n)]
ATOMS = st.sampled_from(["a", "b", "é", "[ab]", "[^b]", ".", "ab"])


def grown(parts):
    return st.one_of(
        st.tuples(parts, parts).map("".join),
        st.tuples(parts, parts).map(lambda p: f"(?:{p[0]}|{p[1]})"),
        st.tuples(parts, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}"])).map(
            lambda p: f"(?:{p[0]}){p[1]}"
        ),
    )


PATTERNS = st.recursive(ATOMS, grown, max_leaves=6)


@settings(max_examples=150, deadline=None)
@given(body=PATTERNS, begin=st.sampled_from(["", "^"]), end=st.sampled_from(["", "$"]))
def test_a_pattern_matches_what_python_finds(body, begin, end):
    pattern = f"{begin}(?:{body}){end}"
    state = parse_pattern(pattern)
    found = {text for text in TEXTS if re.search(pattern, text)}
    assert {text for text in TEXTS if state.matches(text)} == found
    if found:
        shortest = state.shortest
        assert shortest is not None and re.search(pattern, shortest.decode())
        assert len(shortest) <= min(len(text.encode()) for text in found)


@settings(max_examples=100, deadline=None)
@given(one=PATTERNS, other=PATTERNS)
def test_what_two_patterns_match_together_and_apart(one, other):
    a, b = (parse_pattern(f"^(?:{p})$") for p in (one, other))
    for text in TEXTS:
        in_a, in_b = (bool(re.fullmatch(p, text)) for p in (one, other))
        assert both(a, b).matches(text) is (in_a and in_b)
        assert either(a, b).matches(text) is (in_a or in_b)
        assert both(a, no(b)).matches(text) is (in_a and not in_b)
    nothing = both(a, no(a))
    assert nothing is NOTHING or nothing.shortest is None


@pytest.mark.parametrize(
    ("pattern", "shortest"),
    [
        ("^[^@]+@[^@]+$", 3),
        (r"^.+: .+$", 4),
        (r"\.txt$", 4),
        (r"^(?=.*[A-Z])(?=.*\d).{8,}$", 8),
        ("^(?!a)[a-z]+$", 1),
        (r"^\d{3}-\d{4}\Z", 8),
        ("a|^b|c$", 1),
        ("^(?:x|y$)", 1),
        (r"^[\w.-]+\/\u0041\x42$", 4),
        (r"^\p{Lu}\p{Ll}+$", 2),
        ("(?i)^yes$", 3),
        (r"^\\$", 1),
        ("", 0),
    ],
)
def test_the_shortest_text_of_patterns_that_people_write(pattern, shortest):
    state = parse_pattern(pattern)
    assert len(state.shortest) == shortest and state.matches(state.shortest.decode())


@pytest.mark.parametrize("pattern", [r"\bfoo", r"(a)\1", "a(?<=b)", "[z-a]", "(", "a)", "*", "[a"])
def test_what_is_not_supported_is_named(pattern):
    with pytest.raises(UnknownPattern):
        parse_pattern(pattern)


def test_counted_patterns_are_not_worked_out_in_advance():
    """A whole automaton of these has millions of states."""
    some = repeat(chars([(32, 63), (65, 0xD7FF)]), 0, 2000)
    assert cat(some, literal("foo"), some).shortest == b"foo"
    assert len(repeat(chars([(97, 122)]), 1900, 2000).shortest) == 1900


@given(number=st.integers(-(10**9), 10**9), modulus=st.integers(1, 99), places=st.integers(0, 2))
def test_multiples(number, modulus, places):
    text = f"{number / 10**places:.{places}f}"
    assert multiple_of(modulus, places).matches(text) is (number % modulus == 0)


def test_equal_expressions_are_one_object():
    a, b = literal("a"), literal("b")
    assert either(a, b, a) is either(b, a) and both(a, ANYTHING) is a and cat(EMPTY, a) is a
    assert no(no(a)) is a and cat(a, NOTHING) is NOTHING and repeat(a, 3, 2) is NOTHING
