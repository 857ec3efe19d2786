"""Calls from inside of a call: in processors, criteria, callbacks."""

import asyncio
import threading
import time

import pytest
import torch

from langchain_llama_stop.engine.generate import generate, stream_generate
from tests.fakes.generation import model, options, tiny
from tests.fakes.threads import Calling, Gate, at_rest, in_thread

CALLS = {
    "invoke": lambda llm: llm.invoke("Hi"),
    "batch": lambda llm: llm.batch(["Hi", "Ho", "Hi"])[2],
    "stream": lambda llm: "".join(llm.stream("Hi")),
    "ainvoke": lambda llm: asyncio.run(llm.ainvoke("Hi")),
}


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


@pytest.mark.parametrize("awaited", [False, True])
def test_a_call_of_its_own_model_is_refused_awaited_or_not(awaited):
    llm = model()

    def ask():
        return asyncio.run(llm.ainvoke("Hi")) if awaited else llm.invoke("Hi")

    with pytest.raises(RuntimeError, match="from outside of its own processors"):
        llm.invoke("Hi", logits_processor=[Calling(ask)])
    assert llm.invoke("Hi") and at_rest(llm.pipeline)


def test_a_stream_that_its_own_models_processor_pulls_is_refused():
    pipeline = tiny()
    for own in (True, False):  # the processor's own stream, or one that another call has begun
        stream = stream_generate(pipeline, "Hi", options(max_new_tokens=100))
        if not own:
            next(stream)
        pulling = options(logits_processor=[Calling(lambda s=stream: next(s))])
        with pytest.raises(RuntimeError, match="from outside of its own processors"):
            generate(pipeline, ["Ho"], pulling)
        stream.close()
    assert at_rest(pipeline) and generate(pipeline, ["Hi"], options())


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raise", "cut"])
@pytest.mark.parametrize("where", ["outer", "inner"])
@pytest.mark.parametrize("awaited", [False, True])
def test_three_models_in_a_circle_end_by_their_time_outs(how, where, awaited):
    """Awaited calls block the engines' threads: none of the three could ever go on."""
    models = [model() for _ in range(3)]
    all_inside = threading.Barrier(3, timeout=20)
    limit = {"timeout": 1.0, "on_timeout": how}

    def ask(n):
        if n in fresh:
            fresh.remove(n)
            all_inside.wait()
        kwargs = limit if where == "inner" else {}
        other = models[(n + 1) % 3]
        return asyncio.run(other.ainvoke("Ho", **kwargs)) if awaited else other.invoke("Ho")

    fresh, kwargs = {0, 1, 2}, limit if where == "outer" else {}
    started = time.monotonic()
    calls = [
        in_thread(
            lambda n=n: models[n].invoke("Hi", logits_processor=[Calling(lambda: ask(n))], **kwargs)
        )
        for n in range(3)
    ]
    for thread, results in calls:
        thread.join(30)
        assert isinstance(results[0], (str, TimeoutError))
    assert time.monotonic() - started < 30
    assert all(at_rest(one.pipeline) for one in models)


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_call_inside_of_one_that_is_cancelled_ends_too(awaited):
    llm, other = model(), model(max_new_tokens=400, pipeline_kwargs={"min_new_tokens": 400})
    other.pipeline.model.register_forward_pre_hook(lambda *_: time.sleep(0.05))
    inside, passes = threading.Event(), Gate(other.pipeline).rows

    def ask():
        inside.set()
        return asyncio.run(other.ainvoke("Ho")) if awaited else other.invoke("Ho")

    task = asyncio.create_task(llm.ainvoke("Hi", logits_processor=[Calling(ask)]))
    assert await asyncio.to_thread(inside.wait, 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await asyncio.to_thread(at_rest, llm.pipeline)
    assert await asyncio.to_thread(at_rest, other.pipeline)
    assert len(passes) < 300  # it was not generated to its end
