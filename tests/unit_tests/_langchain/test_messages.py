"""Messages of LangChain as templates and servers take them."""

import pytest

from langchain_llama_stop._langchain.messages import content_text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("A cat.", "A cat."),
        ([], ""),
        (["A cat.", {"type": "text", "text": "And a dog."}], "A cat.\nAnd a dog."),
        ([{"type": "json", "json": {"n": "é"}}], '{"n": "é"}'),
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": ""}, "B"], "\nB"),
        ([{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {}}], None),
    ],
)
def test_the_text_of_a_content_is_none_where_it_is_more_than_text(content, text):
    assert content_text(content) == text
