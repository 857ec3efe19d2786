"""ChatLlamaStopServer on a real server gives what ChatLlamaStop gives in process."""

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelConnectionError,
    ModelInvalidRequestError,
    ModelNotFoundError,
)
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

from langchain_llama_stop import ChatLlamaStopServer, EosReward
from langchain_llama_stop.ending.boundaries import may_end

from .conftest import QUESTIONS


@tool
def magic(number: int) -> int:
    """Does magic."""
    return number


def mostly_equal(results, expected):
    """Whether all but one are equal: kernels of two engines may round a tie differently."""
    return sum(a == b for a, b in zip(results, expected, strict=True)) >= len(expected) - 1


@pytest.mark.parametrize("budget", [32, 64])
def test_the_same_answers_as_in_process(chat, local, budget):
    ours = [local.invoke(question, max_tokens=budget) for question in QUESTIONS]
    theirs = [chat.invoke(question, max_tokens=budget) for question in QUESTIONS]
    assert mostly_equal([a.content for a in theirs], [a.content for a in ours])
    names = ("input_tokens", "output_tokens", "total_tokens")
    counts = [[{n: a.usage_metadata[n] for n in names} for a in group] for group in (theirs, ours)]
    assert mostly_equal(*counts)
    for mine, other in zip(ours, theirs, strict=True):
        assert other.response_metadata["finish_reason"] == "stop"
        assert other.response_metadata["stop_reason"] is None
        assert other.response_metadata["model_name"] == "demo"
        source = other.response_metadata["eos_source"]
        assert source is None or source == mine.response_metadata["eos_source"]
    assert sum(may_end(a.content) for a in theirs) >= len(theirs) - 1


def test_an_answer_that_the_model_ends_says_so(chat):
    answer = chat.invoke("What is a prime number?", max_tokens=256)
    assert answer.response_metadata["eos_source"] == "model"


@pytest.mark.parametrize(
    "options",
    [
        {"eos_reward": False},
        {"eos_reward": EosReward(boundary="line", strength=5.0, hindsight=False)},
        {"eos_reward": EosReward(force_eos=False, close_sentence=False, hindsight=False)},
        {"stop": [" and"]},
        {"stop_token_ids": [28]},
        {"answer_hint": "Answer in {sentences} sentences or fewer."},
        {"repetition_penalty": 1.2},
        {"grammar": 'start: "Yes." | "No."'},
    ],
    ids=lambda options: next(iter(options)),
)
def test_each_option_does_what_it_does_in_process(chat, local, options):
    ours = [local.invoke(question, **options) for question in QUESTIONS[:3]]
    theirs = [chat.invoke(question, **options) for question in QUESTIONS[:3]]
    assert mostly_equal([a.content for a in theirs], [a.content for a in ours])
    for name in ("finish_reason", "stop_reason"):
        facts = [[a.response_metadata[name] for a in group] for group in (theirs, ours)]
        assert mostly_equal(*facts), name


def test_sampling_options_reach_the_server(chat):
    sampled = chat.bind(temperature=1.5, seed=7)
    assert sampled.invoke(QUESTIONS[0]).content == sampled.invoke(QUESTIONS[0]).content
    assert sampled.invoke(QUESTIONS[0]).content != chat.invoke(QUESTIONS[0]).content
    narrow = chat.bind(temperature=1.5, seed=7, top_k=1)
    assert narrow.invoke(QUESTIONS[0]).content == chat.invoke(QUESTIONS[0]).content


@pytest.mark.parametrize("tools", [None, [magic]])
def test_the_same_prompt_as_in_process(chat, local, tools):
    call = {"name": "magic", "args": {"number": 3}, "id": "1"}
    talk = [
        SystemMessage("Be brief."),
        HumanMessage("Hi."),
        HumanMessage("Use magic."),
        AIMessage("Well.", tool_calls=[call]),
        ToolMessage("5", tool_call_id="1", name="magic"),
        HumanMessage("And now?"),
    ]
    for messages in (talk, talk[1:], talk[:2], talk[:5]):
        count = chat.get_num_tokens_from_messages(messages, tools=tools)
        assert count == local.get_num_tokens_from_messages(messages, tools=tools)
    assert chat.get_token_ids("A lamp.") == local.get_token_ids("A lamp.")


def test_a_begun_answer_continues(chat, local):
    begun = [HumanMessage("Name a river in France."), AIMessage("A river in France is")]
    wanted = local.invoke(begun, continue_final_message=True).content
    assert chat.invoke(begun, continue_final_message=True).content == wanted


async def test_options_of_one_batch_do_not_mix(chat):
    kinds = [{"max_tokens": 32}, {"max_tokens": 48, "eos_reward": False}, {"stop": ["."]}]
    asked = [(q, kinds[n % 3]) for n, q in enumerate(QUESTIONS * 3)]
    together = await asyncio.gather(*(chat.ainvoke(q, **options) for q, options in asked))
    alone = [await chat.ainvoke(q, **options) for q, options in asked]
    for (_, options), one, other in zip(asked, together, alone, strict=True):
        assert one.content == other.content
        reason = one.response_metadata["finish_reason"]
        cut = "eos_reward" in options and one.usage_metadata["output_tokens"] == 48
        assert reason == ("length" if cut else "stop")


