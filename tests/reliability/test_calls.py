"""Calls whose time runs out, and too many calls: what is finished is returned, nothing hangs."""

import asyncio
import gc
import threading
import time
from contextlib import suppress

import pytest
import torch
from langchain_core.caches import InMemoryCache

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM, ModelBusyError
from langchain_llama_stop.engine.generate import generate, stream_generate
from tests.fakes.generation import options, streamed, tiny
from tests.fakes.threads import Gate, at_rest

LONG = {
    "eos_reward": False,
    "max_new_tokens": 200,
    "pipeline_kwargs": {"min_new_tokens": 200},
}


def slowed(pipeline, seconds=0.02):
    pipeline.model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    return pipeline


def test_an_answer_that_takes_too_long_is_cut():
    pipeline = tiny()
    (whole,) = generate(pipeline, ["Hi"], options(**LONG))
    slowed(pipeline)
    (cut,) = generate(pipeline, ["Hi"], options(**LONG, timeout=0.8))
    assert cut.finish_reason == "length" and cut.eos_source is None
    assert 0 < len(cut.token_ids) < len(whole.token_ids)
    assert whole.text.startswith(cut.text) and at_rest(pipeline)


def test_what_is_finished_is_returned_whole():
    pipeline = tiny()
    (plain,) = generate(pipeline, ["Hi"], options(**LONG))
    stop = {**LONG, "stop": [plain.text[4:6]]}  # the other prompts' answers may hold it as well
    prompts = ["Hi", "Ho", "Ha ha", "Hu hu hu"]
    expected = generate(pipeline, prompts, options(**stop))
    slowed(pipeline)
    found = generate(pipeline, prompts, options(**stop, timeout=1.2))
    assert found[0] == expected[0] and found[0].finish_reason == "stop"
    for one, other in zip(found, expected, strict=True):
        cut = one.finish_reason == "length" and (other.text + stop["stop"][0]).startswith(one.text)
        assert one == other or cut


def test_a_stream_that_takes_too_long_is_cut():
    pipeline = tiny()
    (whole,) = generate(pipeline, ["Hi"], options(**LONG))
    slowed(pipeline)
    text, response = streamed(pipeline, "Hi", options(**LONG, timeout=0.8))
    assert text == response.text and whole.text.startswith(text)
    assert response.finish_reason == "length" and at_rest(pipeline)


@pytest.mark.parametrize(
    "path", [generate, lambda *args: list(stream_generate(args[0], "Hi", args[2]))]
)
def test_or_it_is_an_error(path):
    pipeline = slowed(tiny())
    with pytest.raises(
        TimeoutError, match=r"`timeout` \(0.2 seconds\) ran out with 0 of 1 answers"
    ):
        path(pipeline, ["Hi"], options(**LONG, timeout=0.2, on_timeout="raise"))
    assert at_rest(pipeline)
    assert generate(pipeline, ["Hi"], options(max_new_tokens=3, timeout=30, on_timeout="raise"))


def test_an_answer_that_is_in_time_is_as_without_a_timeout():
    pipeline = tiny()
    prompts = ["Hi", "Ho ho", "Hey hey hey"]
    expected = generate(pipeline, prompts, options())
    assert generate(pipeline, prompts, options(timeout=60, on_timeout="raise")) == expected


def test_a_call_that_waits_for_others_is_let_go():
    """The model is held by another call, in the middle of a pass."""
    pipeline = tiny()
    gate = Gate(pipeline)
    gate.open.clear()
    other = threading.Thread(target=generate, args=(pipeline, ["A"], options()))
    other.start()
    assert gate.waits.wait(30)
    waiting = threading.Thread(target=gate.open.set)
    begun = time.monotonic()
    (cut,) = generate(pipeline, ["B"], options(timeout=0.2))
    assert time.monotonic() - begun < 10
    assert cut.text == "" and cut.finish_reason == "length" and cut.token_ids == ()
    with pytest.raises(TimeoutError):
        generate(pipeline, ["B"], options(timeout=0.2, on_timeout="raise"))
    waiting.start()
    other.join(30)
    waiting.join(30)
    assert not other.is_alive() and at_rest(pipeline)


