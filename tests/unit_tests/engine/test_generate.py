"""The invariants of generation, on models that are any function of the history."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    MistralConfig,
    MistralForCausalLM,
    StoppingCriteria,
)

from langchain_llama_stop.engine.config import token_budget
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.engine.prefix_cache import prefix_cache_of
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import (
    TOKENIZERS,
    byte_ids,
    make_pipeline,
    tiny_llama,
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
from tests.fakes.threads import Gate, at_rest

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


# --- closing, exceptions, the user's own callables


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


# --- budgets, EOS ids, prompts


def test_the_pipelines_own_settings_count():
    tokenizer = TOKENIZERS["bytes"]
    model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    pipeline = make_pipeline(model, tokenizer, max_new_tokens=7)
    opts = GenerationOptions.parse({"eos_reward": False})
    assert len(generate(pipeline, ["Hi"], opts)[0].token_ids) == 7
    assert len(generate(pipeline, ["Hi"], opts.updated({"max_new_tokens": 3}))[0].token_ids) == 3


def test_the_budget_ends_at_the_context_window():
    response = generate(tiny(), ["x" * 500, "Hi"], options(max_new_tokens=40))
    assert len(response[0].token_ids) <= 12  # the window has 512
    assert response[0].eos_source in ("reward", "forced")
    with pytest.raises(ValueError, match="context window of 512 tokens.*has 512 tokens"):
        generate(tiny(), ["x" * 512], options())


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ValueError, match="prompt has to hold at least one character"):
        generate(tiny(), ["Hi", []], options())


def test_every_eos_id_of_the_generation_config_ends_an_answer():
    tokenizer = TOKENIZERS["bytes"]
    other = tokenizer.convert_tokens_to_ids("<|im_end|>")
    pipeline = scripted("bytes", "go", [*byte_ids("yes"), other, *byte_ids("no")])
    pipeline.model.generation_config.eos_token_id = [tokenizer.eos_token_id, other]
    response = generate(pipeline, ["go"], options())[0]
    assert (response.text, response.eos_source) == ("yes", "model")
    assert response.token_ids[-1] == other


def test_one_bos_where_the_prompt_has_one_already():
    name = "byte_bpe"
    tokenizer = TOKENIZERS[name]
    pipeline = tiny(name=name)
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id
    plain, with_bos = generate(pipeline, ["Hi", tokenizer.bos_token + "Hi"], options())
    assert plain.prompt_tokens == with_bos.prompt_tokens
    assert plain.text == with_bos.text


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("What?", "In 4 sentences.\n\nWhat?"),
        ("[INST] What? [/INST]", "[INST] What?\n\nIn 4 sentences. [/INST]"),
        (
            "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n",
            "<|im_start|>user\nWhat?\n\nIn 4 sentences.<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_the_answer_hint_stands_at_the_end_of_the_users_turn(prompt, expected):
    pipeline = scripted("bytes", expected, byte_ids("Yes."))
    opts = options(max_new_tokens=100, answer_hint="In {sentences} sentences.")
    response = generate(pipeline, [prompt], opts.updated({"return_full_text": True}))[0]
    assert response.text == prompt + "Yes."


# --- prompt lookup and the prefix cache change no token


@settings(max_examples=500, deadline=None)
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


@pytest.mark.parametrize(
    ("model", "pipe", "budget"),
    [
        ({"max_length": 4096}, {}, 256),
        ({"max_length": 60}, {}, 50),
        ({"max_length": 60, "max_new_tokens": 12}, {}, 12),
        ({"max_new_tokens": 12}, {"max_length": 60}, 50),
        ({}, {}, 256),
    ],
)
def test_whose_budget_counts(model, pipe, budget, caplog):
    pipeline = tiny()
    pipeline.model.generation_config.update(**model)
    opts = GenerationOptions.parse({"eos_reward": False, "pipeline_kwargs": pipe})
    assert token_budget(pipeline, opts, 10) == budget
    generate(pipeline, ["x" * 10], opts.updated({"max_new_tokens": 3}))
    if len(model) < 2:
        assert "seem to have been set" not in caplog.text


def test_an_answer_that_time_has_cut_says_so():
    opts = options(eos_reward=False, pipeline_kwargs={"max_time": 1e-9})
    response = generate(tiny(), ["x"], opts)[0]
    assert len(response.token_ids) < 40 and response.finish_reason == "length"


def test_one_prompt_is_no_list_of_prompts():
    with pytest.raises(ValueError, match="`prompts` has to be a list of strings, but is 'The sky'"):
        generate(tiny(), "The sky", options())
