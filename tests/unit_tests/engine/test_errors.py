"""Errors of one call: it gets them, the others get what they would get alone."""

import pytest
from transformers import LogitsProcessor

from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.engine.kv_cache import RowsCache
from tests.fakes.faults import fail_once, once_failing
from tests.fakes.generation import options, tiny
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
