"""What guesses ahead: it may guess wrong, but never costs a token, and learns to hold back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.engine.config import check_options
from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.engine.speculative import PromptLookup
from tests.fakes import (
    TOKENIZERS,
    byte_ids,
    tiny_llama,
)
from tests.fakes.generation import hashed, options, scripted, tiny


def guess(lookup, ids, tried=0, right=0, most=99):
    return lookup(torch.tensor([ids]), tried, right, most)[0].tolist()


def test_what_followed_the_longest_agreement_is_guessed():
    assert guess(PromptLookup(3), [1, 2, 3, 4, 5, 6, 2, 3]) == [4, 5, 6]
    assert guess(PromptLookup(3), [9, 1, 2, 7, 7, 8, 1, 2, 5, 5, 9, 1, 2]) == [7, 7, 8]
    assert guess(PromptLookup(3), [1, 2, 3, 4]) == []
    assert guess(PromptLookup(3), [1]) == []
    assert guess(PromptLookup(3), [7, 7, 7]) == [7]
    assert guess(PromptLookup(3), [1, 2, 3, 1, 2], most=0) == []
    assert guess(PromptLookup(3), [1, 2, 3, 1, 2], most=1) == [3]


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=40), cuts=st.data())
def test_a_text_that_grows_gives_the_guesses_of_the_whole(ids, cuts):
    growing = PromptLookup(4)
    for end in sorted({*cuts.draw(st.lists(st.integers(1, len(ids)))), len(ids)}):
        assert guess(growing, ids[:end]) == guess(PromptLookup(4), ids[:end])


def test_after_wrong_guesses_more_has_to_agree():
    lookup, ids = PromptLookup(2), [1, 2, 3, 4, 8, 9, 3, 4]
    assert guess(lookup, ids) == [8, 9]
    ids += [5, 1, 6, 2, 3, 4]
    assert guess(lookup, ids, tried=2, right=0) == [8, 9]  # three agree
    ids += [7, 3, 4]
    assert guess(lookup, ids, tried=2, right=0) == []  # two agree, four have to
    ids += [9, 5, 1, 6]
    assert guess(lookup, ids, tried=2, right=1) == [2, 3]  # three again


def test_guesses_that_come_true_grow_and_wrong_ones_shrink():
    lookup, text = PromptLookup(20), list(range(99))
    assert guess(lookup, [*text, 0, 1]) == text[2:10]
    assert guess(lookup, [*text, *text[:11]], tried=8, right=8) == text[11:27]
    assert guess(lookup, [*text, *text[:28]], tried=16, right=16) == text[28:48]  # 20 at most
    assert guess(lookup, [*text, *text[:35]], tried=20, right=6) == text[35:41]
    assert guess(lookup, [*text, *text[:36]], tried=6, right=0) == text[36:40]


class Passes(list):
    """The widths of a model's forward passes."""

    def __init__(self, pipeline):
        pipeline.model.register_forward_pre_hook(
            lambda module, args, kwargs: self.append(kwargs["input_ids"].shape[1]),
            with_kwargs=True,
        )


def test_long_prompts_are_looked_up_by_themselves():
    text = "one two three four five six " * 5
    for length, wide in ((140, True), (100, False)):
        pipeline = scripted("bytes", text[:length], byte_ids("three four five six. "))
        passes = Passes(pipeline)
        generate(pipeline, [text[:length]], options(eos_reward=False))
        assert (max(passes[1:]) > 1) == wide
    for off in ({"prompt_lookup_num_tokens": 0}, {"temperature": 0.01}):
        pipeline = scripted("bytes", text, byte_ids("three four five six. "))
        passes = Passes(pipeline)
        generate(pipeline, [text], options(**off))
        assert set(passes[1:]) == {1}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), other=st.integers(0, 3), stop=st.sampled_from([[], ["e"]]))
def test_an_assistant_changes_no_token(seed, other, stop):
    pipeline, assistant = hashed(seed), hashed(seed if other == 0 else other).model
    opts = options(stop=stop, max_new_tokens=25)
    expected = generate(pipeline, ["Say it."], opts)
    passes = Passes(pipeline)
    assert generate(pipeline, ["Say it."], opts.updated({"assistant_model": assistant})) == expected
    if other == 0:  # always right
        assert len(passes) <= 8


def test_an_assistant_with_keys_and_values_of_its_own():
    pipeline = tiny()
    vocabulary = len(TOKENIZERS["bytes"])
    expected = generate(pipeline, ["What is it?"], options())
    for seed in (0, 1):
        opts = options(assistant_model=tiny_llama(vocabulary, seed))
        assert generate(pipeline, ["What is it?"], opts) == expected


@pytest.mark.parametrize("wrong", ["a name", tiny_llama(77)])
def test_an_assistant_has_to_share_the_vocabulary(wrong):
    with pytest.raises(ValueError, match="`assistant_model` has to be a transformers model with"):
        check_options(tiny(), options(assistant_model=wrong))
