"""The user's own callables, and calls that end early."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
)

from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import TOKENIZERS, byte_ids, make_pipeline, tiny_llama
from tests.fakes.generation import decoded, hashed, options, scripted, streamed, tiny
from tests.fakes.threads import Gate, at_rest


def test_closing_a_stream_ends_the_model():
    pipeline = tiny()
    gate = Gate(pipeline, lambda rows: len(rows) == 6)
    stream = stream_generate(pipeline, "Hi", options(max_new_tokens=300))
    next(stream), next(stream)
    assert gate.waits.wait(30)
    stream.close()
    gate.open.set()
    assert at_rest(pipeline) and len(gate.rows) == 6


class Failing(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if input_ids.shape[1] > 6:
            raise KeyError("step 4")
        return scores


def test_an_exception_reaches_the_caller_as_itself():
    pipeline = tiny()
    opts = options(logits_processor=[Failing()])
    with pytest.raises(KeyError, match="step 4"):
        generate(pipeline, ["Hi!"], opts)
    with pytest.raises(KeyError, match="step 4"):
        list(stream_generate(pipeline, "Hi!", opts))
    assert torch.is_grad_enabled()
    assert generate(pipeline, ["Hi!"], options())[0].text


def test_a_suspended_stream_holds_neither_lock_nor_gradient_mode():
    pipeline = tiny()
    stream = stream_generate(pipeline, "Hi", options())
    next(stream)
    assert torch.is_grad_enabled()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(generate(pipeline, ["x"], options())))
    thread.start()
    thread.join(timeout=30)
    assert answers


class Only(LogitsProcessor):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        new = torch.full_like(scores, -50.0)
        new[:, self.token] = 0
        return new


class AfterThree(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        full = input_ids.shape[1] >= 5
        return torch.full((input_ids.shape[0],), full, dtype=torch.bool)


@pytest.mark.parametrize("where", ["pipeline", "options"])
def test_the_users_processor_and_criteria_stay_in_force(where):
    own = {"logits_processor": [Only(65)], "stopping_criteria": [AfterThree()]}
    given_pipeline = own if where == "pipeline" else {}
    tokenizer = TOKENIZERS["bytes"]
    model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    pipeline = make_pipeline(model, tokenizer, **given_pipeline)
    opts = options(**(own if where == "options" else {}))
    response = generate(pipeline, ["Hi", "Yo"], opts)[1]
    assert response.text == "AAA"
    assert (response.finish_reason, response.eos_source) == ("stop", None)
    assert streamed(pipeline, "Yo", opts)[0] == "AAA"


def test_without_a_cache_the_tokens_are_the_same():
    pipeline = tiny()
    off = {"pipeline_kwargs": {"use_cache": False}, "prompt_lookup_num_tokens": 4}
    expected = generate(pipeline, ["Hi", "What can I do?"], options())
    assert generate(pipeline, ["Hi", "What can I do?"], options(**off)) == expected
    assert generate(pipeline, ["Hi"], options(prefix_cache=99, **off)) == expected[:1]


def test_a_generation_config_of_the_pipeline_counts():
    tokenizer = TOKENIZERS["bytes"]
    model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    config = GenerationConfig(max_new_tokens=6, eos_token_id=tokenizer.eos_token_id)
    pipeline = make_pipeline(model, tokenizer, generation_config=config)
    opts = GenerationOptions.parse({"eos_reward": False})
    assert len(generate(pipeline, ["Hi"], opts)[0].token_ids) == 6
    assert config.max_new_tokens == 6


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    place=st.integers(0, 11),
    length=st.integers(3, 14),
    kinds=st.sampled_from(["eos", "length", "both"]),
)
def test_criteria_of_the_kinds_that_generate_adds_take_their_places(seed, place, length, kinds):
    """An `EosTokenCriteria` or `MaxLengthCriteria` of the user's own, as in plain `generate`."""
    pipeline = hashed(seed)
    ids = torch.tensor([byte_ids("Hi")])
    given_ids = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False}
    plain = pipeline.model.generate(**given_ids, max_new_tokens=12)[0, 2:].tolist()
    own = []
    if kinds != "length":
        own.append(EosTokenCriteria(plain[min(place, len(plain) - 1)]))
    if kinds != "eos":
        own.append(MaxLengthCriteria(length))
    expected = pipeline.model.generate(
        **given_ids, max_new_tokens=12, stopping_criteria=StoppingCriteriaList(own)
    )[0, 2:].tolist()
    opts = options(eos_reward=False, max_new_tokens=12, stopping_criteria=own)
    response = generate(pipeline, ["Hi"], opts)[0]
    assert list(response.token_ids) == expected
    assert streamed(pipeline, "Hi", opts)[1] == response
    kept = expected[:-1] if response.eos_source else expected
    assert response.text == decoded(pipeline.tokenizer, kept, prompt=byte_ids("Hi"))


def test_a_token_that_the_users_criterion_does_not_end_at_is_no_end():
    """EOS in the midst of an answer; who ended it, and its text, are those of its last token."""
    eos = TOKENIZERS["bytes"].eos_token_id
    pipeline = scripted("bytes", "go", [*byte_ids("ab"), eos, *byte_ids("cd")])
    own = [EosTokenCriteria(byte_ids("d")[0])]
    response = generate(pipeline, ["go"], options(eos_reward=False, stopping_criteria=own))[0]
    assert response.token_ids == (*byte_ids("ab"), eos, *byte_ids("cd"))
    assert (response.text, response.eos_source, response.finish_reason) == ("abcd", None, "stop")
