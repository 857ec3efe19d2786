"""What brings an unfinished text to its end."""

import pytest

from langchain_llama_stop.ending.boundaries import may_end
from langchain_llama_stop.ending.closing import can_close, close_text, line_breaks


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
        ("int main() {\n  int i = 1;", "\n}"),
        ("if (a) {\n  while (b) {\n    c();\n", "}}"),
        (".box {\n  color: red;", "\n}"),
        ("The set {a, the empty set", ".}"),
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


@pytest.mark.parametrize(
    ("text", "closing", "following"),
    [
        ("The cat sat on the mat", ".", " and"),
        ('He said "the cat sat', '."', ","),
        ("**The cat sat", ".**", ""),
        ("It has 144", ".", " of them"),
        ("```\nx = fo", "\n```", "o"),
        ('{"a": "no en', '"}', "d"),
        ("| a | b |\n|---|---|\n| the", " |", ""),
        ("我去了北京", "。", "和"),
        ("Der Hund schläft", ".", " und"),
        ("int main() {\n  int i = 1;", "\n}", "\n"),
    ],
)
def test_a_closing_is_put_after_words_that_can_end(text, closing, following):
    assert can_close(text, closing, following)


@pytest.mark.parametrize(
    ("text", "closing", "following"),
    [
        ("To find 6 times 7, we can", ".", " use"),
        ("It is done.\n\nSo", ".", " we"),
        ("It is done. Well then", ".", " we"),
        ("He went to the", ".", " house"),
        ("The cat sat on (a", ")", " mat"),
        ("It has 14", ".", "4 of them"),
        ("It has 12", ".", ",450"),
        ("It is about 3", ".", ".5 m"),
        ('{"a": 1', "}", "2}"),
        ("The cat sat on pho", ".", "tos"),
        ("Er ging in den", ".", " Wald"),
        ("Il va à la", ".", " gare"),
        ("Ella vive en el", ".", " campo"),
        ("Он живёт на", ".", " улице"),
        ("我去了北京和", "。", "上海"),
        ("私は本を", "。", "読む"),
        ("```python\n", "```", "x"),
        ("Look:\n```", "\n```", "\n"),
        ("| a | b |\n|---|---|\n|", "||", " x"),
        ("int main() {\n  int i = 1", "\n}", ";"),
        ("int main() {\n  while (i < 1", "\n}", "0"),
    ],
)
def test_none_is_put_after_a_fragment(text, closing, following):
    assert not can_close(text, closing, following)


def test_a_short_number_may_be_closed_where_nothing_follows():
    assert close_text("It has 14") == ""
    for text in ("It has 14", "The sequence is: 0, 1, 1, 2, 3", "The answer is B"):
        assert close_text(text, following="") == "."


@pytest.mark.parametrize(
    ("text", "following", "breaks"),
    [
        ("```\nx = 1", "\ny", 0),
        ("```\nx = 1\n", "y", 0),
        ("```\nx = ", "1", 2),
        ("```\nx = [\n", "1", 1),
        ("```\ndef f():", "\n", 1),
        ("A cat sat", " and", 0),
    ],
)
def test_code_is_closed_after_a_whole_line(text, following, breaks):
    assert line_breaks(close_text(text), text, following) == breaks
