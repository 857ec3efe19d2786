"""Tool calls out of text."""

import pytest

from langchain_llama_stop.tool_calling import call_begins, parse_tool_calls

NAMES = {"add", "look"}
ADD = ("add", {"a": 1})


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
        ('{"name": "add", "arguments": {"a": 1}}; {"name": "look"}', "", [ADD, ("look", {})]),
        ('[{"name": "add", "arguments": {"a": 1}}]', "", [ADD]),
        ('{"type": "function", "function": {"name": "look"}}', "", [("look", {})]),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', "", [ADD]),
        ('```json\n{"name": "look"}\n```', "", [("look", {})]),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
        ('I see.\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', "I see.", None),
        ('<tool_call>{"name":"add","arguments":{"a":1}}', "", [ADD]),
    ],
)
def test_the_known_forms(text, content, calls):
    found = parse_tool_calls(text, NAMES)
    assert found.calls == (calls or [("look", {})])
    assert (found.content, found.invalid) == (content, [])


@pytest.mark.parametrize(
    "text", ["It is 3.", '{"a": 1}', '{"name": "other", "arguments": {}}', "[1, 2]", "{", ""]
)
def test_what_is_no_call_is_the_answer(text):
    assert parse_tool_calls(text, NAMES) == (text, [], [])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('{"name": "add", "arg', "Unterminated"),
        ('{"name": "other"}', "has to be one of add, look, not 'other'"),
        ('{"name": "add", "arguments": [1]}', "have to be an object"),
        ("add(1)", "has to be JSON"),
    ],
)
def test_a_call_that_cannot_be_read_is_invalid(body, problem):
    found = parse_tool_calls(f"<tool_call>{body}</tool_call>", NAMES)
    assert found.calls == [] and found.content == ""
    assert found.invalid[0][0] == body and problem in found.invalid[0][1]


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("It is", 5),
        ("It is <tool", 5),
        ("a < b", 5),
        ('{"na', 0),
        ("\n[", 0),
        ("`", 0),
        ("```json", 0),
        ("", 0),
        ('See. <tool_call>{"name"', 4),
    ],
)
def test_what_may_become_a_call_is_held_back(text, offset):
    assert call_begins(text) == offset
