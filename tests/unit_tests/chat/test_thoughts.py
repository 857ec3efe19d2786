"""Thoughts and what follows them, at once and piece by piece."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from langchain_llama_stop.chat.thoughts import ThoughtSplitter, opened_thought, split_thoughts


@pytest.mark.parametrize(
    ("answer", "closing", "parts"),
    [
        ("It is.", "", ("", "It is.")),
        (" It is.\n", "", ("", " It is.\n")),
        ("<think>\nHm.\n</think>\n\nIt is.\n", "", ("Hm.", "It is.\n")),
        ("\n<think></think>It is.", "", ("", "It is.")),
        ("Hm.\n</think>\n\nIt is.", "</think>", ("Hm.", "It is.")),
        ("Hm. So", "</think>", ("Hm. So", "")),
        ("<think>Hm. </thi", "", ("Hm. </thi", "")),
        ("<thi", "", ("", "<thi")),
        ("a <think>b</think>", "", ("", "a <think>b</think>")),
        ("[THINK]Hm.[/THINK]It is.", "", ("Hm.", "It is.")),
        ("<think>a</think>b<think>c</think>", "", ("a", "b<think>c</think>")),
        ("", "", ("", "")),
        (" \n", "", ("", " \n")),
        (" \n", "</think>", ("", "")),
    ],
)
def test_an_answer_is_taken_apart(answer, closing, parts):
    assert split_thoughts(answer, closing) == parts


PIECES = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<thi",
            "nk>",
            "</",
            "a",
            " ",
            "\n",
            "[THINK]",
            "[/THINK]",
            "<",
            "b.",
        ]
    )
)


@given(pieces=PIECES, closing=st.sampled_from(["", "</think>"]))
def test_pieces_add_up_to_the_whole(pieces, closing):
    splitter = ThoughtSplitter(closing)
    parts = [splitter.feed(piece) for piece in pieces] + [splitter.finish()]
    thoughts, content = ("".join(column) for column in zip(*parts, strict=True))
    assert (thoughts, content) == split_thoughts("".join(pieces), closing)


@pytest.mark.parametrize(
    ("prompt", "closing"),
    [
        ("assistant\n<think>\n", "</think>"),
        ("assistant\n<think>", "</think>"),
        ("assistant\n[THINK]", "[/THINK]"),
        ("<think>\n\n</think>\n\n", ""),
        ("assistant\n", ""),
        ("<think> a", ""),
    ],
)
def test_a_prompt_that_ends_in_a_thought(prompt, closing):
    assert opened_thought(prompt) == closing
