"""The prefix cache changes no token, and leaves only new tokens to compute."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    MistralConfig,
    MistralForCausalLM,
)

from langchain_llama_stop.engine.batch import Batch
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.engine.prefix_cache import prefix_cache_of
from tests.fakes import (
    TOKENIZERS,
    byte_ids,
    make_pipeline,
)
from tests.fakes.faults import once_failing
from tests.fakes.generation import (
    hashed,
    options,
    tiny,
)
from tests.fakes.threads import Gate, at_rest


def test_a_prefix_that_a_batch_has_in_common_is_computed_once():
    pipeline = tiny()
    prompts = ["y" * 40 + end for end in ("ab", "c", "def")]
    expected = [generate(pipeline, [p], options(prefix_cache=0))[0] for p in prompts]
    gate = Gate(pipeline)
    assert generate(pipeline, prompts, options()) == expected
    assert list(zip(gate.rows, gate.widths, strict=True))[:2] == [(1, 40), (3, 3)]
    gate.widths.clear()
    assert generate(pipeline, ["y" * 40 + "zz"], options(max_new_tokens=2))
    assert gate.widths[0] == 2


def test_the_same_prompt_again_needs_no_pass_for_its_first_token():
    pipeline = tiny()
    gate = Gate(pipeline)
    opts = options(max_new_tokens=5, eos_reward=False)
    expected = generate(pipeline, ["y" * 40], opts)
    assert generate(pipeline, ["y" * 40], opts) == expected
    assert gate.widths == [40, 1, 1, 1, 1, 1, 1, 1, 1]
    sampled = options(max_new_tokens=5, temperature=1.0, seed=1)
    assert generate(pipeline, ["y" * 40], sampled) == generate(
        pipeline, ["y" * 40], sampled.updated({"prefix_cache": 0})
    )


def test_two_conversations_do_not_push_each_other_out():
    pipeline = tiny()
    gate = Gate(pipeline)
    opts = options(max_new_tokens=2, eos_reward=False)
    system = "s" * 50
    for _ in range(2):
        for question in ("first" * 3, "other" * 3):
            generate(pipeline, [system + question], opts)
    assert [w for w in gate.widths if w > 1] == [65, 15]
    gate.widths.clear()
    generate(pipeline, [system + "first" * 3 + "!"], opts)
    assert gate.widths[0] <= 2


def test_a_short_common_prefix_is_computed_again():
    pipeline = tiny()
    gate = Gate(pipeline)
    for end in ("ab", "cd"):
        generate(pipeline, ["y" * 30 + end], options(max_new_tokens=2))
    assert [w for w in gate.widths if w > 1] == [32, 32]


def test_nothing_is_cached_where_it_is_off():
    pipeline = tiny()
    gate = Gate(pipeline)
    for _ in range(2):
        generate(pipeline, ["y" * 50], options(max_new_tokens=2, prefix_cache=0))
    assert [w for w in gate.widths if w > 1] == [50, 50]


def test_the_cache_is_bounded_and_the_least_recently_used_goes():
    pipeline = tiny()
    gate = Gate(pipeline)
    opts = options(max_new_tokens=2, prefix_cache=150, eos_reward=False)
    for letter in "abacb":
        generate(pipeline, [letter * 60], opts)
        assert at_rest(pipeline) and prefix_cache_of(pipeline.model).tokens <= 150
    assert [w for w in gate.widths if w > 1] == [60, 60, 60, 60]  # the second a was cached
    gate.widths.clear()
    generate(pipeline, ["d" * 200], opts)
    generate(pipeline, ["d" * 200], opts)
    assert [w for w in gate.widths if w > 1] == [200, 50]


def test_a_prefix_that_cannot_be_cached_is_not(monkeypatch):
    pipeline = tiny()
    prompt, opts = "Question " * 8, options(max_new_tokens=5)
    expected = generate(pipeline, [prompt], opts)
    pipeline = tiny()
    failed = once_failing(monkeypatch, Batch, "prefix", RuntimeError("no room"))
    assert generate(pipeline, [prompt], opts) == expected
    assert at_rest(pipeline) and failed  # a prefix is cached after the answer is given
    stream = stream_generate(pipeline, prompt + "more", opts)
    next(stream)
    once_failing(monkeypatch, Batch, "prefix", RuntimeError("no room"))
    stream.close()
    assert at_rest(pipeline) and generate(pipeline, [prompt], opts) == expected


def test_a_model_that_is_trained_in_place_forgets():
    pipeline, prompt, opts = tiny(), "Question " * 8, options(max_new_tokens=8)
    generate(pipeline, [prompt], opts)
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.mul_(1.5)
    plain = opts.updated({"prefix_cache": 0})
    assert generate(pipeline, [prompt], opts) == generate(pipeline, [prompt], plain)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    turns=st.lists(st.text("ab. ", min_size=1, max_size=5), min_size=1, max_size=5),
    limit=st.sampled_from([1, 40, 1000]),
)
def test_the_prefix_cache_changes_no_token(seed, turns, limit):
    pipeline = hashed(seed)
    history = "Hi. " * 9  # shorter prefixes are computed again
    for turn in turns:
        history += turn
        opts = options(max_new_tokens=8)
        plain = generate(pipeline, [history], opts.updated({"prefix_cache": 0}))[0]
        kept = generate(pipeline, [history], opts.updated({"prefix_cache": limit}))[0]
        assert kept == plain
        history += plain.text


def test_the_prefix_cache_leaves_only_new_tokens_to_compute():
    pipeline = tiny()
    widths = []
    pipeline.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    opts = options(prefix_cache=300, max_new_tokens=3)
    generate(pipeline, ["x" * 50], opts)
    generate(pipeline, ["x" * 50 + "yz"], opts)
    assert widths[0] == 50 and widths[-3] == 2 and max(widths[1:]) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_forward_pass_leaves_nothing_in_the_prefix_cache(error):
    pipeline = tiny()
    opts = options(prefix_cache=500, max_new_tokens=6)
    plain = generate(pipeline, ["x" * 60], options(max_new_tokens=6, prefix_cache=0))[0]
    generate(pipeline, ["x" * 40], opts)

    def interrupt(*args):
        raise error("in the middle of the layers")

    hook = pipeline.model.model.layers[-1].register_forward_pre_hook(interrupt)
    with pytest.raises(error):
        generate(pipeline, ["x" * 60], opts)
    hook.remove()
    assert generate(pipeline, ["x" * 60], opts)[0] == plain
    stream = stream_generate(pipeline, "x" * 70, opts)
    next(stream)
    stream.close()  # between two steps: the computed prefix is complete, and is cached
    assert at_rest(pipeline)
    assert prefix_cache_of(pipeline.model).tokens >= 70


def sliding_pipeline():
    tokenizer = TOKENIZERS["bytes"]
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        sliding_window=8,
        eos_token_id=tokenizer.eos_token_id,
    )
    return make_pipeline(MistralForCausalLM(config).eval(), tokenizer)


def test_a_sliding_window_goes_back_too():
    pipeline = sliding_pipeline()
    prompt = "ab cd " * 8
    ids = torch.tensor([byte_ids(prompt)])
    expected = pipeline.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
    )[0, ids.shape[1] :].tolist()
    opts = options(eos_reward=False, max_new_tokens=20, prompt_lookup_num_tokens=4)
    generate(pipeline, [prompt[:40]], opts)
    for responses in (generate(pipeline, [prompt], opts), generate(pipeline, [prompt, "x"], opts)):
        assert list(responses[0].token_ids) == expected


def test_a_sliding_window_is_not_filled_with_padding():
    """Prompts of one prefill, of which one is cached and one is not."""
    pipeline = sliding_pipeline()
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.mul_(25)  # what is attended to makes a difference then
    prompts = ["ab cd " * 10, "So it is. " * 6]
    opts = options(eos_reward=False, max_new_tokens=12)
    expected = [generate(pipeline, [p], opts.updated({"prefix_cache": 0}))[0] for p in prompts]
    generate(pipeline, [prompts[0][:56]], opts)
    assert generate(pipeline, prompts, opts) == expected
