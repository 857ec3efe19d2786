"""Growing text: equal to `decode`, and nothing of it is ever taken back."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.tokens.detokenizer import Detokenizer, TextBuilder, detokenizer
from tests.fakes import TOKENIZERS

WORDS = st.sampled_from(
    ["Paris", " 😀", "é", "\n", " Observation:", "日本", "  ", "<0x41>", "👩‍👩‍👧", "\u00a0"]
)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]


def random_ids(tokenizer, data, most=60):
    whole = st.lists(st.integers(0, len(tokenizer) - 1), max_size=most)
    text = st.lists(WORDS, max_size=12).map(
        lambda words: tokenizer("".join(words), add_special_tokens=False)["input_ids"]
    )
    return data.draw(st.one_of(whole, text, st.tuples(text, whole, text).map(lambda t: sum(t, []))))


def decoded(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_equals_decode_and_is_never_taken_back(name, data):
    tokenizer = TOKENIZERS[name]
    ids = random_ids(tokenizer, data)
    builder = TextBuilder(Detokenizer(tokenizer))
    settled = ""
    for n, token in enumerate(ids, 1):
        builder.push(token)
        assert builder.text == decoded(tokenizer, ids[:n])
        assert builder.text.startswith(settled)
        settled = builder.text[: builder.settled]
    assert decoded(tokenizer, ids).startswith(settled)


def test_nothing_is_held_back_in_plain_text(tokenizer):
    builder = TextBuilder(detokenizer(tokenizer))
    for token in tokenizer("What can I do in Paris?", add_special_tokens=False)["input_ids"]:
        builder.push(token)
        assert builder.settled == len(builder.text)


def test_a_character_over_several_tokens_is_held_back_until_it_is_whole(tokenizer):
    builder = TextBuilder(detokenizer(tokenizer))
    for token in tokenizer("a😀b", add_special_tokens=False)["input_ids"]:
        builder.push(token)
        assert "\ufffd" not in builder.text[: builder.settled]
    assert builder.text.endswith("a😀b")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), length=st.integers(1, 12), special=st.booleans())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_tail_is_exact_in_its_last_characters(name, data, length, special):
    tokenizer = TOKENIZERS[name]
    ids = random_ids(tokenizer, data, most=120)
    whole = tokenizer.decode(
        ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
    )
    tail = detokenizer(tokenizer).tail(ids, length, special=special)
    assert tail[-length:] == whole[-length:]


def test_one_detokenizer_per_tokenizer(tokenizer):
    assert detokenizer(tokenizer) is detokenizer(tokenizer)


def test_special_and_byte_ids():
    metaspace = detokenizer(TOKENIZERS["metaspace"])
    assert len(metaspace.byte_ids) == 256
    assert {1, 2} <= metaspace.special_ids
    assert not detokenizer(TOKENIZERS["bytes"]).byte_ids
