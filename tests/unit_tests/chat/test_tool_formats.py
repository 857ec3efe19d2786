"""Tool calls out of text."""

import itertools

import pytest

from langchain_llama_stop.chat.tool_formats import call_begins, parse_tool_calls

NAMES = {"add", "look"}
ADD, LOOK = ("add", {"a": 1}), ("look", {})
BOTH = [ADD, LOOK]
TAGGED = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
        ('{"name": "add", "arguments": {"a": 1}}; {"name": "look", "parameters": {}}', "", BOTH),
        ('[{"name": "add", "arguments": {"a": 1}}]', "", [ADD]),
        ('{"type": "function", "function": {"name": "look", "arguments": {}}}', "", [LOOK]),
        ('{"name": "add", "arguments": "{\\"a\\": 1}"}', "", [ADD]),
        ('```json\n{"name": "look", "arguments": {}}\n```', "", [LOOK]),
        ('<|python_tag|>{"name": "add", "parameters": {"a": 1}}', "", [ADD]),
        ('I see.\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', "I see.", [LOOK]),
        ('<tool_call>{"name": "look"}</tool_call>', "", [LOOK]),
        (f'{TAGGED}\n<tool_call>{{"name": "look"}}</tool_call>', "", BOTH),
        (f"A. {TAGGED} B.", "A.  B.", [ADD]),
        (
            '<tool_call>{"name": "look", "arguments": {"q": "</tool_call>"}}</tool_call> B.',
            " B.",
            None,
        ),
        (f"Use a `<tool_call>` tag. {TAGGED}", "Use a `<tool_call>` tag.", [ADD]),
        ('<tool_call>{"name":"add","arguments":{"a":1}}', "", [ADD]),
    ],
)
def test_the_known_forms(text, content, calls):
    parsed = parse_tool_calls(text, NAMES)
    assert parsed.calls == (calls or [("look", {"q": "</tool_call>"})])
    assert (parsed.content, parsed.invalid) == (content, [])


@pytest.mark.parametrize(
    "text",
    [
        *("It is 3.", '{"a": 1}', "[1, 2]", "[]", "{", "", " "),
        '{"name": "other", "arguments": {}}',
        '{"name": "add", "age": 3}',
        '{"name": "add", "arguments": {}} is what I would say.',
        "Use a `<tool_call>` tag to call.",
        "<tool_call>add(1)</tool_call>",
        "<|python_tag|>add(1)",
    ],
)
def test_what_is_no_call_is_the_answer(text):
    assert parse_tool_calls(text, NAMES) == (text, [], [])


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ('{"name": "add", ', "Expecting property name"),
        ('{"name": "other"}', "has to be one of add, look, not 'other'"),
        ('{"name": "add", "input": {"a": 1}}', "have to stand under `arguments`"),
        ('{"name": "add", "a": 1}', "have to stand under `arguments`"),
        ('[{"name": "add", "args": {"a": 1}}]', "have to stand under `arguments`"),
        ('{"name": "add", "arguments": [1]}', "have to be an object"),
    ],
)
def test_a_call_that_cannot_be_read_is_invalid(body, problem):
    text = f"<tool_call>{body}</tool_call>"
    for after in ("", f" {TAGGED}"):
        parsed = parse_tool_calls(text + after, NAMES)
        assert parsed.calls == [ADD] * bool(after) and parsed.content == ""
        assert parsed.invalid[0][0] == text and problem in parsed.invalid[0][1]


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("It is", 5),
        ("It is <tool", 5),
        ("a < b", 5),
        ("a <", 1),
        ("Use <tool_call> ", 3),
        ("Use <tool_call> tags", 20),
        ("So <|python_tag|>", 2),
        ('So\n{"name": "add"', 2),
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


PIECES = [
    *(" ", "\n", "I see.", "a < b", "{", '{"name": ', "```", "`<tool_call>`", "<tool_", "[1]"),
    *(TAGGED, '<tool_call>{"name": "sub"}</tool_call>', '<tool_call>{"na', "</tool_call>"),
    *("<|python_tag|>", '{"name": "look", "parameters": {}}', "; "),
]


@pytest.mark.slow
def test_what_is_not_held_back_stands_in_the_content():
    for pieces in itertools.permutations(PIECES, 3):
        text = "".join(pieces)
        content = parse_tool_calls(text, NAMES).content
        for end in range(len(text) + 1):
            assert content.startswith(text[: call_begins(text[:end])])
