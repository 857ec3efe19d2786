"""Errors of one call: it gets them, the others get what they would get alone."""

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria

from langchain_llama_stop.engine.batch import Batch
from langchain_llama_stop.engine.forward import Logits
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.engine.kv_cache import RowsCache
from langchain_llama_stop.engine.oom import own_copy
from langchain_llama_stop.engine.prefix_cache import prefix_cache_of
from langchain_llama_stop.engine.request import Request
from langchain_llama_stop.engine.scheduler import Scheduler
from langchain_llama_stop.engine.thread import engine_of
from tests.fakes.faults import fail_once, once_failing
from tests.fakes.generation import options, recurrent, tiny
from tests.fakes.threads import Gate, at_rest, started_during


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


# --- what fails between two passes, or in the engine's own steps


PLACES = [(Logits, "of"), (RowsCache, "join"), (RowsCache, "select"), (Batch, "compact")]
PLACES += [(Scheduler, "_process_logits"), (Scheduler, "_next_group"), (Request, "advance")]


@pytest.mark.slow
@pytest.mark.parametrize("skipped", [1, 2, 5])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[1])
def test_a_step_that_fails_anywhere_leaves_nobody_waiting(monkeypatch, place, skipped):
    pipeline = tiny()
    calls = [([f"Question {i}"], options(max_new_tokens=5 * i + 5)) for i in range(3)]
    expected = [generate(pipeline, *call) for call in calls]
    gate = Gate(pipeline)
    failed = once_failing(monkeypatch, *place, RuntimeError("no room"), skipped)
    results = started_during(pipeline, gate, calls)[1:]
    assert at_rest(pipeline)
    for result, right in zip(results, expected, strict=True):
        assert result == right or "no room" in str(result)
    errors = [id(result) for result in results if isinstance(result, RuntimeError)]
    assert len(set(errors)) == len(errors)  # each caller gets its own
    if place == (Logits, "of") and len(failed) > skipped:
        assert len(errors) <= 1  # the pass can be made again without the newest request
    monkeypatch.undo()
    assert [generate(pipeline, *call) for call in calls] == expected


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), KeyboardInterrupt()])
def test_rows_that_cannot_be_moved_after_a_failed_pass_end_too(monkeypatch, error):
    pipeline = tiny()
    calls = [([f"Question {i}"], options(max_new_tokens=20)) for i in range(3)]
    expected = [generate(pipeline, *call) for call in calls]
    prefix_cache_of(pipeline.model).clear()
    gate = Gate(pipeline)
    fail_once(pipeline, error, lambda shape: shape == (4, 1))
    failed = once_failing(monkeypatch, RowsCache, "select", RuntimeError("no room"))
    results = started_during(pipeline, gate, calls)[1:]
    assert failed and at_rest(pipeline)
    for result, right in zip(results, expected, strict=True):
        assert result == right or isinstance(result, (type(error), RuntimeError))
    monkeypatch.undo()
    assert [generate(pipeline, *call) for call in calls] == expected


class TwoArguments(Exception):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.first = first


