"""The invariants of generation, on models that are any function of the history."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.engine.generate import generate, stream_generate
from tests.fakes import (
    TOKENIZERS,
    byte_ids,
)
from tests.fakes.generation import (
    PIECES,
    STOPS,
    encode,
    hashed,
    options,
    oracle,
    scripted,
    streamed,
    tiny,
)

# --- 1. the joined stream is the answer; 3. the answer is what precedes the earliest stop


@settings(max_examples=150, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_stop_oracle_on_every_path(name, data):
    text = "".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=8)))
    ids = encode(name, text)
    ids += data.draw(st.lists(st.integers(0, len(TOKENIZERS[name]) - 1), max_size=4))
    stops = data.draw(st.lists(st.sampled_from(STOPS), max_size=4, unique=True))
    prompt = "END\nObservation: go"
    pipeline = scripted(name, prompt, ids)
    full = data.draw(st.booleans())
    opts = options(stop=stops, eos_reward=False, return_full_text=full, max_new_tokens=len(ids) + 2)

    eos = TOKENIZERS[name].eos_token_id
    said = ids[: ids.index(eos)] if eos in ids else ids
    tokenizer = TOKENIZERS[name]
    visible, reason = oracle(tokenizer, tokenizer(prompt)["input_ids"], said, stops)
    expected = prompt + visible if full else visible
    response = generate(pipeline, [prompt], opts)[0]
    assert response.text == expected
    assert response.stop_reason == reason
    assert response.finish_reason == "stop"
    text, last = streamed(pipeline, prompt, opts)
    assert (text, last) == (expected, response)


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    stop=st.lists(st.sampled_from(["e", "\x00", "ab", "\ufffd"]), max_size=2, unique=True),
    ids=st.lists(st.integers(0, 255), max_size=3),
    reward=st.booleans(),
    full=st.booleans(),
    budget=st.integers(1, 30),
    name=st.sampled_from(sorted(TOKENIZERS)),
)
def test_stream_equals_invoke(seed, stop, ids, reward, full, budget, name):
    pipeline = hashed(seed, name)
    opts = options(
        stop=stop,
        stop_token_ids=[[i] for i in ids],
        eos_reward=reward,
        return_full_text=full,
        max_new_tokens=budget,
    )
    response = generate(pipeline, ["Say it."], opts)[0]
    assert streamed(pipeline, "Say it.", opts) == (response.text, response)
    assert len(response.token_ids) <= budget
    if reward:
        assert response.finish_reason == "stop"


def test_a_stop_over_several_tokens_is_held_back_and_released():
    pipeline = scripted("bytes", "go", byte_ids("say EN or END now"))
    chunks = [c.text for c in stream_generate(pipeline, "go", options(stop=["END"]))]
    assert chunks == [*"say ", "EN ", *"or ", ""]


def test_a_stop_sequence_of_ids_is_held_back_and_trimmed():
    pipeline = scripted("bytes", "go", byte_ids("a1b12c"))
    opts = options(stop_token_ids=[byte_ids("12")])
    chunks = [c.text for c in stream_generate(pipeline, "go", opts)]
    assert chunks == ["a", "1b", ""]
    assert generate(pipeline, ["go"], opts)[0].stop_reason == byte_ids("12")


def test_a_special_token_can_be_a_stop_and_is_not_in_the_answer():
    ids = [
        *byte_ids("yes"),
        TOKENIZERS["bytes"].convert_tokens_to_ids("<|im_end|>"),
        *byte_ids("x"),
    ]
    response = generate(scripted("bytes", "go", ids), ["go"], options(stop=["<|im_end|>"]))[0]
    assert (response.text, response.stop_reason) == ("yes", "<|im_end|>")
    unstopped = generate(scripted("bytes", "go", ids), ["go"], options())[0]
    assert unstopped.text == "yesx"


# --- 2. without reward and stop: the tokens of model.generate


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), prompt=st.text("abc é", min_size=1, max_size=12))
def test_without_reward_and_stop_the_tokens_are_those_of_generate(seed, prompt):
    pipeline = hashed(seed)
    ids = torch.tensor([byte_ids(prompt)])
    expected = pipeline.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=25, do_sample=False
    )[0, ids.shape[1] :]
    response = generate(pipeline, [prompt], options(eos_reward=False, max_new_tokens=25))[0]
    assert list(response.token_ids) == expected.tolist()


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"repetition_penalty": 1.3},
        {"temperature": 0.7},
        {"temperature": 1.2, "top_k": 5},
        {"temperature": 0.9, "top_p": 0.8},
    ],
)
def test_the_same_generation_config_gives_the_same_tokens(settings_):
    pipeline = tiny()
    ids = torch.tensor([byte_ids("What can I do in Paris?")])
    sampled = {"do_sample": bool(settings_.get("temperature"))}
    torch.manual_seed(3)
    expected = pipeline.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=30,
        **sampled,
        **settings_,
    )[0, ids.shape[1] :]
    torch.manual_seed(3)
    opts = options(eos_reward=False, max_new_tokens=30, **settings_)
    assert list(generate(pipeline, ["What can I do in Paris?"], opts)[0].token_ids) == (
        expected.tolist()
    )


def test_temperature_0_is_greedy_whatever_the_model_config_samples(recwarn):
    pipeline = tiny()
    plain = generate(pipeline, ["Hi"], options(temperature=0))[0]
    config = pipeline.model.generation_config
    config.do_sample, config.temperature, config.top_p, config.top_k = True, 0.6, 0.9, 7
    assert generate(pipeline, ["Hi"], options(temperature=0))[0] == plain
    torch.manual_seed(0)
    assert generate(pipeline, ["Hi"], options())[0] != plain  # None: the model's own setting


# --- 4. rows do not depend on each other


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    prompts=st.lists(st.text("abc .", min_size=1, max_size=9), max_size=7),
    batch_size=st.integers(1, 4),
)
def test_a_row_does_not_depend_on_its_batch(seed, prompts, batch_size):
    pipeline = hashed(seed)
    opts = options(batch_size=batch_size, stop=["e"], max_new_tokens=20)
    batch = generate(pipeline, prompts, opts)
    assert batch == [generate(pipeline, [p], opts)[0] for p in prompts]


def test_real_rows_do_not_depend_on_their_batch():
    pipeline = tiny()
    prompts = ["Hi", "What can I do in Paris? " * 3, "x", "Name three colours."]
    batch = generate(pipeline, prompts, options())
    assert batch == [generate(pipeline, [p], options())[0] for p in prompts]


def test_a_seeded_answer_does_not_depend_on_its_batch():
    pipeline = tiny()
    prompts = ["Hi", "What can I do in Paris?", "Hi"]
    opts = options(temperature=1.0, seed=5)
    state = torch.get_rng_state()
    batch = generate(pipeline, prompts, opts)
    assert torch.equal(torch.get_rng_state(), state)
    assert batch == [generate(pipeline, [p], opts)[0] for p in prompts]
    assert batch[0] != generate(pipeline, ["Hi"], options(temperature=1.0, seed=6))[0]


def test_batches_are_real_and_sorted_by_length():
    pipeline = tiny()
    shapes = []
    pipeline.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    prompts = ["x" * n for n in (3, 30, 5, 29)]
    responses = generate(pipeline, prompts, options(batch_size=2, max_new_tokens=2))
    assert [s for s in shapes if s[1] > 1] == [(2, 30), (2, 5)]
    assert [r.prompt_tokens for r in responses] == [3, 30, 5, 29]


def test_no_prompts_no_answers():
    assert generate(tiny(), [], options()) == []


# --- 5. a natural end before the zone is untouched


@settings(max_examples=60, deadline=None)
@given(
    text=st.text("abc .!\n", max_size=20),
    start=st.floats(0.5, 1),
    boundary=st.sampled_from(["sentence", "line", "paragraph"]),
)
def test_an_answer_that_ends_before_the_zone_is_untouched(text, start, boundary):
    pipeline = scripted("bytes", "go", byte_ids(text))
    opts = options(eos_reward={"start": start, "boundary": boundary}, max_new_tokens=44)
    response = generate(pipeline, ["go"], opts)[0]
    assert response.token_ids == (*byte_ids(text), TOKENIZERS["bytes"].eos_token_id)
    assert (response.text, response.eos_source) == (text, "model")


def test_who_ended_the_answer():
    pipeline = scripted("bytes", "go", byte_ids("A cat sat. " * 9))
    landed = generate(pipeline, ["go"], options())[0]
    assert (landed.finish_reason, landed.eos_source) == ("stop", "reward")
    assert landed.text.endswith("sat.")
    forced = generate(
        scripted("bytes", "go", byte_ids("no end in sight ")),
        ["go"],
        options(max_new_tokens=8, eos_reward={"close_sentence": False}),
    )[0]
    assert (forced.text, forced.eos_source) == ("no end ", "forced")
    cut = generate(pipeline, ["go"], options(eos_reward=False))[0]
    assert (cut.finish_reason, cut.stop_reason, cut.eos_source) == ("length", None, None)
    assert len(cut.token_ids) == 40


# --- 6. nothing leaks; two threads may call at once


def test_calls_from_threads_get_the_answers_of_single_calls():
    pipeline = tiny()
    prompts = [f"Question {i}" for i in range(6)]
    opts = options(max_new_tokens=15)
    expected = [generate(pipeline, [p], opts)[0] for p in prompts]
    results: dict[int, list] = {}

    def work(i):
        results[i] = [
            generate(pipeline, [prompts[i]], opts)[0],
            streamed(pipeline, prompts[i], opts)[1],
        ]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: [expected[i]] * 2 for i in range(6)}
