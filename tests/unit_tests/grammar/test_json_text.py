"""JSON's numbers and strings, against Python's own."""

import json
from decimal import Decimal

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from langchain_llama_stop.grammar.json_text import (
    FORMATS,
    format_regex,
    number_terminal,
    string_regex,
)
from langchain_llama_stop.grammar.pattern import parse_pattern
from langchain_llama_stop.grammar.regex import literal, no

NUMBERS = st.decimals(-200, 200, places=2).map(Decimal.normalize)
BOUNDS = st.none() | NUMBERS | st.integers(-200, 200).map(Decimal)


@settings(max_examples=400, deadline=None)
@given(
    integer=st.booleans(),
    low=BOUNDS,
    low_excluded=st.booleans(),
    high=BOUNDS,
    high_excluded=st.booleans(),
    numbers=st.lists(NUMBERS, max_size=8),
)
def test_numbers_between_bounds(integer, low, low_excluded, high, high_excluded, numbers):
    assume(low is not None or high is not None)
    regex = number_terminal(
        integer=integer,
        low=low,
        low_excluded=low_excluded,
        high=high,
        high_excluded=high_excluded,
    ).regex

    def fits(number):
        above = low is None or number > low or (number == low and not low_excluded)
        below = high is None or number < high or (number == high and not high_excluded)
        return above and below and (not integer or number == int(number))

    for number in [*numbers, *(b for b in (low, high) if b is not None)]:
        assert regex.matches(f"{number:f}") is (
            fits(number) and not (integer and "." in f"{number:f}")
        )
    if regex.shortest is not None:
        assert fits(Decimal(regex.shortest.decode()))
    elif low is not None and high is not None:
        assert not any(fits(low + Decimal(i) / 100) for i in range(300))


@pytest.mark.parametrize("integer", [True, False])
def test_a_number_without_bounds_has_at_most_64_digits(integer):
    regex = number_terminal(integer=integer).regex
    assert regex.matches("-" + "9" * 64) and not regex.matches("9" * 65)
    for text, right in [("0", True), ("-0", True), ("01", False), ("1.", False), ("", False)]:
        assert regex.matches(text) is right
    assert regex.matches("1.5e-10") is not integer


@given(
    number=st.integers(-2000, 2000),
    multiple=st.sampled_from(["7", "0.25", "0.01", "1.5", "10", "0.5", "3"]),
)
def test_multiples_of_a_decimal(number, multiple):
    value = number * Decimal(multiple)
    regex = number_terminal(integer=False, multiple=Decimal(multiple)).regex
    if value == int(value):
        assert regex.matches(str(int(value)))
    wrong = value + Decimal(multiple) / 2
    assert not regex.matches(f"{wrong:f}")


@settings(deadline=None)
@given(st.text())
def test_any_string_fits_in_each_of_its_spellings(text):
    free, spelled = string_regex(), string_regex([no(literal("x"))])
    for ascii_only in (False, True):
        written = json.dumps(text, ensure_ascii=ascii_only)
        assert free.matches(written)
    assert spelled.matches(json.dumps(text, ensure_ascii=False)) is (text != "x")


@settings(deadline=None)
@given(st.text(max_size=6), st.integers(0, 5), st.integers(0, 5))
def test_lengths_count_characters(text, fewest, more):
    regex = string_regex((), fewest, fewest + more)
    assert regex.matches(json.dumps(text, ensure_ascii=False)) is (
        fewest <= len(text) <= fewest + more
    )


RIGHT = {
    "email": ["ann@example.com", "a.b+c@x-y.co.uk", "o'brien_1@a.org", "X-9@b.c.de"],
    "hostname": ["localhost", "a-b.example.org"],
    "ipv4": ["127.0.0.1", "255.255.255.255"],
    "ipv6": ["::1", "2001:db8::8a2e:370:7334", "fe80::", "1:2:3:4:5:6:7:8", "::ffff:10.0.0.1"],
    "uuid": ["123e4567-e89b-12d3-a456-426614174000"],
    "date": ["2024-02-29", "1999-12-31"],
    "time": ["23:59:59Z", "10:20:30.5+02:00"],
    "date-time": ["2024-02-29T10:20:30Z", "1985-04-12T23:20:50.52-08:00"],
    "duration": ["P1D", "PT1H30M", "P1Y2M3DT4H5M6S", "P3W"],
    "uri": [
        "https://example.com/x?y=1#z",
        "mailto:a@b.co",
        "urn:isbn:0451450523",
        "file:///etc/hosts",
        "tel:+39-06-698",
        "http://10.0.0.1:80/",
    ],
}
WRONG = {
    "email": ["ann", "@b.co", "a b@c.de", "a/b@c.de", "a..b@c.de", "a?b=c@d.ef", ".a@b.co"],
    "hostname": ["-a", "a..b", "a_b"],
    "ipv4": ["256.1.1.1", "1.2.3"],
    "ipv6": ["1:2:3", "::1::", "g::"],
    "uuid": ["123e4567"],
    "date": ["2023-02-29", "2024-13-01", "1900-02-29", "2024-04-31"],
    "time": ["24:00:00Z", "10:20Z"],
    "date-time": ["2024-02-30T10:20:30Z", "2024-02-29"],
    "duration": ["P", "PT", "1D", "P1H"],
    "uri": ["example", "//x", "http://a b", "http:///x", "x://"],
}
for version in range(1, 9):
    RIGHT[f"uuid{version}"] = [f"123e4567-e89b-{version}2d3-a456-426614174000"]
    WRONG[f"uuid{version}"] = [
        f"123e4567-e89b-{(version + 1) % 10}2d3-a456-426614174000",
        f"123e4567-e89b-{version}2d3-c456-426614174000",
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_formats(name):
    state = format_regex(name)
    for text in RIGHT[name]:
        assert state.matches(text), text
    for text in WRONG[name]:
        assert not state.matches(text), text
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    checker.check(state.shortest.decode(), name)


def test_a_pattern_is_about_the_text_and_not_its_escapes():
    regex = string_regex([parse_pattern(r'^a"\\\n$')])
    assert regex.matches(json.dumps('a"\\\n')) and not regex.matches('"a"')
