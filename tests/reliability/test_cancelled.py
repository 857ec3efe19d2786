"""Awaited calls that are cancelled leave the model at once, and nobody else notices."""

import asyncio
import threading

import pytest
from transformers import LogitsProcessor

from langchain_llama_stop import LlamaStopLLM
from tests.fakes.generation import tiny
from tests.fakes.threads import Gate, at_rest, wait_for


def model(**options):
    return LlamaStopLLM(
        pipeline=tiny(), max_new_tokens=200, temperature=0, eos_reward=False, **options
    )


async def until(holds):
    for _ in range(3000):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never holds")


async def cancelled(task):
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def fourth(rows):
    """When a gate shuts: however busy the machine is, the answer is not finished then."""
    return len(rows) == 4


async def held_in_a_pass(gate):
    """Waits until the model is in a pass; returns how many there were, this one included."""
    await until(gate.waits.is_set)
    gate.waits.clear()
    return len(gate.rows)


async def test_a_call_that_leads_stops_within_a_step():
    llm = model()
    gate = Gate(llm.pipeline, fourth)
    task = asyncio.create_task(llm.ainvoke("Hi"))
    passes = await held_in_a_pass(gate)
    await cancelled(task)
    gate.open.set()
    await until(lambda: at_rest(llm.pipeline))
    assert len(gate.rows) == passes


@pytest.mark.parametrize("how", ["astream", "aclose"])
async def test_an_awaited_stream_stops_too(how):
    """Also while its text is held back, so that nothing comes out of it."""
    llm = model(on_length="trim")
    gate = Gate(llm.pipeline, fourth)
    stream = llm.astream("Hi")

    async def consumed():
        async for _ in stream:
            pass

    task = asyncio.create_task(consumed())
    passes = await held_in_a_pass(gate)
    await cancelled(task)
    if how == "aclose":
        await stream.aclose()
    gate.open.set()
    await until(lambda: at_rest(llm.pipeline))
    assert len(gate.rows) == passes


async def test_a_cancelled_call_takes_no_other_with_it_that_it_leads():
    """Another call's processor asks a second model, in the thread of the one that leads."""
    llm, second = model(), model()
    gate = Gate(llm.pipeline, fourth)

    class Asking(LogitsProcessor):
        def __call__(self, input_ids, scores):
            second.invoke("Hi", max_new_tokens=2)
            return scores

    leads = asyncio.create_task(llm.ainvoke("One"))
    await held_in_a_pass(gate)
    other = asyncio.create_task(llm.ainvoke("Two", max_new_tokens=20, logits_processor=[Asking()]))
    await asyncio.to_thread(wait_for, llm.pipeline, 1)
    gate.shut = lambda rows: rows[-2:] == [2, 2]  # the other has asked once by then
    gate.open.set()
    await held_in_a_pass(gate)
    await cancelled(leads)
    gate.open.set()
    assert await other == llm.invoke("Two", max_new_tokens=20)


async def test_a_call_that_waits_is_never_prefilled():
    llm = model()
    gate = Gate(llm.pipeline)
    gate.open.clear()
    first = asyncio.create_task(llm.ainvoke("One", max_new_tokens=20))
    await until(gate.waits.is_set)
    second = asyncio.create_task(llm.ainvoke("Two", max_new_tokens=20))
    await asyncio.to_thread(wait_for, llm.pipeline, 1)
    await cancelled(second)
    gate.open.set()
    assert await first == llm.invoke("One", max_new_tokens=20)
    assert max(gate.rows) == 1 and at_rest(llm.pipeline)


@pytest.mark.parametrize("who", [0, 1, 2])
async def test_those_beside_it_get_what_they_would_have_got(who):
    llm = model(prefix_cache=0)
    prompts = ["One", "Two two", "Three three three"]
    expected = [llm.invoke(prompt, max_new_tokens=60) for prompt in prompts]
    gate = Gate(llm.pipeline, lambda rows: rows[-1] == 3)
    tasks = [asyncio.create_task(llm.ainvoke(prompt, max_new_tokens=60)) for prompt in prompts]
    await held_in_a_pass(gate)
    await cancelled(tasks.pop(who))
    gate.open.set()
    expected.pop(who)
    assert await asyncio.gather(*tasks) == expected
    await until(lambda: at_rest(llm.pipeline))


async def test_all_requests_of_a_batch_leave():
    llm = model(batch_size=2)
    gate = Gate(llm.pipeline, fourth)
    task = asyncio.create_task(llm.agenerate([f"Prompt {n}" for n in range(9)]))
    await held_in_a_pass(gate)
    await cancelled(task)
    gate.open.set()
    await until(lambda: at_rest(llm.pipeline))
    passes = len(gate.rows)
    assert llm.invoke("Hi", max_new_tokens=3) is not None
    assert len(gate.rows) <= passes + 3


async def test_time_outs_of_asyncio_and_many_at_once():
    llm = model()
    expected = llm.invoke("Fine", max_new_tokens=12)
    before = threading.active_count()
    for _ in range(5):
        calls = [
            asyncio.wait_for(llm.ainvoke(f"Prompt {n}"), timeout=0.05 + n / 1000) for n in range(24)
        ]
        results = await asyncio.gather(
            *calls, llm.ainvoke("Fine", max_new_tokens=12), return_exceptions=True
        )
        assert results[-1] == expected
        assert any(isinstance(result, TimeoutError) for result in results)
        await until(lambda: at_rest(llm.pipeline))
    assert threading.active_count() <= before + 64  # the pool's
