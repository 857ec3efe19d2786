"""Calls share forward passes: each gets what it would get alone, whatever happens to the others."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LogitsProcessor

from langchain_llama_stop.engine.generate import generate, stream_generate
from tests.fakes import (
    TOKENIZERS,
    ScriptedLlama,
    byte_ids,
    make_pipeline,
    scripted_answers,
    tiny_llama,
)
from tests.fakes.generation import options, recurrent, streamed, tiny
from tests.fakes.threads import Arrivals, Gate, at_rest, started_during, wait_for


def test_calls_that_wait_share_their_passes():
    pipeline = tiny()
    calls = [([f"Question {i}"], options(max_new_tokens=20)) for i in range(5)]
    expected = [generate(pipeline, *call) for call in calls]
    gate = Gate(pipeline)
    assert started_during(pipeline, gate, calls)[1:] == expected
    assert gate.rows[:5] == [1, 1, 5, 6, 6]  # by turns: nobody waits for two prefills
    assert len(gate.rows) < 40 and at_rest(pipeline)


def test_options_of_every_kind_share_them():
    pipeline = tiny()
    calls = [
        (["Hi", "What can I do?"], options(max_new_tokens=9, stop=["e"])),
        (["Tell me."], options(temperature=1.0, seed=4, max_new_tokens=25)),
        (["A list:"], options(eos_reward=False, repetition_penalty=1.4)),
        (["x" * 40], options(json_schema={"type": "integer"}, eos_reward=False, max_new_tokens=6)),
        (["Hi"], options(prompt_lookup_num_tokens=4)),
    ]
    expected = [generate(pipeline, *call) for call in calls]
    gate = Gate(pipeline)
    assert started_during(pipeline, gate, calls)[1:] == expected
    assert max(gate.rows) == 7


def test_no_more_rows_than_batch_size_and_nobody_overtakes():
    pipeline, order = tiny(), []
    gate = Gate(pipeline)
    prompts = [[f"Q{i}"] for i in range(7)]
    prompts.insert(3, ["wide", "call", "of three"])
    calls = [
        (p, options(max_new_tokens=3 + i, batch_size=3, logits_processor=[Arrivals(order, i)]))
        for i, p in enumerate(prompts)
    ]
    started_during(pipeline, gate, calls)
    assert order == list(range(8))
    assert max(gate.rows) == 3


def answering(answers):
    """A pipeline whose model gives these answers to these prompts."""
    tokenizer = TOKENIZERS["bytes"]
    eos = tokenizer.eos_token_id
    keys = {tuple(byte_ids(prompt)): byte_ids(answer) for prompt, answer in answers.items()}
    scores = scripted_answers(keys, len(tokenizer), eos)
    return make_pipeline(ScriptedLlama(len(tokenizer), scores, eos, eos), tokenizer)


def test_finished_rows_leave():
    pipeline = answering({"go": "x" * 38, "other": ""})
    gate = Gate(pipeline)
    prompts = ["go", *["other"] * 7]  # which ends at once
    responses = generate(pipeline, prompts, options(eos_reward=False))
    assert [len(r.token_ids) for r in responses[:2]] == [39, 1]
    assert gate.rows == [8, *[1] * 38]


def test_prompts_that_wait_take_the_places_of_finished_ones():
    answers = {f"{i:02}": "x" * (30 if i % 5 == 0 else 2 + i % 2) for i in range(20)}
    pipeline = answering(answers)
    gate = Gate(pipeline)
    # As a model that is no toy: its passes take longer than to start a request.
    pipeline.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    opts = options(eos_reward=False, batch_size=8)
    assert [r.text for r in generate(pipeline, list(answers), opts)] == list(answers.values())
    assert max(gate.rows) == 8 and at_rest(pipeline)
    assert len(gate.rows) < 50  # one batch after the other: 93
    assert sum(gate.rows) < sum(len(a) + 1 for a in answers.values()) * 1.3


def test_a_model_with_states_of_another_kind_runs_alone():
    pipeline = recurrent(["conv", "full_attention"])
    ids = torch.tensor([byte_ids("Hello there")])
    expected = pipeline.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
    )
    calls = [([p], options(max_new_tokens=20, eos_reward=False)) for p in ("Hello there", "x")]
    results = started_during(pipeline, Gate(pipeline), calls)
    assert list(results[1][0].token_ids) == expected[0, ids.shape[1] :].tolist()
    assert at_rest(pipeline)


def test_a_stream_advances_while_others_lead():
    pipeline = tiny()
    expected = streamed(pipeline, "Tell me.", options())
    gate = Gate(pipeline, lambda rows: len(rows) == 9)
    stream = stream_generate(pipeline, "Tell me.", options())
    chunks = [next(stream)]
    assert gate.waits.wait(30)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(generate, pipeline, ["A longer answer"], options(eos_reward=False))
        wait_for(pipeline, 1)
        gate.open.set()
        other.result()
    assert at_rest(pipeline)
    before = len(gate.rows)
    chunks += stream
    assert ("".join(c.text for c in chunks), chunks[-1].response) == expected
    assert len(gate.rows) == before and max(gate.rows) == 2


def test_closing_one_stream_leaves_the_others_alone():
    pipeline = tiny()
    expected = streamed(pipeline, "One", options())
    one, two = (stream_generate(pipeline, p, options()) for p in ("One", "Two two"))
    chunks = [next(one), next(two), next(one)][::2]
    two.close()
    chunks += one
    assert ("".join(c.text for c in chunks), chunks[-1].response) == expected
    assert at_rest(pipeline)


def test_a_call_from_inside_of_a_processor_is_refused():
    pipeline = tiny()

    class Asking(LogitsProcessor):
        def __call__(self, input_ids, scores):
            generate(pipeline, ["Hi"], options())
            return scores

    with pytest.raises(RuntimeError, match="called from outside of its own processors"):
        generate(pipeline, ["Hi"], options(logits_processor=[Asking()]))
    assert generate(pipeline, ["Hi"], options())[0].text and at_rest(pipeline)


def test_a_stream_that_is_dropped_leaves():
    pipeline = tiny()
    stream = stream_generate(pipeline, "Hi", options())
    next(stream)
    del stream
    assert at_rest(pipeline)


@pytest.mark.parametrize("seed", range(4))
def test_many_threads_with_calls_of_every_kind(seed):
    pipeline, rng = tiny(), random.Random(seed)
    prompts = [*("x" * n for n in (1, 5, 40)), *(f"Hello {i}! " * (i % 5 + 1) for i in range(9))]
    kinds = [
        {"max_new_tokens": m, "stop": s, "batch_size": b, "eos_reward": e, "temperature": t}
        for m in (2, 12, 25)
        for s in ([], ["e"])
        for b in (2, 8)
        for e in (True, False)
        for t in (0, 1.0)
    ]
    calls = []
    for _ in range(40):
        path = rng.choice(["one", "batch", "stream", "closed"])
        count = rng.randint(2, 5) if path == "batch" else 1
        cache = rng.choice([0, 100, 4096])
        opts = options(**rng.choice(kinds), seed=3, prefix_cache=cache)
        calls.append((path, rng.choices(prompts, k=count), opts))
    expected = [
        [generate(pipeline, [p], opts.updated({"prefix_cache": 0}))[0] for p in prompts]
        for _, prompts, opts in calls
    ]

    def run(call):
        path, prompts, opts = call
        if path == "closed":
            stream = stream_generate(pipeline, prompts[0], opts)
            next(stream)
            stream.close()
            return None
        if path == "stream":
            return [streamed(pipeline, prompts[0], opts)[1]]
        return generate(pipeline, prompts, opts)

    with ThreadPoolExecutor(12) as pool:
        results = list(pool.map(run, calls))
    for call, result, right in zip(calls, results, expected, strict=True):
        assert result in (right, None), call
    assert at_rest(pipeline)


def test_gradient_mode_is_as_it_was():
    generate(tiny(), ["Hi"], options(max_new_tokens=2))
    assert torch.is_grad_enabled()


WRAPPED = {
    "plain": lambda model: model,
    "adapter": lambda model: get_peft_model(model, LoraConfig()),
    "compiled": torch.compile,
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("wrap", WRAPPED)
def test_scores_are_made_for_the_last_token_of_a_prompt_only(wrap):
    pipeline, shapes = tiny(), []
    pipeline.model.lm_head.register_forward_hook(lambda *given: shapes.append(given[2].shape[1]))
    pipeline.model = WRAPPED[wrap](pipeline.model)
    generate(pipeline, ["Why? " * 20], options(max_new_tokens=1, eos_reward=False))
    assert shapes == [1]


@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_a_model_that_has_answered_can_be_trained(rope):
    """Nothing that a forward pass leaves in the model forbids gradients."""
    tokenizer = TOKENIZERS["bytes"]
    scaling = {"rope_type": rope, "rope_theta": 1e4, "factor": 4.0}
    model = tiny_llama(
        len(tokenizer), eos_token_id=0, max_position_embeddings=16, rope_parameters=scaling
    )
    model.config.max_position_embeddings = 512  # what is made anew beyond 16 tokens stays
    generate(make_pipeline(model, tokenizer), ["Why? " * 8], options(max_new_tokens=20))
    ids = torch.arange(40)[None] % 90
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(w.grad is not None for w in model.parameters())


def test_the_inference_mode_of_one_caller_is_not_the_others():
    pipeline = tiny()
    calls = [([f"Question {i}"], options(max_new_tokens=20)) for i in range(2)]
    expected = [generate(pipeline, *call) for call in calls]
    stream = stream_generate(pipeline, "Hi", options(max_new_tokens=30))
    with torch.inference_mode():
        next(stream)
    assert [generate(pipeline, *call) for call in calls] == expected
    with torch.inference_mode():
        assert [generate(pipeline, *call) for call in calls] == expected
    assert list(stream)[-1].response


class Starts(LogitsProcessor):
    """Records the name of its call at the first token of each of the call's prompts."""

    def __init__(self, order, name, length):
        self.order, self.name, self.length = order, name, length

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] == self.length:
            self.order.append(self.name)
        return scores


