"""Memory runs out at any step: batches are halved, nothing is lost."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from weakref import ref

import pytest
import torch

import langchain_llama_stop.engine.kv_cache as module
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.engine.prefix_cache import prefix_cache_of
from tests.fakes.generation import options, streamed, tiny
from tests.fakes.threads import at_rest

PROMPTS = [f"Question {n}: " + "why? " * (n % 4) for n in range(12)]
ERRORS = {
    "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cpu": lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"),
    "python": lambda: MemoryError(),
}


@contextmanager
def memory_for(pipeline, rows, error=ERRORS["cuda"], columns=10**6):
    """Lets a pass over more rows or columns fail in the middle of the layers."""
    shapes, refused = [(0, 0)], []  # a pass may run already

    def note(module, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))

    def allocate(module, args):
        count, new = shapes[-1]
        if count > rows or new > columns:
            refused.append((count, new))
            raise error()

    hooks = [
        pipeline.model.register_forward_pre_hook(note, with_kwargs=True),
        pipeline.model.model.layers[-1].mlp.register_forward_pre_hook(allocate),
    ]
    try:
        yield refused
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
@pytest.mark.parametrize("kind", ERRORS)
def test_rows_wait_until_they_have_room(rows, kind):
    pipeline = tiny()
    expected = generate(pipeline, PROMPTS, options())
    with memory_for(pipeline, rows, ERRORS[kind]) as refused:
        assert generate(pipeline, PROMPTS, options()) == expected
    assert refused and at_rest(pipeline)
    assert generate(pipeline, PROMPTS, options()) == expected


def test_requests_that_share_no_passes_need_room_for_one_row():
    pipeline, opts = tiny(), options(max_new_tokens=9, pipeline_kwargs={"use_cache": False})
    expected = generate(pipeline, PROMPTS, opts)
    with memory_for(pipeline, 1) as refused:
        assert generate(pipeline, PROMPTS, opts) == expected
    assert not refused and at_rest(pipeline)
    with memory_for(pipeline, 0), pytest.raises(torch.OutOfMemoryError, match="one answer alone"):
        generate(pipeline, PROMPTS[:2], opts)
    assert generate(pipeline, PROMPTS, opts) == expected


def test_sampled_answers_with_a_seed_stay_the_same():
    pipeline, opts = tiny(), options(temperature=1.0, seed=5)
    expected = generate(pipeline, PROMPTS, opts)
    with memory_for(pipeline, 2):
        assert generate(pipeline, PROMPTS, opts) == expected


def test_one_answer_that_has_no_room_is_an_error_that_says_so():
    pipeline = tiny()
    expected = generate(pipeline, PROMPTS[:2], options())
    with memory_for(pipeline, 16, columns=20), pytest.raises(torch.OutOfMemoryError) as caught:
        generate(pipeline, [*PROMPTS[:2], "x" * 50], options(prefix_cache=0))
    assert "one answer alone (a prompt of 50 tokens and a budget of 40)" in str(caught.value)
    assert "quantization='nf4'" in str(caught.value)
    assert at_rest(pipeline) and generate(pipeline, PROMPTS[:2], options()) == expected


def test_calls_at_once_take_turns_where_they_have_no_room_together():
    pipeline = tiny()
    calls = [([prompt], options(max_new_tokens=8 + n)) for n, prompt in enumerate(PROMPTS)]
    expected = [generate(pipeline, *call) for call in calls]
    with memory_for(pipeline, 3), ThreadPoolExecutor(12) as pool:
        assert list(pool.map(lambda call: generate(pipeline, *call), calls)) == expected
    assert at_rest(pipeline)


def test_streams_wait_for_each_other_and_continue_where_they_were():
    pipeline = tiny()
    expected = [streamed(pipeline, prompt, options()) for prompt in PROMPTS[:4]]
    with memory_for(pipeline, 1), ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            found = list(pool.map(lambda p: streamed(pipeline, p, options()), PROMPTS[:4]))
            assert found == expected
    assert at_rest(pipeline)


def test_a_stream_that_has_begun_says_that_it_broke_off():
    pipeline = tiny()
    stream = stream_generate(pipeline, PROMPTS[0], options(eos_reward=False))
    while not next(stream).text:
        pass
    with memory_for(pipeline, 0), pytest.raises(torch.OutOfMemoryError, match="one answer alone"):
        list(stream)
    assert at_rest(pipeline)


@pytest.mark.parametrize("layer", [0, 1])
def test_running_rows_continue_where_others_cannot_join_them(monkeypatch, layer):
    """The joint buffers have no room: in the first layer, or once the first has been moved."""
    pipeline = tiny()
    expected = [streamed(pipeline, prompt, options()) for prompt in PROMPTS[:2]]
    real, calls = module._joined, []

    def scarce(*args):
        calls.append(args)
        if len(calls) % 2 == (layer + 1) % 2:
            raise ERRORS["cuda"]()
        return real(*args)

    monkeypatch.setattr(module, "_joined", scarce)
    first = stream_generate(pipeline, PROMPTS[0], options())
    chunks = [next(first)]
    found = streamed(pipeline, PROMPTS[1], options())
    chunks += first
    assert calls and found == expected[1]
    assert ("".join(c.text for c in chunks), chunks[-1].response) == expected[0]
    assert at_rest(pipeline)


@pytest.mark.parametrize("when", [1, 2])
def test_no_memory_even_to_move_rows(monkeypatch, when):
    """In the first layer, or once it has been moved: finished rows stay where they are."""
    pipeline = tiny()
    calls = [([prompt], options(max_new_tokens=8 + n)) for n, prompt in enumerate(PROMPTS[:6])]
    expected = [generate(pipeline, *call) for call in calls]
    real, seen = module._selected, []

    def scarce(*args):
        seen.append(args)
        if len(seen) % 2 == when % 2:
            raise ERRORS["cuda"]()
        return real(*args)

    def answered(call):
        try:
            return generate(pipeline, *call)
        except torch.OutOfMemoryError:
            return None

    monkeypatch.setattr(module, "_selected", scarce)
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(answered, calls)) == expected and at_rest(pipeline)
    assert seen
    # Nor for the rows themselves: a call may find no room then, but none gets a wrong answer.
    with memory_for(pipeline, 3), ThreadPoolExecutor(6) as pool:
        found = list(pool.map(answered, calls))
    assert all(one in (None, wanted) for one, wanted in zip(found, expected, strict=True))
    assert at_rest(pipeline)
    monkeypatch.undo()
    assert [generate(pipeline, *call) for call in calls] == expected


def test_a_common_prefix_is_not_computed_again_and_again():
    pipeline = tiny()
    prompts = [f"You are a helpful assistant; context follows here. Q{n}" for n in range(4)]
    expected = generate(pipeline, prompts, options())
    fresh = tiny()
    with memory_for(fresh, 2) as refused:
        assert generate(fresh, prompts, options(timeout=20, on_timeout="raise")) == expected
    assert 1 <= len(refused) <= 4


def test_each_request_of_a_call_that_has_no_room_is_tried_again():
    """Also one whose last pass was run by another call, or for the call's other request."""
    pipeline = tiny()
    settings = {"eos_reward": False, "batch_size": 4, "stop": ["a", "e", "o"]}
    prompts = [f"{word}?" for word in ("a", "b", "c", "d", "e", "f", "g", "h", "i")]
    for rows in (1, 2, 3):
        expected = generate(pipeline, prompts, options(**settings))
        with memory_for(pipeline, rows), ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(generate, pipeline, prompts, options(**settings)) for _ in "abc"]
            assert [call.result() for call in calls] == [expected] * 3
    assert at_rest(pipeline)