@pytest.mark.parametrize(
    "error",
    [
        KeyError("mine"),
        OSError(2, "no file", "name"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "odd"),
        TwoArguments("one", "two"),
        torch.OutOfMemoryError("CUDA out of memory"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_a_copy_of_an_error_is_like_it_and_can_be_raised_alone(error):
    with pytest.raises(type(error)):
        raise error from ValueError("the cause")
    before = error.__traceback__
    copies = [own_copy(error) for _ in "ab"]
    for copied in copies:
        with pytest.raises(type(error)) as caught:
            raise copied
        assert caught.value is copied is not error
        assert (str(copied), vars(copied), copied.args) == (str(error), vars(error), error.args)
        assert copied.__cause__ is error.__cause__ and copied.__traceback__ is not before
    assert error.__traceback__ is before


# --- memory that runs out elsewhere than in a pass


def test_memory_that_runs_out_after_another_failure_is_freed_first():
    """The prompts of a pass that failed are tried alone; the prefix cache is in the way then."""
    pipeline, prompt = tiny(), "A long prompt that is kept for the next one that begins so."
    calls = [([f"Question {i}"], options(max_new_tokens=9, prefix_cache=0)) for i in range(2)]
    expected = [generate(pipeline, *call) for call in calls]
    generate(pipeline, [prompt], options())
    cache = prefix_cache_of(pipeline.model)
    assert at_rest(pipeline) and cache.tokens
    fail_once(pipeline, ValueError("odd"), lambda shape: shape[0] == 2 and shape[1] > 1)
    refused = []

    def allocate(module, args):
        if args[0].shape[0] == 1 and cache.tokens:
            refused.append(args)
            raise MemoryError

    pipeline.model.model.layers[0].register_forward_pre_hook(allocate)
    prompts = [prompts[0] for prompts, _ in calls]
    answers = generate(pipeline, prompts, options(max_new_tokens=9, prefix_cache=0))
    assert [[answer] for answer in answers] == expected and len(refused) == 1


class Scarce(LogitsProcessor):
    """Runs out of memory at some of its calls, or while `full` says so."""

    def __init__(self, *numbers, full=lambda: False):
        self.numbers, self.full, self.calls = numbers, full, 0

    def __call__(self, input_ids, scores):
        self.calls += 1
        if self.calls in self.numbers or self.full():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return scores


class ScarceCriterion(Scarce, StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        super().__call__(input_ids, scores)
        return torch.zeros(len(input_ids), dtype=torch.bool)


KINDS = {
    "greedy": {},
    "sampled": {"temperature": 1.0, "seed": 3},
    "streamed": {"stop": ["e"]},
    "unshared": {"pipeline_kwargs": {"use_cache": False}},
}


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [*((kind, (n,)) for kind in KINDS for n in (1, 2, 5)), ("greedy", (5, 6, 7))],
)
def test_a_processor_that_runs_out_of_memory_waits_for_more(kind, numbers):
    pipeline, opts = tiny(), options(max_new_tokens=12, **KINDS[kind])
    others = [([f"Question {i}"], options(max_new_tokens=20)) for i in range(2)]
    expected = [generate(pipeline, *call) for call in [(["Mine"], opts), *others]]
    mine = opts.updated({"logits_processor": [Scarce(*numbers)]})
    results = started_during(pipeline, Gate(pipeline), [*others, (["Mine"], mine)])[1:]
    assert results == [*expected[1:], expected[0]] and at_rest(pipeline)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("own", ["processor", "criterion"])
def test_one_that_finds_no_memory_even_alone_is_told_so(kind, own):
    pipeline = tiny()
    full = {"processor": Scarce, "criterion": ScarceCriterion}[own](full=lambda: True)
    name = {"processor": "logits_processor", "criterion": "stopping_criteria"}[own]
    opts = options(max_new_tokens=12, **KINDS[kind], **{name: [full]})
    with pytest.raises(torch.OutOfMemoryError, match="one answer alone .a prompt of 4 tokens"):
        generate(pipeline, ["Mine"], opts)
    with pytest.raises(torch.OutOfMemoryError, match="one answer alone .a prompt of 4 tokens"):
        list(stream_generate(pipeline, "Mine", opts))
    assert at_rest(pipeline) and generate(pipeline, ["Mine"], options())


def test_an_error_for_lack_of_memory_tells_of_the_others():
    """A token was drawn already: to draw again would give another answer."""
    pipeline = tiny()
    opts = options(temperature=1.0, seed=1, stopping_criteria=[ScarceCriterion(3)])
    others = [([f"Question {i}"], options(max_new_tokens=20)) for i in range(2)]
    results = started_during(pipeline, Gate(pipeline), [*others, (["Mine"], opts)])
    assert "beside 3 others" in str(results[3]) and "`batch_size`" in str(results[3])


@pytest.mark.parametrize("has_states", [True, False])
@pytest.mark.parametrize("passes", [1, 2, 5, 14])
def test_requests_that_share_no_passes_start_again_alone(has_states, passes):
    """One pass fails after some layers have gone on; no answer is another one for that."""
    pipeline = recurrent() if has_states else tiny()
    kwargs = {} if has_states else {"pipeline_kwargs": {"use_cache": False}}
    calls = [([f"Question {i}"], options(max_new_tokens=9, **kwargs)) for i in range(3)]
    expected = [generate(pipeline, *call) for call in calls]
    count, running = [], []

    def allocate(module, args):
        count.append(1)
        if len(count) == passes + 1:  # the first is that of the call in whose time they come
            raise MemoryError
        running.append(engine_of(pipeline.model)._schedulers[0]._running())

    pipeline.model.model.layers[-1].register_forward_pre_hook(allocate)
    gate = Gate(pipeline)
    assert started_during(pipeline, gate, calls)[1:] == expected
    assert len(count) > passes and at_rest(pipeline)
    assert any(len(requests) > 1 for requests in running)


def test_requests_that_share_no_passes_and_have_room_for_one_take_turns():
    pipeline = recurrent()
    calls = [([f"Question {i}"], options(max_new_tokens=9)) for i in range(3)]
    expected = [generate(pipeline, *call) for call in calls]

    def allocate(module, args):
        if len(engine_of(pipeline.model)._schedulers[0]._unbatchable) > 1:
            raise MemoryError

    pipeline.model.model.layers[-1].register_forward_pre_hook(allocate)
    assert started_during(pipeline, Gate(pipeline), calls)[1:] == expected

    def never(module, args):
        raise MemoryError

    hook = pipeline.model.model.layers[-1].register_forward_pre_hook(never)
    with pytest.raises(torch.OutOfMemoryError, match="one answer alone"):
        generate(pipeline, *calls[0])
    hook.remove()
    assert at_rest(pipeline) and generate(pipeline, *calls[0]) == expected[0]
