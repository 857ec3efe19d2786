"""The engine's thread: forks, signals, the interpreter's exit, garbage, calls from inside."""

import asyncio
import gc
import multiprocessing
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from transformers import LogitsProcessor

from langchain_llama_stop import LlamaStopLLM
from langchain_llama_stop.engine.generate import generate, stream_generate
from tests.fakes.generation import options, tiny
from tests.fakes.threads import Gate, at_rest

SHORT = {"max_new_tokens": 8, "eos_reward": False}
LONG = {"max_new_tokens": 400, "pipeline_kwargs": {"min_new_tokens": 400}}


class Calling(LogitsProcessor):
    """A processor that calls a function at each step and changes nothing."""

    def __init__(self, call):
        self.call = call

    def __call__(self, input_ids, scores):
        self.call()
        return scores


def model(pipeline=None, **kwargs):
    return LlamaStopLLM(pipeline=pipeline or tiny(), temperature=0, **{**SHORT, **kwargs})


def in_thread(call):
    """Starts a call in a thread; its result comes to the list that is returned."""
    results = []

    def run():
        try:
            results.append(call())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, results


def engine_threads():
    return {thread for thread in threading.enumerate() if thread.name == "llama-stop engine"}


# --- forks


def in_child(call):
    """What a call returns in a forked child; "hangs" after 20 seconds."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()

    def run():
        try:
            results.put(call())
        except BaseException as error:
            results.put(repr(error))

    child = context.Process(target=run)
    child.start()
    child.join(20)
    if child.is_alive():
        child.kill()
        return "hangs"
    return results.get()


CALLS = {
    "invoke": lambda llm: llm.invoke("Hi"),
    "batch": lambda llm: llm.batch(["Hi", "Ho", "Hi"])[2],
    "stream": lambda llm: "".join(llm.stream("Hi")),
    "ainvoke": lambda llm: asyncio.run(llm.ainvoke("Hi")),
}


@pytest.mark.parametrize("how", CALLS)
def test_a_child_answers_after_the_parent_has(how):
    llm = model()
    right = [call(llm) for call in CALLS.values()]
    assert set(right) == {right[0]}
    assert in_child(lambda: CALLS[how](llm)) == right[0]
    assert in_child(lambda: in_child(lambda: CALLS[how](llm))) == right[0]
    assert CALLS[how](llm) == right[0]


@pytest.mark.parametrize("how", CALLS)
@pytest.mark.parametrize("where", ["pass", "processor", "decode"])
def test_a_child_answers_while_the_parent_is_busy(how, where):
    llm = model()
    right, (held, go) = llm.invoke("Hi"), (threading.Event(), threading.Event())

    def hold():
        held.set()
        go.wait(30)

    extra = {}
    if where == "pass":
        llm.pipeline.model.register_forward_pre_hook(
            lambda *_: hold() if threading.current_thread().name == "llama-stop engine" else None
        )
        go.set()
    elif where == "processor":
        extra = {"logits_processor": [Calling(hold)]}
    else:
        extra = LONG
    thread, results = in_thread(lambda: llm.invoke("Other", timeout=20, **extra))
    held.wait(1)
    assert in_child(lambda: CALLS[how](llm)) == right
    go.set()
    thread.join(30)
    assert isinstance(results[0], str)


def test_an_answer_of_the_parent_is_refused_in_a_child():
    stream = model(max_new_tokens=200).stream("Hi")
    next(stream)
    assert "in the process that asked for it" in in_child(lambda: "".join(stream))
    assert "".join(stream)


# --- signals


class TimeIsUp(Exception):
    pass


@pytest.mark.parametrize("how", ["invoke", "batch", "stream"])
def test_a_signal_ends_its_own_call_and_no_other(how):
    llm = model(max_new_tokens=60)
    right = llm.invoke("Other")
    llm.pipeline.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    thread, results = in_thread(lambda: llm.invoke("Other"))

    def handler(*_):
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.15)
        with pytest.raises(TimeIsUp):
            CALLS[how](llm.bind(**LONG))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    thread.join(30)
    assert results == [right] and at_rest(llm.pipeline)


# --- the interpreter's exit


EXIT = """
import threading, torch
torch.set_num_threads(1)
from langchain_llama_stop.engine.generate import generate, stream_generate
from tests.fakes.generation import options, tiny
pipeline = tiny()
opts = options(max_new_tokens=400, eos_reward=False, pipeline_kwargs={"min_new_tokens": 400})
"""
ENDS = {
    "idle": "generate(pipeline, ['Hi'], options())",
    "live stream": "stream = stream_generate(pipeline, 'Hi', opts); next(stream)",
    "daemon thread": "threading.Thread(target=generate, args=(pipeline, ['Hi'], opts), "
    "daemon=True).start(); next(stream_generate(pipeline, 'Hi', options()))",
    "error": "stream = stream_generate(pipeline, 'Hi', opts); next(stream); raise SystemExit(3)",
}


@pytest.mark.parametrize("how", ENDS)
def test_the_interpreter_exits_at_once_and_without_a_word(how):
    command = [sys.executable, "-W", "error", "-c", EXIT + ENDS[how]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (3 if how == "error" else 0, "")


# --- garbage


def test_the_thread_ends_with_the_model():
    before, pipeline = engine_threads(), tiny()
    generate(pipeline, ["Hi"], options())
    (thread,) = engine_threads() - before
    del pipeline
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_streams_that_are_garbage_leave():
    pipeline = tiny()
    right = generate(pipeline, ["Hi"], options(**SHORT))
    for _ in range(20):
        stream = stream_generate(pipeline, "Hi", options(max_new_tokens=400, eos_reward=False))
        next(stream)
        cycle = [stream]
        cycle.append(cycle)
        del stream, cycle
    gc.collect()
    assert at_rest(pipeline)
    assert generate(pipeline, ["Hi"], options(**SHORT)) == right


# --- calls from inside


@pytest.mark.parametrize("how", CALLS)
def test_a_processor_may_call_another_model(how):
    llm, other = model(), model()
    answers = []
    asking = Calling(lambda: answers.append(CALLS[how](other)))
    if how == "ainvoke":
        asking = Calling(
            lambda: answers.append(in_thread_and_back(lambda: asyncio.run(other.ainvoke("Hi"))))
        )
    assert llm.invoke("Hi", logits_processor=[asking]) == llm.invoke("Hi")
    assert set(answers) == {other.invoke("Hi")}


def in_thread_and_back(call):
    thread, results = in_thread(call)
    thread.join(20)
    return results[0]


def test_two_models_whose_processors_call_each_other():
    """Each engine waits for the other's, again and again, and serves it meanwhile."""
    one, two = model(), model()
    right = [one.invoke("Hi"), two.invoke("Hi")]
    both = threading.Barrier(2, timeout=20)

    def ask(other):
        both.wait()  # both engines are inside of a processor
        other.invoke("Ho", max_new_tokens=3)

    threads = [
        in_thread(lambda a=a, b=b: a.invoke("Hi", logits_processor=[Calling(lambda: ask(b))]))
        for a, b in ((one, two), (two, one))
    ]
    for thread, _ in threads:
        thread.join(60)
    assert [results for _, results in threads] == [[right[0]], [right[1]]]
    assert at_rest(one.pipeline) and at_rest(two.pipeline)


