"""What the engine logs: rare events once per request, and never the text of a prompt."""

import logging

import pytest
import torch

from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.engine.kv_cache import RowsCache
from tests.fakes.generation import options, streamed, tiny
from tests.fakes.threads import at_rest

PROMPTS = [f"Secret question {n}, long enough to be kept in the cache" for n in range(4)]


@pytest.fixture
def logged(caplog):
    """The messages so far, each with its level; a prompt's text is in none of them."""
    caplog.set_level(logging.DEBUG, logger="langchain_llama_stop")

    def messages():
        records = [r for r in caplog.records if r.name == "langchain_llama_stop"]
        assert not any("Secret" in r.getMessage() for r in records)
        return [(r.levelname, r.getMessage()) for r in records]

    return messages


def out_of_memory():
    return torch.OutOfMemoryError("CUDA out of memory.")


def failing_over(pipeline, rows, error=out_of_memory):
    """Lets passes over more rows fail."""

    def fail(module, args):
        if len(args[0]) > rows:
            raise error()

    return pipeline.model.model.layers[-1].mlp.register_forward_pre_hook(fail)


def test_a_prefix_that_is_reused(logged):
    pipeline = tiny()
    generate(pipeline, PROMPTS[:1], options())
    assert logged() == []
    generate(pipeline, PROMPTS[:1], options())
    generate(pipeline, [PROMPTS[0] + "!?"], options())
    count = len(PROMPTS[0])
    assert logged() == [
        ("DEBUG", f"Prefix cache: {count} of {count} prompt tokens are reused."),
        ("DEBUG", f"Prefix cache: {count} of {count + 2} prompt tokens are reused."),
    ]


def test_rows_that_wait_for_memory(logged):
    pipeline = tiny()
    hook = failing_over(pipeline, 2)
    generate(pipeline, PROMPTS, options(prefix_cache=0))
    hook.remove()
    assert logged() == [
        ("INFO", "A prefill of 4 requests failed, is tried again: OutOfMemoryError"),
        ("INFO", "Memory ran out: a request waits until at most 1 others run."),
    ]


def test_a_prefix_cache_that_is_dropped_for_memory(logged):
    pipeline = tiny()
    generate(pipeline, PROMPTS[:1], options(max_new_tokens=2, eos_reward=False))
    hook = failing_over(pipeline, 1)
    generate(pipeline, ["Hi", "Ho"], options(prefix_cache=0))
    hook.remove()
    tokens = len(PROMPTS[0]) + 1
    assert logged() == [
        ("INFO", f"Memory ran out: the prefix cache is dropped ({tokens} tokens)."),
        ("INFO", "A prefill of 2 requests failed, is tried again: OutOfMemoryError"),
        ("INFO", "Memory ran out: a request waits until at most 0 others run."),
    ]


def test_a_request_that_waits_for_room(logged, monkeypatch):
    pipeline, opts = tiny(), options(prefix_cache=0)
    expected = [streamed(pipeline, prompt, opts) for prompt in PROMPTS[:2]]
    join, calls = RowsCache.join, []

    def fail_once(self, other):
        calls.append(other)
        if len(calls) == 1:
            raise out_of_memory()
        join(self, other)

    monkeypatch.setattr(RowsCache, "join", fail_once)
    first = stream_generate(pipeline, PROMPTS[0], opts)
    chunks = [next(first)]
    assert streamed(pipeline, PROMPTS[1], opts) == expected[1]
    chunks += first
    assert ("".join(c.text for c in chunks), chunks[-1].response) == expected[0]
    assert logged() == [("INFO", "Memory ran out: a request waits until at most 0 others run.")]
    assert at_rest(pipeline)


def test_a_budget_that_the_context_window_shortens(logged):
    generate(tiny(), ["x" * 500], options())
    assert logged() == [("INFO", "The context window leaves 12 of 40 tokens for the answer.")]


def test_an_answer_that_time_cuts_is_a_warning(logged):
    pipeline = tiny()
    generate(pipeline, PROMPTS[:2], options(timeout=1e-9))
    list(stream_generate(pipeline, PROMPTS[0], options(timeout=1e-9)))
    assert logged() == [
        ("WARNING", "`timeout` ran out: 2 of 2 answers are cut."),
        ("WARNING", "`timeout` ran out: 1 of 1 answers are cut."),
    ]


def test_a_normal_call_warns_of_nothing(caplog):
    caplog.set_level(logging.WARNING)
    pipeline = tiny()
    for opts in (options(), options(temperature=1.0, seed=3), options(stop=["e"], timeout=60)):
        generate(pipeline, PROMPTS, opts)
        streamed(pipeline, PROMPTS[0], opts)
    assert caplog.records == []