async def test_64_streams_at_once(chat):
    asked = [f"{question} ({n})" for n in range(11) for question in QUESTIONS][:64]

    async def streamed(question):
        pieces = [piece async for piece in chat.astream(question)]
        whole = pieces[0]
        for piece in pieces[1:]:
            whole += piece
        return whole

    together = await asyncio.gather(*map(streamed, asked))
    alone = [await chat.ainvoke(question) for question in asked[:6]]
    assert mostly_equal([a.content for a in together[:6]], [a.content for a in alone])
    assert all(a.response_metadata["finish_reason"] == "stop" for a in together)
    assert sum(may_end(a.content) for a in together) >= 60
    assert all(a.usage_metadata["output_tokens"] <= 32 for a in together)


def test_refusals(chat):
    for xargs, message in (
        ({"eos_reward_strngth": 2}, "has no option 'eos_reward_strngth'. Known: eos_reward"),
        ({"eos_reward_start": 1.5}, "`start` has to be between 0 and 1"),
    ):
        # By hand, for the client would refuse it itself.
        asked = {"model": "demo", "messages": [{"role": "user", "content": "Hi"}]}
        for stream in (False, True):
            body = {**asked, "vllm_xargs": xargs, "stream": stream}
            answer = httpx2.post(f"{chat.base_urls[0]}/v1/chat/completions", json=body)
            assert message in answer.text and '"code":400' in answer.text.replace(" ", "")
        with pytest.raises(ValueError, match="`extra_body` may hold no 'eos_reward'"):
            chat.invoke("Hi", extra_body={"vllm_xargs": xargs})
    with pytest.raises(ModelInvalidRequestError, match="min_p must be"):
        chat.invoke("Hi", extra_body={"min_p": 3.0})
    with pytest.raises(ModelInvalidRequestError, match="min_p must be"):
        next(chat.stream("Hi", extra_body={"min_p": 3.0}))
    with pytest.raises(ContextOverflowError, match="maximum context length is 2048"):
        chat.invoke("word " * 3000)
    with pytest.raises(ContextOverflowError, match="maximum context length is 2048"):
        next(chat.stream("word " * 3000))
    other = ChatLlamaStopServer(model="other", base_url=chat.base_urls[0])
    with pytest.raises(ModelNotFoundError, match="model `other` does not exist"):
        other.invoke("Hi")


def test_the_example(server):
    script = Path(__file__).parents[3] / "examples" / "vllm_server.py"
    command = [sys.executable, str(script), "demo", server.url]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.count("[stop, ") == 3 and out.count("[length, 64 tokens]") == 1
    assert out.rpartition("tokens]\n\n")[2].strip()


def running(server):
    """How many requests the server is running."""
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith("vllm:num_requests_running{"))


def test_a_closed_stream_ends_the_servers_work(chat, server):
    streams = [chat.stream(QUESTIONS[3], max_tokens=1500, eos_reward=False) for _ in range(3)]
    assert all(next(stream) is not None for stream in streams)
    assert running(server) == 3
    for stream in streams:
        stream.close()
    for _ in range(100):  # far less time than 1,500 tokens take
        if running(server) == 0:
            return
        time.sleep(0.05)
    raise AssertionError("the server continues")


def test_a_cut_call_is_no_call(chat):
    """LangChain would complete it, and an agent would make it: cents=42 of 4222."""
    tools = chat.bind_tools([magic], tool_choice="magic")
    for budget in (6, 9, 12):
        answer = tools.invoke("Do magic with the number 341142.", max_tokens=budget)
        whole = None
        for piece in tools.stream("Do magic with the number 341142.", max_tokens=budget):
            whole = piece if whole is None else whole + piece
        for message in (answer, whole):
            assert message.tool_calls == [] and message.invalid_tool_calls
            assert message.response_metadata["finish_reason"] == "length"


def test_a_killed_server_is_an_error_and_a_new_one_serves(start_server, chat):
    with start_server() as server:
        mine = ChatLlamaStopServer(model="demo", base_url=server.url, temperature=0, max_retries=1)
        begun = time.monotonic()
        with pytest.raises(ModelConnectionError, match="No whole answer from http://127.0.0.1"):
            for count, _ in enumerate(mine.stream(QUESTIONS[3], max_tokens=1500, eos_reward=False)):
                if count == 5:
                    server.kill()
                    begun = time.monotonic()
        assert time.monotonic() - begun < 10
        with pytest.raises(ModelConnectionError, match="Is the server running?"):
            mine.invoke(QUESTIONS[0])
        # Another server of a list takes over.
        both = ChatLlamaStopServer(
            model="demo", base_url=[server.url, chat.base_urls[0]], temperature=0, max_tokens=32
        )
        assert both.invoke(QUESTIONS[0]).content == chat.invoke(QUESTIONS[0]).content
        server.start()
        assert mine.invoke(QUESTIONS[0], max_tokens=32).content == both.invoke(QUESTIONS[0]).content