def starting(order, name, prompt="Question", **kwargs):
    """A call's options; its prompts have the length of this one."""
    kwargs = {"max_new_tokens": 6, "eos_reward": False, "prefix_cache": 0, **kwargs}
    return options(logits_processor=[Starts(order, name, len(byte_ids(prompt)))], **kwargs)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("small", [1, 3])
def test_small_calls_do_not_wait_for_all_of_a_large_one(size, small):
    """Those that come first start first, be they of one call or of several."""
    pipeline, order = tiny(), []
    gate = Gate(pipeline, lambda rows: len(rows) == 1)
    with ThreadPoolExecutor(8) as pool:
        large = pool.submit(
            generate, pipeline, ["Question"] * 30, starting(order, "large", batch_size=size)
        )
        assert gate.waits.wait(30)
        others = []
        for n in range(small):
            opts = starting(order, n, batch_size=size)
            others.append(pool.submit(generate, pipeline, ["Question"], opts))
            wait_for(pipeline, n + 1)
        gate.open.set()
        (answer,) = {r.text for call in (large, *others) for r in call.result()}
    assert order[: size + small] == ["large"] * size + list(range(small))
    assert len(order) == 30 + small


UNSHARED = {"pipeline_kwargs": {"use_cache": False}}


@pytest.mark.parametrize("kinds", [({}, UNSHARED), (UNSHARED, {})], ids=["shared", "unshared"])
def test_requests_that_share_passes_and_others_do_not_wait_for_each_other(kinds):
    """Two of one kind, which have to take turns; the other kind starts before the second."""
    pipeline, order = tiny(), []
    gate = Gate(pipeline, lambda rows: len(rows) == 1)
    with ThreadPoolExecutor(4) as pool:
        calls = []
        for name, kind in enumerate((kinds[0], kinds[0], kinds[1], kinds[1])):
            opts = starting(order, name, batch_size=1, max_new_tokens=20, **kind)
            calls.append(pool.submit(generate, pipeline, ["Question"], opts))
            if not name:
                assert gate.waits.wait(30)
            else:
                wait_for(pipeline, name)
        gate.open.set()
        (answer,) = {r.text for call in calls for r in call.result()}
    assert order == [0, 2, 1, 3] and at_rest(pipeline)
