"""Calls share forward passes: each gets what it would get alone, whatever happens to the others."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Lfm2Config, Lfm2ForCausalLM, LogitsProcessor

from langchain_llama_stop.engine.batch import Batch
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.engine.kv_cache import RowsCache
from langchain_llama_stop.engine.prefix_cache import prefix_cache_of
from tests.fakes import (
    TOKENIZERS,
    ScriptedLlama,
    byte_ids,
    make_pipeline,
    scripted_answers,
    tiny_llama,
)
from tests.fakes.generation import options, streamed, tiny
from tests.fakes.threads import Arrivals, Gate, at_rest, wait_for


def started_during(pipeline, gate, calls, first="A"):
    """Runs calls that arrive while another one is in its first pass; returns all results."""
    gate.open.clear()
    gate.waits.clear()
    with ThreadPoolExecutor(32) as pool:
        futures = [pool.submit(generate, pipeline, [first], options(max_new_tokens=30))]
        assert gate.waits.wait(30)
        for count, (prompts, opts) in enumerate(calls, 1):
            futures.append(pool.submit(generate, pipeline, prompts, opts))
            wait_for(pipeline, count)
        gate.open.set()
    return [future.exception() or future.result() for future in futures]


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
    tokenizer = TOKENIZERS["bytes"]
    eos = tokenizer.eos_token_id
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=["conv", "full_attention"],
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = make_pipeline(Lfm2ForCausalLM(config).eval(), tokenizer)
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
    stream = stream_generate(pipeline, "Tell me.", options())
    chunks = [next(stream)]
    gate = Gate(pipeline)
    generate(pipeline, ["A longer answer"], options(eos_reward=False))
    before = len(gate.rows)
    chunks += stream
    assert ("".join(c.text for c in chunks), chunks[-1].response) == expected
    assert len(gate.rows) - before <= 1
    assert max(gate.rows) == 2


def test_closing_one_stream_leaves_the_others_alone():
    pipeline = tiny()
    expected = streamed(pipeline, "One", options())
    one, two = (stream_generate(pipeline, p, options()) for p in ("One", "Two two"))
    chunks = [next(one), next(two), next(one)][::2]
    two.close()
    chunks += one
    assert ("".join(c.text for c in chunks), chunks[-1].response) == expected
    assert at_rest(pipeline)


class Failing(LogitsProcessor):
    def __call__(self, input_ids, scores):
        raise KeyError("mine")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_is_its_own_calls_alone(place):
    pipeline = tiny()
    good = (["Fine"], options(max_new_tokens=12))
    expected = generate(pipeline, *good)
    calls = [good, good, good]
    calls[place] = (["Bad"], options(logits_processor=[Failing()]))
    results = started_during(pipeline, Gate(pipeline), calls)
    error = results.pop(1 + place)
    assert isinstance(error, KeyError) and error.args == ("mine",)
    assert results[1:] == [expected] * 2 and at_rest(pipeline)


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


def fail_once(pipeline, error, when):
    """Lets the first pass for which `when` is true fail in the middle of the layers."""
    seen = {}

    def note(module, args, kwargs):
        seen["shape"] = tuple(kwargs["input_ids"].shape)

    def fail(module, args):
        if when(seen["shape"]):
            hook.remove()
            raise error

    pipeline.model.register_forward_pre_hook(note, with_kwargs=True)
    hook = pipeline.model.model.layers[-1].register_forward_pre_hook(fail)


def test_a_pass_that_fails_costs_the_newest_call_only():
    pipeline = tiny()
    calls = [([f"Question {i}"], options(max_new_tokens=20)) for i in range(3)]
    expected = [generate(pipeline, *call) for call in calls]
    gate = Gate(pipeline)
    fail_once(pipeline, RuntimeError("no room"), lambda shape: shape == (4, 1))
    results = started_during(pipeline, gate, calls)
    assert results[1:3] == expected[:2]
    assert isinstance(results[3], RuntimeError) and at_rest(pipeline)


def test_a_prefill_that_fails_is_tried_again_one_by_one():
    pipeline = tiny()
    calls = [([f"Question {i}"], options(max_new_tokens=20)) for i in range(3)]
    expected = [generate(pipeline, *call) for call in calls]
    gate = Gate(pipeline)
    fail_once(pipeline, RuntimeError("no room"), lambda shape: shape[0] == 3 and shape[1] > 1)
    assert started_during(pipeline, gate, calls)[1:] == expected


def test_an_interrupt_in_a_pass_costs_the_newest_call_only():
    pipeline = tiny()
    calls = [([f"Question {i}"], options(max_new_tokens=20)) for i in range(3)]
    expected = [generate(pipeline, *call) for call in calls]
    gate = Gate(pipeline)
    fail_once(pipeline, KeyboardInterrupt(), lambda shape: shape == (4, 1))
    results = started_during(pipeline, gate, calls)
    assert isinstance(results[3], KeyboardInterrupt)
    assert results[1:3] == expected[:2] and at_rest(pipeline)


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


# --- the prefix cache


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
        assert prefix_cache_of(pipeline.model).tokens <= 150
    assert [w for w in gate.widths if w > 1] == [60, 60, 60, 60]  # the second a was cached
    gate.widths.clear()
    generate(pipeline, ["d" * 200], opts)
    generate(pipeline, ["d" * 200], opts)
    assert [w for w in gate.widths if w > 1] == [200, 50]


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


def once_failing(monkeypatch, owner, name, error):
    """Lets a method fail at its first call."""
    original, calls = getattr(owner, name), []

    def fail(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, name, fail)
    return calls


def test_rows_that_cannot_join_others_wait_for_them(monkeypatch):
    pipeline = tiny()
    calls = [([f"Question {i}"], options(max_new_tokens=5 * i + 5)) for i in range(4)]
    expected = [generate(pipeline, *call) for call in calls]
    failed = once_failing(monkeypatch, RowsCache, "join", RuntimeError("out of memory"))
    assert started_during(pipeline, Gate(pipeline), calls)[1:] == expected
    assert failed and at_rest(pipeline)


def test_rows_that_cannot_be_moved_end_their_calls_and_no_others(monkeypatch):
    pipeline = tiny()
    calls = [([f"Question {i}"], options(max_new_tokens=5 * i + 5)) for i in range(4)]
    expected = [generate(pipeline, *call) for call in calls]
    gate = Gate(pipeline)
    failed = once_failing(monkeypatch, RowsCache, "select", RuntimeError("no room"))
    results = started_during(pipeline, gate, calls)
    assert failed and at_rest(pipeline)
    for result, wanted in zip(results[1:], expected, strict=True):
        assert result == wanted or "no room" in str(result)
    assert any("no room" in str(result) for result in results)
    assert generate(pipeline, *calls[0]) == expected[0]  # and the next call is right


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


class Interrupting(LogitsProcessor):
    """Ctrl-C in the middle of a call's own part of a step."""

    def __init__(self):
        self.left = 3

    def __call__(self, input_ids, scores):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return scores


def test_an_interrupted_step_leaves_the_others_whole():
    pipeline = tiny()
    plain = [([f"Question {i}"], options(max_new_tokens=20)) for i in range(3)]
    expected = [generate(pipeline, *call) for call in plain]
    broken = (["Broken"], options(max_new_tokens=20, logits_processor=[Interrupting()]))
    gate = Gate(pipeline)
    results = started_during(pipeline, gate, [broken, *plain])
    assert results[2:] == expected and at_rest(pipeline)
    assert sum(isinstance(result, KeyboardInterrupt) for result in results[:2]) >= 1


def test_a_model_that_is_trained_in_place_forgets():
    pipeline, prompt, opts = tiny(), "Question " * 8, options(max_new_tokens=8)
    generate(pipeline, [prompt], opts)
    with torch.no_grad():
        for parameter in pipeline.model.parameters():
            parameter.mul_(1.5)
    plain = opts.updated({"prefix_cache": 0})
    assert generate(pipeline, [prompt], opts) == generate(pipeline, [prompt], plain)
