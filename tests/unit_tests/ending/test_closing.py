"""What brings an unfinished text to its end."""

import pytest

from langchain_llama_stop.ending.boundaries import may_end
from langchain_llama_stop.ending.closing import close_text


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("A cat sat.", ""),
        ("A cat sat", "."),
        ('He said "look', '."'),
        ("It is small (a cat", ")."),
        ("**A cat sat", ".**"),
        ("Look:\n```python\nx = 1", "\n```"),
        ("Look:\n```python\nx = 1\n", "```"),
        ('{"a": [1, 2', "]}"),
        ('{"a": [{"b": "c', '"}]}'),
    ],
)
def test_closing_brings_a_text_to_its_end(text, end):
    assert close_text(text) == end
    assert may_end(text + end)


def test_what_cannot_be_closed_is_left_alone():
    for text in (
        "Ingredients:\n- 1.",
        "shadows play,\n",
        "A list:\n-",
        "## Title",
        '{"a": 1,',
        '{"a',
        '["x", tr',
    ):
        assert close_text(text) == ""
