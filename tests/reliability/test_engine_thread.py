"""The engine's thread: forks, signals, the interpreter's exit, garbage, calls from inside."""

import asyncio
import gc
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
import weakref
from contextlib import suppress

import pytest
import torch
from transformers import LogitsProcessor

from langchain_llama_stop.engine.generate import generate, stream_generate
from tests.fakes.generation import SHORT, model, options, tiny
from tests.fakes.threads import Calling, at_rest, in_thread

LONG = {"max_new_tokens": 400, "pipeline_kwargs": {"min_new_tokens": 400}}


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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("how", ENDS)
def test_the_interpreter_exits_at_once_and_without_a_word(how):
    command = [sys.executable, "-W", "error", "-c", EXIT + ENDS[how]]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (3 if how == "error" else 0, "")


LATE = """
import atexit
def late():
    for one in (pipeline, tiny()):
        for call in (lambda: generate(one, ["Hi"], opts), lambda: next(stream, None)):
            try:
                print(bool(call()))
            except RuntimeError as error:
                print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["atexit", "finalizer", "stream"])
def test_a_call_while_the_interpreter_exits_is_an_error(how):
    """After the engines have been stopped, in code that runs later."""
    begin = "stream = stream_generate(pipeline, 'Hi', opts)\n"
    if how == "stream":
        begin += "next(stream)\n"
    if how == "finalizer":
        late = "import weakref\nclass Late: pass\nkept = Late()\nweakref.finalize(kept, late)\n"
        script = LATE + late + EXIT + begin + "generate(pipeline, ['Hi'], options())"
    else:
        script = LATE + "atexit.register(late)\n" + EXIT + begin
    command = [sys.executable, "-W", "error", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    assert "it is exiting" in result.stdout


# --- a thread that cannot start


@pytest.mark.parametrize("how", CALLS)
def test_a_thread_that_cannot_start_is_an_error_and_the_next_call_works(how, monkeypatch):
    llm, start = model(), threading.Thread.start

    def full(thread):
        if thread.name == "llama-stop engine":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", full)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="could not start .can't start new thread.: end"):
            CALLS[how](llm)
    monkeypatch.undo()
    right = CALLS[how](llm)
    assert right == CALLS["invoke"](llm) and at_rest(llm.pipeline)


# --- slow readers


@pytest.mark.parametrize("cut", ["cut", "raise"])
@pytest.mark.parametrize("tokens", [8, 400])
def test_the_time_of_a_stream_runs_while_its_reader_is_slow(tokens, cut):
    """What is finished in time is given out late; what is not, ends in time."""
    pipeline, tokens_ = tiny(), {"pipeline_kwargs": {"min_new_tokens": tokens}}
    opts = options(max_new_tokens=tokens, eos_reward=False, **tokens_)
    right = generate(pipeline, ["Hi"], opts)[0]
    seconds = 2.0 if tokens == 8 else 0.5
    if tokens == 400:
        pipeline.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    late = time.monotonic() + seconds
    stream = stream_generate(pipeline, "Hi", opts.updated({"timeout": seconds, "on_timeout": cut}))
    chunks = [next(stream)]
    while time.monotonic() < late:
        time.sleep(0.05)
    assert at_rest(pipeline)  # before the reader comes back
    if tokens == 400 and cut == "raise":
        with pytest.raises(TimeoutError, match="0 of 1 answers"):
            next(stream)
        return
    chunks += stream
    response, text = chunks[-1].response, "".join(chunk.text for chunk in chunks)
    assert text == response.text and response.finish_reason == "length"
    assert (response == right) == (tokens == 8) and right.text.startswith(text[:3])


# --- garbage


class Raising(LogitsProcessor):
    def __init__(self, error):
        self.error = error

    def __call__(self, input_ids, scores):
        raise self.error("mine")


def failing(call, error):
    with suppress(KeyError, torch.OutOfMemoryError):
        call(logits_processor=[Raising(error)])


def closed(llm):
    stream = llm.stream("Hi")
    next(stream)
    stream.close()


async def aclosed(llm):
    stream = llm.astream("Hi")
    await anext(stream)
    await stream.aclose()


async def cancelled(llm):
    task = asyncio.create_task(llm.ainvoke("Hi"))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def failing_pass(llm):
    hook = llm.pipeline.model.register_forward_pre_hook(lambda *_: 1 / 0)
    with suppress(ZeroDivisionError):
        llm.invoke("Hi")
    hook.remove()


GARBAGE = {
    **CALLS,
    "closed": closed,
    "aclosed": lambda llm: asyncio.run(aclosed(llm)),
    "cancelled": lambda llm: asyncio.run(cancelled(llm)),
    "error": lambda llm: failing(lambda **kw: llm.invoke("Hi", **kw), KeyError),
    "stream's error": lambda llm: failing(lambda **kw: list(llm.stream("Hi", **kw)), KeyError),
    "no memory": lambda llm: failing(lambda **kw: llm.invoke("Hi", **kw), MemoryError),
    "pass": failing_pass,
}


@pytest.mark.parametrize("how", GARBAGE)
def test_no_call_keeps_its_model_alive_until_garbage_is_collected(how):
    llm = model(max_new_tokens=60)
    gc.collect()
    gc.disable()
    try:
        GARBAGE[how](llm)
        assert at_rest(llm.pipeline)
        alive = weakref.ref(llm.pipeline.model)
        del llm
        for _ in range(400):  # the engine's thread may be in the midst of leaving
            if alive() is None:
                break
            time.sleep(0.005)
        assert alive() is None
    finally:
        gc.enable()


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
