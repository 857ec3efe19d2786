"""A server that misbehaves in every way: an answer is whole, or one of LangChain's `ModelError`s.

The server is on loopback, its answers are bounded, and each call ends within its `timeout`.
"""

import asyncio
import copy
import functools
import itertools
import json
import socket
import threading
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelRateLimitError,
    ModelTimeoutError,
)
from langchain_core.messages import AIMessage

from langchain_llama_stop import ChatLlamaStopServer

TEXT = "Fine. Très bien: 👍"
SLACK = 2.0  # seconds that a busy machine may take on top of `timeout`


class Hostile:
    """Sends the same pieces to each connection: bytes, seconds to wait, or an endless iterator."""

    def __init__(self):
        self.asked, self.whole, self.streamed = [], [], []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection:
            connection.settimeout(5)
            try:
                request = self._request(connection)
                self.asked.append(request)
                for piece in self.streamed if b'"stream":true' in request else self.whole:
                    if isinstance(piece, float):
                        time.sleep(piece)
                    else:
                        connection.sendall(piece)
            except OSError:
                pass  # the client has gone

    @staticmethod
    def _request(connection):
        data = b""
        while b"\r\n\r\n" not in data:
            data += connection.recv(65536)
        head, body = data.split(b"\r\n\r\n", 1)
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(body) < length:
            body += connection.recv(65536)
        return body

    def close(self):
        self._socket.close()


@pytest.fixture(scope="module")
def server():
    running = Hostile()
    yield running
    running.close()


@pytest.fixture(scope="module")
def other():
    running = Hostile()
    yield running
    running.close()


WAYS = ("invoke", "ainvoke", "stream", "astream", "invoke, streamed")


@functools.cache
def model(url, settings):
    return ChatLlamaStopServer(model="m", base_url=url, **dict(settings))


def asked(server, way, **settings):
    """What a call gives: a message, or the error that it raises."""
    settings = {"timeout": 5.0, "max_retries": 0, "eos_reward": False} | settings
    if way == "invoke, streamed":
        settings["streaming"] = True
    chat = model(server.url, tuple(settings.items()))

    async def gathered():
        return [chunk async for chunk in chat.astream("Hi")]

    begun = time.monotonic()
    try:
        if way == "ainvoke":
            return asyncio.run(chat.ainvoke("Hi"))
        if way.startswith("invoke"):
            return chat.invoke("Hi")
        chunks = list(chat.stream("Hi")) if way == "stream" else asyncio.run(gathered())
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        return whole
    except ModelError as error:
        return error
    finally:
        assert time.monotonic() - begun < settings["timeout"] + SLACK


def http(body, kind="application/json", status="200 OK", *headers):
    """An answer that ends with its connection."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", "Connection: close", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def sse(*chunks):
    """A stream of events; what is no bytes is written as JSON."""
    data = [c if isinstance(c, bytes) else json.dumps(c).encode() for c in chunks]
    return http(b"".join(b"data: %s\n\n" % d for d in data), "text/event-stream")


LIKELY = {"token": "F", "logprob": -0.5, "bytes": [70]}
LOGPROBS = {"content": [{**LIKELY, "top_logprobs": [LIKELY]}]}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 2},
}
WHOLE = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": TEXT, "tool_calls": [CALL]},
            "logprobs": LOGPROBS,
            "finish_reason": "stop",
            "stop_reason": None,
        }
    ],
    "usage": USAGE,
}
BASE = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}


def part(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": LOGPROBS}
    return {**BASE, "choices": [choice]}


CHUNKS = [
    part({"role": "assistant", "content": ""}),
    part({"content": TEXT[:7]}),
    part({"content": TEXT[7:], "tool_calls": [{"index": 0, **CALL}]}),
    part({}, "stop"),
    {**BASE, "choices": [], "usage": USAGE},
    b"[DONE]",
]
VALUES = (None, True, -1, 2.5, 10**400, "x", "", [], {}, [None], {"x": 1}, "user")


def mutants(value):
    """The same JSON with one value replaced, or left out."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, old in list(inner):
        for new in VALUES:
            changed = copy.copy(value)
            changed[key] = new
            yield changed
        without = copy.copy(value)
        del without[key]
        yield without
        if isinstance(old, (dict, list)):
            for inside in mutants(old):
                changed = copy.copy(value)
                changed[key] = inside
                yield changed


def check_whole(answer):
    """Whether what came back is an error, or a message with nothing missing in it."""
    if isinstance(answer, ModelError):
        assert str(answer)
        return
    assert isinstance(answer, AIMessage) and isinstance(answer.content, str)
    info = answer.response_metadata
    assert info["finish_reason"] in ("stop", "length", "tool_calls", "repetition")
    for call in answer.tool_calls:
        assert isinstance(call["name"], str) and isinstance(call["args"], dict)
    for count in (answer.usage_metadata or {}).values():
        assert isinstance(count, dict) or count >= 0


