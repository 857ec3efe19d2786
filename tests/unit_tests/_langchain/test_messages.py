"""Messages of LangChain as templates and servers take them."""

import pytest

from langchain_llama_stop._langchain.messages import content_text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("A cat.", "A cat."),
        ([], ""),
        (["A cat.", {"type": "text", "text": "And a dog."}], "A cat.And a dog."),
        ([{"type": "json", "json": {"n": "é"}}], '{"n": "é"}'),
        ([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": ""}, "B"], "B"),
        (
            [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {}}],
            "What is it?\n[image]",
        ),
    ],
)
def test_the_text_of_a_content(content, text):
    assert content_text(content) == text
