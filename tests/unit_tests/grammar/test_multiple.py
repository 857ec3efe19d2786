"""`multipleOf`: the fewest characters that complete a multiple, and which ones are enforced."""

import itertools
import time
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from langchain_llama_stop.grammar.keys import Keys, shortest_completion
from langchain_llama_stop.grammar.multiple import endings, is_enforceable, multiple_of
from langchain_llama_stop.grammar.schema import json_grammar


def fits(schema, text):
    place = json_grammar(schema).parser.begin().after(text)
    return place is not None and place.accepting


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2), st.text("0123456789", max_size=3), st.booleans())
def test_the_fewest_characters_by_brute_force(modulus, places, digits, pointed):
    state = multiple_of(modulus, places)
    for character in digits + ("." if pointed else ""):
        state = state.after(ord(character))

    def is_multiple(rest):
        whole, point, decimals = (digits + ("." if pointed else "") + rest).partition(".")
        if "." in decimals or len(decimals) > places:
            return False
        return int((whole + decimals.ljust(places, "0")) or 0) % modulus == 0

    lengths = (n for n in range(4) for r in itertools.product("0123456789.", repeat=n)
               if is_multiple("".join(r)))  # fmt: skip
    least = next(lengths, None)
    if least is not None:
        assert state.least == least and len(state.shortest) == least


@pytest.mark.parametrize("modulus", [997, 3600, 4096, 4999])
def test_a_large_multiple_is_completed_at_once(modulus):
    begun = time.process_time()
    place = json_grammar({"type": "integer", "multipleOf": modulus}).parser.begin().after("1234")
    rest = shortest_completion(place, Keys())
    assert int("1234" + rest) % modulus == 0 and len(rest) <= 5
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("modulus", [3600, 4096, 4999])
def test_llguidance_follows_every_multiple_that_is_enforced(modulus):
    lark = json_grammar({"type": "integer", "multipleOf": modulus}).lark
    tokenizer = LLTokenizer("byte")
    for number in range(modulus * 12345678, modulus * 12345688, modulus):
        matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(lark), log_level=0)
        for byte in str(number).encode():
            matcher.compute_logit_bias()
            assert matcher.consume_token(byte)
        assert matcher.is_accepting() and not matcher.is_error()


@pytest.mark.parametrize(
    ("modulus", "places", "last"),
    [
        (1, 0, [""]),
        (1, 8, [""]),
        (5, 0, ["0", "5"]),
        (5, 2, ["0", "5"]),
        (250, 0, ["000", "250", "500", "750"]),
        (25, 1, None),
        (10**9, 0, ["000000000"]),
        (3, 0, None),
        (4096, 0, None),
    ],
)
def test_endings(modulus, places, last):
    assert endings(modulus, places) == last


@pytest.mark.parametrize(
    ("multiple", "right", "wrong"),
    [
        (1e-8, ["0.00000001", "1", "0.5", "0.50"], ["0.000000001"]),
        (0.0001, ["0.1234", "12.5"], ["0.12345"]),
        (0.05, ["0.15", "0.1", "-2.50", "3"], ["0.12"]),
        (1000000, ["0", "3000000", "-1000000"], ["3", "100000", "1000001"]),
        (250, ["0", "250", "1750", "1000"], ["25", "1001"]),
    ],
)
def test_multiples_that_their_last_digits_decide(multiple, right, wrong):
    schema = {"type": "number", "multipleOf": multiple}
    assert [t for t in right if not fits(schema, t)] == [] == [t for t in wrong if fits(schema, t)]


@pytest.mark.parametrize("multiple", [0.07, 19.99, 0.0003, 86400, 123456789, 1000003, 0.123456789])
def test_what_cannot_be_counted_is_told_and_checked(multiple):
    grammar = json_grammar({"type": "number", "multipleOf": multiple})
    assert not is_enforceable(Decimal(str(multiple)), integer=False)
    assert grammar.unchecked == ("multipleOf",)


@pytest.mark.parametrize("multiple", [7, 0.3, 1.1, 0.35, 9.99, 3600, 0.001])
def test_what_people_write_is_enforced(multiple):
    assert json_grammar({"type": "number", "multipleOf": multiple}).unchecked == ()