@pytest.mark.parametrize("way", WAYS)
def test_a_right_answer(server, way):
    """What the malformations are made from is right."""
    server.whole, server.streamed = [http(json.dumps(WHOLE).encode())], [sse(*CHUNKS)]
    answer = asked(server, way)
    assert answer.content == TEXT and answer.response_metadata["finish_reason"] == "tool_calls"
    assert answer.tool_calls[0]["args"] == {"a": 1}
    assert answer.usage_metadata["input_token_details"] == {"cache_read": 2}


def test_any_value_of_an_answer_may_be_wrong(server):
    count = 0
    for mutant in mutants(WHOLE):
        server.whole = [http(json.dumps(mutant).encode())]
        check_whole(asked(server, "invoke"))
        count += 1
    for place, chunk in enumerate(CHUNKS[:-1]):
        for mutant in mutants(chunk):
            server.streamed = [sse(*CHUNKS[:place], mutant, *CHUNKS[place + 1 :])]
            check_whole(asked(server, "stream"))
            count += 1
    assert count > 500


BODIES = [
    *(b"", b" ", b"false", b"null", b"0", b'"text"', b"[]", b"{}", b"[[[", b"{", b"nonsense"),
    *(b"\xff\xfe\x00", b"\x00", b'{"choices": null}', b'{"choices": []}', b'{"error": null}'),
    b'{"object": "list", "data": []}',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"9" * 100_000,
    b"<html><body>504 Gateway Time-out</body></html>",
    json.dumps(WHOLE).encode("utf-16"),
    json.dumps(WHOLE, ensure_ascii=False).encode("latin-1", "replace"),
    json.dumps(WHOLE).replace("Fine", "\\ud800").encode(),
    json.dumps(WHOLE).encode()[:-1],
    json.dumps(WHOLE).encode() * 2,
    json.dumps({"error": {"message": "It broke.", "code": 500}}).encode(),
    json.dumps({**WHOLE, "choices": WHOLE["choices"] * 2}).encode(),
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:24]))
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream; charset=utf-16", "x"])
def test_a_body_that_is_no_answer(server, way, body, kind):
    server.whole = server.streamed = [http(body, kind)]
    assert isinstance(asked(server, way), ModelError)


EVENTS = [body for body in BODIES if b"\n" not in body and body.strip()]


@pytest.mark.parametrize("way", ["stream", "astream", "invoke, streamed"])
@pytest.mark.parametrize("event", EVENTS, ids=lambda body: repr(body[:24]))
def test_an_event_that_is_no_chunk(server, way, event):
    server.streamed = [sse(*CHUNKS[:2], event, *CHUNKS[2:])]
    answer = asked(server, way)
    assert isinstance(answer, ModelError) or answer.content == TEXT


@pytest.mark.parametrize("way", ["stream", "astream", "invoke, streamed"])
@pytest.mark.parametrize("chunks", [CHUNKS[:n] for n in range(4)] + [[*CHUNKS[:3], CHUNKS[-1]]])
def test_a_stream_that_ends_before_its_answer(server, way, chunks):
    server.streamed = [sse(*chunks)]
    answer = asked(server, way)
    assert isinstance(answer, ModelConnectionError) and "has ended before the answer" in str(answer)


@pytest.mark.parametrize("way", ["stream", "astream"])
@pytest.mark.parametrize("ends", [b"\n", b"\r", b"\r\n"])
def test_events_cut_anywhere_are_read(server, way, ends):
    lines = sse(b": ping", *CHUNKS).replace(b"data: : ping", b": ping\nevent: x\nid: 4\nretry: 9")
    head, body = lines.split(b"\r\n\r\n", 1)
    body = body.replace(b"\n", ends)
    bites = [body[n : n + 97] for n in range(0, len(body), 97)]
    server.streamed = [head + b"\r\n\r\n", *itertools.chain(*((bite, 0.0005) for bite in bites))]
    assert asked(server, way).content == TEXT


def test_an_answer_cut_at_any_byte_is_an_error_or_whole(server):
    data = json.dumps(WHOLE).encode()
    whole = http(data, "application/json", "200 OK", f"Content-Length: {len(data)}")
    chunked = sse(*CHUNKS)
    for n in range(0, len(whole), 7):
        server.whole = [whole[:n]]
        assert isinstance(asked(server, "invoke"), ModelConnectionError)
    for n in range(0, len(chunked), 7):
        server.streamed = [chunked[:n]]
        answer = asked(server, "stream")
        assert isinstance(answer, ModelError) or answer.content == TEXT


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bytes_that_are_changed(server, data):
    """Heads and bodies in which bytes are lost, doubled, changed."""
    way = data.draw(st.sampled_from(WAYS))
    right = http(json.dumps(WHOLE).encode()) if way in ("invoke", "ainvoke") else sse(*CHUNKS)
    for _ in range(data.draw(st.integers(1, 4))):
        begin = data.draw(st.integers(0, len(right)))
        end = min(len(right), begin + data.draw(st.integers(0, 12)))
        right = right[:begin] + data.draw(st.binary(max_size=12)) + right[end:]
    server.whole = server.streamed = [right]
    check_whole(asked(server, way))