def test_a_processor_that_calls_its_own_model_by_way_of_another_is_refused():
    one, two = model(), model()
    back = Calling(lambda: one.invoke("Hi"))
    asking = Calling(lambda: two.invoke("Hi", logits_processor=[back]))
    with pytest.raises(RuntimeError, match="from outside of its own processors"):
        one.invoke("Hi", logits_processor=[asking])
    assert one.invoke("Hi") and at_rest(one.pipeline) and at_rest(two.pipeline)


def test_a_callback_may_call_the_model():
    llm = model()
    right = llm.invoke("Ho")
    texts = [llm.invoke("Ho") for _ in llm.stream("Hi")]
    assert set(texts) == {right}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_an_interrupt_in_a_processor_reaches_its_own_caller(error):
    llm = model()
    right = llm.invoke("Other", max_new_tokens=40)
    gate = Gate(llm.pipeline)
    thread, results = in_thread(lambda: llm.invoke("Other", max_new_tokens=40))

    def fail():
        raise error

    with pytest.raises(error):
        generate(llm.pipeline, ["Hi"], options(logits_processor=[Calling(fail)]))
    thread.join(20)
    assert results == [right] and gate.rows and at_rest(llm.pipeline)


def test_a_caller_keeps_its_own_modes():
    """The engine computes in inference mode on its thread; the caller's stays as it is."""
    llm = model()
    right = llm.invoke("Hi")
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            inside = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
            assert llm.invoke("Hi") == right
            assert inside == (torch.is_inference_mode_enabled(), torch.is_grad_enabled())