def test_what_a_failed_pass_held_is_freed_before_the_next_try():
    pipeline, alive, held = tiny(), [], []

    def allocate(module, args):
        states = args[0].clone()  # lives as long as the frames of this pass
        if states.shape[0] > 2:
            held.append(ref(states))
            raise ERRORS["cuda"]()
        alive.append(sum(tensor() is not None for tensor in held))

    hook = pipeline.model.model.layers[-1].mlp.register_forward_pre_hook(allocate)
    generate(pipeline, PROMPTS[:8], options())
    hook.remove()
    assert held and not any(alive)


def test_the_prefix_cache_is_freed_first():
    """The prefix cache fills the memory: without it the same batch fits."""
    pipeline = tiny()
    prompt = "A long prompt that is kept for the next one that begins the same way."
    generate(pipeline, [prompt], options())
    cache = prefix_cache_of(pipeline.model)
    assert at_rest(pipeline) and cache.tokens
    expected = generate(tiny(), ["Hi", "Ho"], options(prefix_cache=0))
    refused = []

    def allocate(module, args):
        if cache.tokens:
            refused.append(len(args[0]))
            raise ERRORS["cuda"]()

    hook = pipeline.model.model.layers[-1].mlp.register_forward_pre_hook(allocate)
    assert generate(pipeline, ["Hi", "Ho"], options(prefix_cache=0)) == expected
    hook.remove()
    assert refused == [2] and not cache.tokens  # once, and both ran together