def test_a_cut_answer_is_cut_whatever_criteria_there_are():
    pipeline = slowed(tiny())
    never = [lambda ids, scores: torch.zeros(len(ids), dtype=torch.bool)]
    opts = options(**LONG, timeout=0.2, stopping_criteria=never)
    assert generate(pipeline, ["Hi"], opts)[0].finish_reason == "length"


def test_a_cut_answer_of_the_cache_is_not_one_that_raises():
    cache = InMemoryCache()
    llm = LlamaStopLLM(pipeline=slowed(tiny()), **LONG, temperature=0, timeout=0.2, cache=cache)
    llm.invoke("Hi")
    with pytest.raises(TimeoutError):
        llm.model_copy(update={"on_timeout": "raise"}).invoke("Hi")
    strict = LlamaStopLLM(
        pipeline=llm.pipeline, **LONG, temperature=0, timeout=0.2, on_timeout="raise", cache=cache
    )
    with pytest.raises(TimeoutError):
        strict.invoke("Hi")


def test_streams_that_are_collected_while_one_is_refused():
    """The collector closes them during the refusal, in the same thread."""
    pipeline, opts = tiny(), options(max_calls=1)

    def refuse():
        for _ in range(200):
            cycle = {}
            cycle["stream"] = stream_generate(pipeline, "Hi", opts)
            cycle["self"] = cycle
            try:
                next(cycle["stream"])
            except ModelBusyError:
                pass
            del cycle
            with suppress(ModelBusyError):
                generate(pipeline, ["Hi"], options(max_calls=1, max_new_tokens=1))

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive()
    finally:
        gc.set_threshold(*before)


def test_one_call_too_many_is_refused():
    pipeline = tiny()
    few = options(max_calls=2)
    expected = generate(pipeline, ["Hi"], few)
    streams = [stream_generate(pipeline, "Hi", few) for _ in range(2)]
    for stream in streams:
        next(stream)
    for _ in range(2):
        with pytest.raises(ModelBusyError, match="`max_calls` allows 2 calls at one model"):
            generate(pipeline, ["Hi"], few)
        with pytest.raises(ModelBusyError):
            next(stream_generate(pipeline, "Hi", few))
    assert generate(pipeline, ["Hi"], options(max_calls=3)) == expected
    streams.pop().close()
    assert generate(pipeline, ["Hi"], few) == expected
    list(streams.pop())
    assert generate(pipeline, ["Hi"], options(max_calls=1)) == expected and at_rest(pipeline)


async def test_awaited_calls_too_many_are_refused_and_the_others_right():
    llm = LlamaStopLLM(pipeline=tiny(), max_new_tokens=12, temperature=0, max_calls=20)
    expected = llm.invoke("Hi")
    results = await asyncio.gather(*(llm.ainvoke("Hi") for _ in range(100)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, ModelBusyError)]
    assert 0 < len(refused) <= 80 and at_rest(llm.pipeline)
    assert all(result == expected for result in results if not isinstance(result, Exception))
    assert await llm.ainvoke("Hi") == expected


def test_the_options_of_both_classes(monkeypatch):
    pipeline = slowed(tiny())
    llm = LlamaStopLLM(pipeline=pipeline, **LONG, temperature=0, timeout=0.2)
    info = llm.generate(["Hi"]).generations[0][0].generation_info
    assert info["finish_reason"] == "length"
    with pytest.raises(TimeoutError):
        llm.invoke("Hi", on_timeout="raise")
    monkeypatch.setattr(pipeline.tokenizer, "chat_template", "{{ messages[-1]['content'] }}")
    chat = ChatLlamaStop(pipeline=pipeline, **LONG, temperature=0, timeout=0.2)
    assert chat.invoke("Hi").response_metadata["finish_reason"] == "length"
    with pytest.raises(TimeoutError):
        list(chat.bind(on_timeout="raise").stream("Hi"))
    with pytest.raises(ValueError, match="`on_timeout` has to be one of 'cut', 'raise'"):
        chat.invoke("Hi", on_timeout="stop")
    with pytest.raises(ValueError, match="`max_calls` has to be a whole number of 1 or more"):
        LlamaStopLLM(pipeline=pipeline, max_calls=0)
