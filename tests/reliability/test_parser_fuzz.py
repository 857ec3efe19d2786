"""What a model may write, put together at random: parsers never raise and lose nothing."""

import json
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from langchain_llama_stop.chat.tool_formats import call_begins, parse_tool_calls
from langchain_llama_stop.ending.boundaries import Boundary, count_sentences, last_end, may_end
from langchain_llama_stop.ending.closing import close_text

EXAMPLES = 20_000 if os.environ.get("LLAMA_STOP_LONG") else 500
NAMES = ["weather", "add"]
PARTS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "<tool_call>\n", "```json\n", "```", "\n"),
    *('{"name": "weather", "arguments": {"city": "Rome"}}', '{"name": "add", "parameters": {}}'),
    *('{"name": ', '"weather"', '"nobody"', ', "arguments": ', "{", "}", "[", "]", '"', "\\", ","),
    *("null", "1e999", "NaN", "-0", "9" * 5000, '"\\ud800"', "; ", " ", "It is warm.", "é", "😀"),
    *("[TOOL_CALLS]", "[TOOL_CALLS]add[ARGS]", "<function=add>", "<parameter=a>\n", "</parameter>"),
    *("</function>", "<tool_call>add\n", "<arg_key>a</arg_key>", "<arg_value>", "</arg_value>"),
    *(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n",
        "<|tool_call|>[",
    ),
    *("<｜DSML｜function_calls>", '<｜DSML｜invoke name="add">', "</｜DSML｜invoke>", "<TOOLCALL>"),
    *("<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>", "<|START_ACTION|>"),
    *("[" * 3000, "{" * 3000, '{"a":' * 3000, "\x00", "\u2028", "1. ", "* ", "(", "**", "…"),
]
TEXTS = st.lists(st.sampled_from(PARTS) | st.text(max_size=5), max_size=9).map("".join)


@settings(max_examples=EXAMPLES, deadline=None)
@given(TEXTS)
@example("<tool_call>" + "[" * 100_000)
@example('{"name": "weather", "arguments": ' + '{"a":' * 100_000)
def test_the_parser_of_calls(text):
    found = parse_tool_calls(text, NAMES)
    for name, arguments in found.calls:
        assert name in NAMES and isinstance(arguments, dict)
        json.dumps(arguments)
    assert all(body and body in text and error for body, error in found.invalid)
    if not found.calls and not found.invalid:
        assert found.content == text
    assert 0 <= call_begins(text) <= len(text)
    if call_begins(text) == len(text):  # what a stream has given away holds no call
        assert not found.calls and not found.invalid


@settings(max_examples=EXAMPLES, deadline=None)
@given(TEXTS)
def test_the_judges_of_ends(text):
    for boundary in Boundary.__args__:
        assert may_end(text, boundary) in (True, False)
    assert count_sentences(text) >= 0
    assert 0 <= last_end(text) <= len(text)
    assert isinstance(close_text(text), str)


@pytest.mark.parametrize("depth", [*range(880, 1000, 3), 5_000, 500_000])
def test_calls_nested_too_deeply_are_invalid(depth):
    for text in ("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        found = parse_tool_calls(f"<tool_call>{text}", NAMES)
        assert not found.calls and len(found.invalid) == 1
        assert isinstance(close_text(text[: len(text) // 2]), str)
