"""Draft tokens: a wrong draft changes no token, and makes the next one shorter."""

import os

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
from tests.fakes.generation import hashed, options, scripted, streamed, tiny


def draft(lookup, ids, drafted=0, accepted=0, max_tokens=99):
    return lookup(torch.tensor([ids]), drafted, accepted, max_tokens)[0].tolist()


def test_what_followed_the_longest_match_is_drafted():
    assert draft(PromptLookup(3), [1, 2, 3, 4, 5, 6, 2, 3]) == [4, 5, 6]
    assert draft(PromptLookup(3), [9, 1, 2, 7, 7, 8, 1, 2, 5, 5, 9, 1, 2]) == [7, 7, 8]
    assert draft(PromptLookup(3), [1, 2, 3, 4]) == []
    assert draft(PromptLookup(3), [1]) == []
    assert draft(PromptLookup(3), [7, 7, 7]) == [7]
    assert draft(PromptLookup(3), [1, 2, 3, 1, 2], max_tokens=0) == []
    assert draft(PromptLookup(3), [1, 2, 3, 1, 2], max_tokens=1) == [3]


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 3), min_size=1, max_size=40), cuts=st.data())
def test_a_text_that_grows_gives_the_drafts_of_the_whole(ids, cuts):
    growing = PromptLookup(4)
    for end in sorted({*cuts.draw(st.lists(st.integers(1, len(ids)))), len(ids)}):
        assert draft(growing, ids[:end]) == draft(PromptLookup(4), ids[:end])


def test_after_wrong_drafts_more_has_to_match():
    lookup, ids = PromptLookup(2), [1, 2, 3, 4, 8, 9, 3, 4]
    assert draft(lookup, ids) == [8, 9]
    ids += [5, 1, 6, 2, 3, 4]
    assert draft(lookup, ids, drafted=2, accepted=0) == [8, 9]  # three match
    ids += [7, 3, 4]
    assert draft(lookup, ids, drafted=2, accepted=0) == []  # two match, four have to
    ids += [9, 5, 1, 6]
    assert draft(lookup, ids, drafted=2, accepted=1) == [2, 3]  # three again


def test_drafts_grow_after_right_ones_and_shrink_after_wrong_ones():
    lookup, text = PromptLookup(20), list(range(99))
    assert draft(lookup, [*text, 0, 1]) == text[2:10]
    assert draft(lookup, [*text, *text[:11]], drafted=8, accepted=8) == text[11:27]
    assert draft(lookup, [*text, *text[:28]], drafted=16, accepted=16) == text[28:48]  # 20 at most
    assert draft(lookup, [*text, *text[:35]], drafted=20, accepted=6) == text[35:41]
    assert draft(lookup, [*text, *text[:36]], drafted=6, accepted=0) == text[36:40]


class Passes(list):
    """The widths of a model's forward passes."""

    def __init__(self, pipeline):
        pipeline.model.register_forward_pre_hook(
            lambda module, args, kwargs: self.append(kwargs["input_ids"].shape[1]),
            with_kwargs=True,
        )


def test_prompt_lookup_switches_itself_on_for_long_prompts():
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
def test_a_draft_model_changes_no_token(seed, other, stop):
    pipeline, draft_model = hashed(seed), hashed(seed if other == 0 else other).model
    opts = options(stop=stop, max_new_tokens=25)
    expected = generate(pipeline, ["Say it."], opts)
    passes = Passes(pipeline)
    assert (
        generate(pipeline, ["Say it."], opts.updated({"assistant_model": draft_model})) == expected
    )
    if other == 0:  # always right
        assert len(passes) <= 8


def test_a_draft_model_with_keys_and_values_of_its_own():
    pipeline = tiny()
    vocabulary = len(TOKENIZERS["bytes"])
    expected = generate(pipeline, ["What is it?"], options())
    for seed in (0, 1):
        opts = options(assistant_model=tiny_llama(vocabulary, seed))
        assert generate(pipeline, ["What is it?"], opts) == expected


@pytest.mark.parametrize("wrong", ["a name", tiny_llama(77)])
def test_a_draft_model_has_to_share_the_vocabulary(wrong):
    with pytest.raises(ValueError, match="`assistant_model` has to be a transformers model with"):
        check_options(tiny(), options(assistant_model=wrong))


@settings(max_examples=500 if os.environ.get("LLAMA_STOP_LONG") else 50, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    words=st.lists(st.sampled_from(["ab", "cd ", "abab", "x. "]), min_size=1, max_size=8),
    lookup=st.integers(1, 6),
    stop=st.sampled_from([[], ["b"], ["cd"]]),
)
def test_prompt_lookup_changes_no_token(seed, words, lookup, stop):
    text = "".join(words)
    ids = byte_ids(text * 2)[:30]
    pipeline = scripted("bytes", text, ids)
    for pipe, prompt in ((pipeline, text), (hashed(seed), text)):
        opts = options(stop=stop, max_new_tokens=25)
        ahead = opts.updated({"prompt_lookup_num_tokens": lookup})
        expected = generate(pipe, [prompt], opts)[0]
        assert generate(pipe, [prompt], ahead)[0] == expected
        assert streamed(pipe, prompt, ahead) == (expected.text, expected)


def test_prompt_lookup_takes_fewer_passes():
    text = "one two three four five six "
    pipeline = scripted("bytes", text, byte_ids(text))
    passes = []
    pipeline.model.register_forward_pre_hook(lambda *args: passes.append(1))
    generate(pipeline, [text], options(prompt_lookup_num_tokens=8, eos_reward=False))
    assert len(passes) < len(text) / 2


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_nothing_is_drafted_for_passes_that_others_share(monkeypatch, rows):
    pipeline, text, drafts = tiny(), "one two one two one two ", []
    original = PromptLookup.__call__

    def counted(self, *args):
        drafts.append(args)
        return original(self, *args)

    monkeypatch.setattr(PromptLookup, "__call__", counted)
    settings_ = {"eos_reward": False, "pipeline_kwargs": {"min_new_tokens": 12}}
    opts = options(prompt_lookup_num_tokens=4, max_new_tokens=12, prefix_cache=0, **settings_)
    answers = generate(pipeline, [text] * rows, opts)
    assert {answer.text for answer in answers} == {answers[0].text}
    assert bool(drafts) == (rows == 1)