HEADS = [
    *(b"", b"\r\n\r\n", b"HTTP/1.1 200", b"HTTP/9.9 200 OK\r\n\r\n", b"HTTP/1.1 abc OK\r\n\r\n"),
    b"GET / HTTP/1.1\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: -4\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: nine\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\nX: \xff\xfe\x00\r\n\r\n{}",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n{}",
    b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n{}",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 2_000,
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("head", HEADS, ids=lambda head: repr(head[:60]))
def test_a_head_that_is_none(server, way, head):
    server.whole = server.streamed = [head]
    assert isinstance(asked(server, way), ModelError)


SLOW = {
    "nothing": [9.0],
    "a dripped head": [b"HTTP/1.1 200 OK\r\nX: "] + [b"y", 0.05] * 100,
    "a dripped status": [bite for c in b"HTTP/1.1 200 OK" for bite in (bytes([c]), 0.2)],
    "many heads": [b"HTTP/1.1 100 Continue\r\n\r\n", 0.05] * 100,
    "a dripped body": [http(b"")] + [b" ", 0.05] * 100,
    "dripped pings": [http(b"", "text/event-stream")] + [b": ping\n\n", 0.05] * 100,
    "dripped text": [sse(CHUNKS[0])]
    + [b"data: " + json.dumps(CHUNKS[1]).encode() + b"\n\n", 0.05] * 100,
    "a stall": [sse(*CHUNKS[:2]), 9.0],
    "a dripped refusal": [http(b"", "x", "500 Broken")] + [b" ", 0.05] * 100,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", SLOW)
def test_the_timeout_is_the_whole_calls(server, way, how):
    server.whole = server.streamed = SLOW[how]
    begun = time.monotonic()
    answer = asked(server, way, timeout=0.5, max_retries=3)
    assert isinstance(answer, ModelTimeoutError) and "`timeout` ran out" in str(answer)
    assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_time_that_the_caller_takes_is_not_counted(server, way):
    chat = model(server.url, (("timeout", 2.0), ("max_retries", 0)))
    head, *rest = [
        sse(CHUNKS[0]),
        *(b"data: %s\n\n" % json.dumps(c).encode() for c in CHUNKS[1:-1]),
    ]
    server.streamed = [bite for piece in (head, *rest) for bite in (piece, 0.02)]

    async def slowly():
        text = ""
        async for chunk in chat.astream("Hi"):
            text += chunk.content
            time.sleep(0.8)
        return text

    if way == "astream":
        assert asyncio.run(slowly()) == TEXT
        return
    text = ""
    for chunk in chat.stream("Hi"):
        text += chunk.content
        time.sleep(0.8)
    assert text == TEXT


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("piece", [b" " * 2**16, b": ping\n" * 9_000, b"data: " + b"x" * 2**16])
def test_an_endless_body_is_not_read_to_its_end(server, way, piece):
    server.whole = server.streamed = itertools.chain([http(b"")], itertools.repeat(piece, 1_000))
    answer = asked(server, way, timeout=20.0, max_tokens=8)
    assert isinstance(answer, (ModelConnectionError, ModelAPIError))
    assert "more" in str(answer) and "bytes" in str(answer)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("status", ["301", "302", "303", "307", "308"])
@pytest.mark.parametrize("place", ["{other}/v1/chat/completions", "/elsewhere", "//{host}/x", ""])
def test_no_prompt_is_sent_on(server, other, way, status, place):
    place = place.format(other=other.url, host=other.url.removeprefix("http://"))
    server.whole = server.streamed = [http(b"", "x", f"{status} On", f"Location: {place}")]
    begun = len(server.asked)
    answer = asked(server, way, max_retries=2)
    assert isinstance(answer, ModelInvalidRequestError)
    assert "give that address as `base_url`" in str(answer) and repr(place) in str(answer)
    assert len(server.asked) == begun + 1 and not other.asked


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("after", ["50", "1e9", "-4", "inf", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_pause_longer_than_the_timeout_is_not_made(server, way, after):
    answer = http(b"{}", "x", "429 Busy", f"Retry-After: {after}")
    server.whole = server.streamed = [answer]
    answer = asked(server, way, timeout=0.8, max_retries=9)
    assert isinstance(answer, (ModelRateLimitError, ModelTimeoutError))


@pytest.mark.parametrize("status", [*range(201, 300, 7), *range(300, 600, 13)])
@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"error": 5}', b'{"error": {"message": [1]}}', b"\xff"]
)
def test_other_statuses_are_errors(server, status, body):
    server.whole = server.streamed = [http(body, "x", f"{status} Odd")]
    for way in ("invoke", "stream"):
        answer = asked(server, way)
        assert isinstance(answer, ModelError) and f"status {status}" in str(answer)
