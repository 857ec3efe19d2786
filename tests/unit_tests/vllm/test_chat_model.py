"""ChatLlamaStopServer over real HTTP, to a server that answers as it is told; vLLM's own is run by
`make test-vllm`."""

import asyncio
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelRateLimitError,
    ModelTimeoutError,
    OutputParserException,
)
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from pydantic import BaseModel

from langchain_llama_stop import ChatLlamaStopServer, EosReward
from langchain_llama_stop import options as options_module
from langchain_llama_stop._langchain.schema_text import schema_text
from langchain_llama_stop.options import OPTIONS
from langchain_llama_stop.vllm import request_reward, reward_args
from langchain_llama_stop.vllm.errors import server_root
from tests.standard import StandardUnitTests

USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def answer(text="Fine.", finish="stop", stop=None, calls=None, **usage):
    message = {"role": "assistant", "content": text, "tool_calls": calls or []}
    choice = {"index": 0, "message": message, "finish_reason": finish, "stop_reason": stop}
    return 200, {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": {**USAGE, **usage},
    }


def events(*pieces, finish="stop", stop=None, done=True):
    """A stream of server-sent events; cut off in the midst unless `done`."""
    base = {"id": "1", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    chunks = [
        {**base, "choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]}
        for piece in pieces
    ]
    if done:
        last = {"index": 0, "delta": {}, "finish_reason": finish, "stop_reason": stop}
        chunks += [{**base, "choices": [last]}, {**base, "choices": [], "usage": USAGE}]
    lines = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks] + ["data: [DONE]\n\n"] * done
    return 200, lines


class Server(ThreadingHTTPServer):
    """Keeps what it is asked, and gives its answers in order, the last one again and again."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked, self.answers, self.headers = [], [answer()], []
        self.pause = 0.0  # before the end of a stream
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, *args):
        pass  # a client that has gone

    def close(self):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append({"path": self.path, **body})
        self.server.headers.append(self.headers)
        answers = self.server.answers
        status, payload = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(payload):
            payload = payload()
        self.send_response(status)
        if isinstance(payload, list):
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for line in map(str.encode, payload):
                if line.startswith(b"data: [DONE]"):
                    time.sleep(self.server.pause)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            if payload[-1].startswith("data: [DONE]"):
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True
            return
        data = json.dumps(payload).encode()
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def second():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def chat(server):
    return ChatLlamaStopServer(model="m", base_url=server.url)


def refused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class TestLangChainsUnitTests(StandardUnitTests):
    @property
    def chat_model_class(self):
        return ChatLlamaStopServer

    @property
    def chat_model_params(self):
        return {"model": "m"}


# What a request holds


def test_a_plain_request(chat, server):
    chat.invoke("Hi")
    assert server.asked == [
        {
            "path": "/v1/chat/completions",
            "model": "m",
            "messages": [{"role": "user", "content": "Hi"}],
            "stream": False,
            "max_completion_tokens": 256,
            "vllm_xargs": {"eos_reward": 1},
        }
    ]


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"max_tokens": 9}, {"max_completion_tokens": 9}),
        ({"max_new_tokens": 9}, {"max_completion_tokens": 9}),
        ({"temperature": 0, "top_p": 0.5, "seed": 3}, {"temperature": 0, "top_p": 0.5, "seed": 3}),
        ({"top_k": 4, "repetition_penalty": 1.5}, {"top_k": 4, "repetition_penalty": 1.5}),
        ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"stop_token_ids": [7]}, {"stop_token_ids": [7]}),
        ({"stop_token_ids": [[7], [8]]}, {"stop_token_ids": [7, 8]}),
        ({"eos_reward": False}, {"vllm_xargs": None}),
        (
            {"eos_reward": EosReward(start=0.5, force_eos=False)},
            {"vllm_xargs": {"eos_reward": 1, "eos_reward_start": 0.5, "eos_reward_force_eos": 0}},
        ),
        ({"top_logprobs": 2}, {"logprobs": True, "top_logprobs": 2}),
        ({"grammar": 'start: "a"'}, {"structured_outputs": {"grammar": 'start: "a"'}}),
    ],
)
def test_options_are_sent(server, options, sent):
    given = ChatLlamaStopServer(model="m", base_url=server.url, **options)
    given.invoke("Hi")
    ChatLlamaStopServer(model="m", base_url=server.url).bind(**options).invoke("Hi")
    for asked in server.asked:
        assert {name: asked.get(name) for name in sent} == sent


def test_stops_of_constructor_and_call(server):
    given = ChatLlamaStopServer(model="m", base_url=server.url, stop=["a"], stop_token_ids=[7])
    given.invoke("Hi", stop=["b"], stop_token_ids=[8])
    assert server.asked[0]["stop"] == ["a", "b"]
    assert server.asked[0]["stop_token_ids"] == [7, 8]


def test_extra_body_of_constructor_and_call(server):
    extra = {"min_p": 0.1, "vllm_xargs": {"mine": 1}}
    given = ChatLlamaStopServer(model="m", base_url=server.url, extra_body=extra)
    given.invoke("Hi", extra_body={"priority": 3})
    asked = server.asked[0]
    assert (asked["min_p"], asked["priority"]) == (0.1, 3)
    assert asked["vllm_xargs"] == {"mine": 1, "eos_reward": 1}


def test_a_hint_and_a_schema_are_told_as_in_process(chat, server):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    talk = [SystemMessage("Be kind."), HumanMessage("One."), HumanMessage("Two.")]
    hint = "{sentences} sentences."
    chat.invoke(talk, json_schema=schema, answer_hint=hint, max_tokens=50)
    asked = server.asked[0]
    told = f"{schema_text(schema)}\n\nBe kind."
    assert asked["messages"] == [
        {"role": "system", "content": told},
        {"role": "user", "content": "One.\n\nTwo.\n\n2 sentences."},
    ]
    assert asked["structured_outputs"] == {"json": schema}


def test_a_hint_behind_an_image(chat, server):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    chat.invoke([HumanMessage([image])], answer_hint="Be brief.")
    assert server.asked[0]["messages"][0]["content"] == [
        image,
        {"type": "text", "text": "Be brief."},
    ]


@tool
def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, None),
        ("auto", "auto"),
        ("any", "required"),
        (True, "required"),
        ("add", {"type": "function", "function": {"name": "add"}}),
    ],
)
def test_tools_are_sent(chat, server, choice, sent):
    chat.bind_tools([add], tool_choice=choice).invoke("Hi")
    asked = server.asked[0]
    assert asked.get("tool_choice") == sent
    assert asked["tools"][0]["function"]["name"] == "add"
    assert asked["tools"][0]["function"]["strict"] is True


def test_no_tools_where_none_may_be_called(chat, server):
    chat.bind_tools([add], tool_choice="none").invoke("Hi")
    assert "tools" not in server.asked[0] and "tool_choice" not in server.asked[0]


class Point(BaseModel):
    x: int


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_structured_output(chat, server, method):
    server.answers = [answer('{"x": 3}')]
    assert chat.with_structured_output(Point, method=method).invoke("Hi") == Point(x=3)
    # Every backend of vLLM takes a schema; one server may not take Lark after schemas.
    assert server.asked[0]["structured_outputs"]["json"]["properties"]["x"]


@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "array", "items": {"enum": ["é", 1]}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"x": {}}}}},
    ],
)
def test_a_server_is_given_schemas_and_no_lark(chat, server, schema, method):
    value = [1] if schema.get("type") == "array" else {}
    server.answers = [answer(json.dumps(value))]
    assert chat.with_structured_output(schema, method=method).invoke("Hi") == value
    assert server.asked[0]["structured_outputs"] == {"json": schema}


def test_structured_output_by_a_call(chat, server):
    call = {"id": "c", "type": "function", "function": {"name": "Point", "arguments": '{"x": 3}'}}
    server.answers = [answer("", calls=[call])]
    asked = chat.with_structured_output(Point, method="function_calling", include_raw=True)
    found = asked.invoke("Hi")
    assert found["parsed"] == Point(x=3)
    assert found["raw"].response_metadata["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("path", ["invoke", "ainvoke", "stream"])
def test_a_cut_object_is_no_object(chat, server, path, include_raw):
    """LangChain's parsers would complete it: {"x": 34} of {"x": 3411}."""
    server.answers = [answer('{"x": 34', finish="length")]
    if path == "stream":
        server.answers = [events('{"x": ', "34", finish="length")]
    asked = chat.with_structured_output(Point, include_raw=include_raw)
    work = {
        "invoke": lambda: asked.invoke("Hi"),
        "ainvoke": lambda: asyncio.run(asked.ainvoke("Hi")),
        "stream": lambda: list(asked.stream("Hi")),
    }[path]
    if include_raw and path != "stream":
        found = work()
        assert found["parsed"] is None and "give more `max_tokens`" in str(found["parsing_error"])
    elif not include_raw:
        with pytest.raises(OutputParserException, match="give more `max_tokens`"):
            work()


def called(*pieces):
    """A stream in which one tool is called, its arguments in pieces."""
    calls = [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "add", "arguments": ""}},
        *({"index": 0, "function": {"arguments": piece}} for piece in pieces),
    ]
    status, lines = events("", finish="tool_calls")
    chunk = json.loads(lines[0].removeprefix("data: "))
    begun = []
    for call in calls:
        chunk["choices"][0]["delta"] = {"tool_calls": [call]}
        begun.append(f"data: {json.dumps(chunk)}\n\n")
    return status, [*begun, *lines[1:]]


@pytest.mark.parametrize("path", ["stream", "astream"])
def test_a_call_in_a_stream_comes_whole(chat, server, path):
    server.answers = [called('{"a": 34', '11, "b": 4222}')]
    whole, chunks = gathered(chat.bind_tools([add]), path)
    assert [call["args"] for call in whole.tool_calls] == [{"a": 3411, "b": 4222}]
    assert whole.response_metadata["finish_reason"] == "tool_calls"
    assert [bool(chunk.tool_call_chunks) for chunk in chunks] == [False] * (len(chunks) - 1) + [
        True
    ]


@pytest.mark.parametrize("path", ["stream", "astream"])
def test_a_call_that_was_cut_is_none(chat, server, path):
    """LangChain would complete it: {"a": 34} of {"a": 3411, …}."""
    status, lines = called('{"a": 34')
    lines = [
        line.replace('"tool_calls", "stop_reason"', '"length", "stop_reason"') for line in lines
    ]
    server.answers = [(status, lines)]
    whole, _ = gathered(chat.bind_tools([add], tool_choice="any"), path)
    assert whole.tool_calls == [] and len(whole.invalid_tool_calls) == 1
    assert whole.response_metadata["finish_reason"] == "length"
    status, lines = called("{}")  # what vLLM gives where it has seen no more than the name
    lines = [
        line.replace('"tool_calls", "stop_reason"', '"length", "stop_reason"') for line in lines
    ]
    server.answers = [(status, lines)]
    whole, _ = gathered(chat.bind_tools([add]), path)
    assert whole.tool_calls == [] and len(whole.invalid_tool_calls) == 1
    server.answers = [events("", finish="length")]  # cut before any of it could be seen
    whole, _ = gathered(chat.bind_tools([add], tool_choice="any"), path)
    assert whole.tool_calls == [] and len(whole.invalid_tool_calls) == 1
    server.answers = [answer('<tool_call>\n{"name": "add", "arguments": {"a": 34', finish="length")]
    given = chat.bind_tools([add], tool_choice="any").invoke("Hi")
    assert given.tool_calls == [] and given.content == ""
    assert "give more `max_tokens`" in given.invalid_tool_calls[0]["error"]


def gathered(model, path):
    """A stream's message, and its chunks."""

    async def awaited():
        return [chunk async for chunk in model.astream("Hi")]

    chunks = asyncio.run(awaited()) if path == "astream" else list(model.stream("Hi"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole, chunks


def test_callbacks_see_what_the_stream_gives(chat, server):
    server.answers = [called('{"a": 1, "b": 2}')]
    seen = []

    class Listener(BaseCallbackHandler):
        def on_llm_new_token(self, token, *, chunk=None, **kwargs):
            seen.append(chunk.message)

    given = list(chat.bind_tools([add]).stream("Hi", config={"callbacks": [Listener()]}))
    assert [m.tool_call_chunks for m in seen] == [m.tool_call_chunks for m in given]


@pytest.mark.parametrize("usages", ["none", "every chunk"])
def test_metadata_where_usage_comes_otherwise(chat, server, usages):
    status, lines = events("One", " two")
    *chunks, done = lines
    parsed = [json.loads(line.removeprefix("data: ")) for line in chunks]
    if usages == "none":
        parsed.pop()
    else:
        parsed = [{**chunk, "usage": USAGE} for chunk in parsed]
    server.answers = [(status, [f"data: {json.dumps(chunk)}\n\n" for chunk in parsed] + [done])]
    whole, chunks = gathered(chat, "stream")
    assert whole.content == "One two"
    told = whole.response_metadata
    assert (told["finish_reason"], told["model_name"], told["stop_reason"]) == ("stop", "m", None)
    assert chunks[-1].response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata is None or whole.usage_metadata["total_tokens"] == 8


def test_a_begun_answer(chat, server):
    chat.invoke([HumanMessage("Hi"), AIMessage("Well")], continue_final_message=True)
    assert server.asked[0]["continue_final_message"] is True
    assert server.asked[0]["add_generation_prompt"] is False
    chat.invoke([HumanMessage("Hi"), AIMessage("Well")])
    assert "add_generation_prompt" not in server.asked[1]  # vLLM begins a new answer


def test_tokens_are_counted_by_the_server(chat, server):
    server.answers = [(200, {"tokens": [4, 5], "count": 2})]
    assert chat.get_token_ids("ab") == [4, 5] and chat.get_num_tokens("ab") == 2
    assert chat.get_num_tokens_from_messages([HumanMessage("ab")], tools=[add]) == 2
    assert [asked["path"] for asked in server.asked] == ["/tokenize"] * 3
    assert chat.get_num_tokens_from_messages([]) == 0


# What is refused, before anything is sent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "`max_new_tokens` has to be a whole number of 1 or more"),
        ({"temperature": -1}, "`temperature` has to be 0"),
        ({"stop_token_ids": [[7, 8]]}, r"has to hold single ids.*holds \[7, 8\]"),
        ({"grammar": "nonsense"}, "`grammar` has to be in llguidance's Lark form"),
        ({"batch_size": 4}, "`batch_size` is no option of a request.*--max-num-seqs"),
        ({"return_full_text": True}, "`return_full_text` is no option of a request"),
        ({"logits_processor": [print]}, "`logits_processor` is no option of a request"),
        ({"on_length": "trim"}, "`on_length` is no option of a request"),
        ({"max_token": 4}, "Unknown (call )?option 'max_token'"),
    ],
)
def test_bad_options(chat, server, options, message):
    with pytest.raises(ValueError, match=message):
        ChatLlamaStopServer(model="m", **options)
    with pytest.raises(ValueError, match=message):
        chat.invoke("Hi", **options)
    with pytest.raises(ValueError, match=message):
        list(chat.stream("Hi", **options))
    assert not server.asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization": "nf4"}, "`quantization` is no option.*vllm serve --quantization"),
        ({"presence_penalty": 1.0}, "Unknown option 'presence_penalty'"),
        ({"base_url": "localhost:8000"}, "`base_url` has to be an address such as"),
        ({"base_url": []}, "`base_url` has to hold at least one address"),
        ({"base_url": [3]}, "`base_url` has to be an address such as.*holds 3"),
        ({"base_url": "http://me:secret@host"}, "`base_url` may hold no user or password"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChatLlamaStopServer(model="m", **arguments)


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 1},
        {"max_completion_tokens": 3},
        {"n": 2},
        {"vllm_xargs": {"eos_reward": 1}},
        {"tools": []},
    ],
)
def test_what_has_an_option_does_not_go_into_the_body(chat, server, body):
    with pytest.raises(ValueError, match="`extra_body` may hold no '.*option of its own"):
        chat.invoke("Hi", extra_body=body)
    with pytest.raises(ValueError, match="`extra_body` may hold no"):
        ChatLlamaStopServer(model="m", extra_body=body)
    assert not server.asked


def test_names_of_openais_models_mean_nothing_here(server):
    for name in ("gpt-5-distill", "O1-OPEN/OpenO1-LLama-8B-v0.1"):
        ChatLlamaStopServer(model=name, base_url=server.url, temperature=0).invoke("Hi")
        ChatLlamaStopServer(model=name, base_url=server.url).invoke("Hi")
    assert [asked.get("temperature") for asked in server.asked] == [0, None] * 2


def test_neighbours_of_one_role_are_joined_where_they_are_text(chat, server):
    schema = {"type": "object", "properties": {}}
    blocks = [{"type": "text", "text": "One."}]
    chat.invoke([SystemMessage("Be kind."), HumanMessage(blocks)], json_schema=schema)
    assert [m["role"] for m in server.asked[0]["messages"]] == ["system", "user"]
    chat.invoke([HumanMessage("A", name="alice"), HumanMessage("B", name="bob")])
    assert [m["name"] for m in server.asked[1]["messages"]] == ["alice", "bob"]


def test_the_model_has_to_be_named():
    with pytest.raises(ValueError, match="model"):
        ChatLlamaStopServer()


def test_the_defaults_of_options_that_are_set_elsewhere_are_taken():
    ChatLlamaStopServer(
        model="m", batch_size=16, return_full_text=False, on_length="keep", logits_processor=[]
    )


def test_a_schema_and_tools_exclude_each_other(chat):
    schema = {"type": "object", "properties": {}}
    with pytest.raises(
        ValueError, match="`json_schema` and `grammar` have to be None with `tools`"
    ):
        chat.bind_tools([add], json_schema=schema).invoke("Hi")
    assert chat.profile["structured_output"] is False  # agents then give the schema as a tool


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("http://a:8000/v1", "http://a:8000"),
        ("http://a:8000/v1/", "http://a:8000"),
        ("https://a/llm", "https://a/llm"),
    ],
)
def test_addresses(url, root):
    assert server_root(url) == root


# What comes back


@pytest.mark.parametrize(
    ("options", "reply", "reason", "stopped", "source"),
    [
        ({}, answer(), "stop", None, "model"),
        ({"max_tokens": 3}, answer(), "stop", None, None),
        ({"max_tokens": 3, "eos_reward": False}, answer(), "stop", None, "model"),
        ({"stop": ["x"]}, answer(stop="x"), "stop", "x", None),
        ({"stop_token_ids": [7]}, answer(stop=7), "stop", [7], None),
        ({"stop_token_ids": [7]}, answer(stop=8), "stop", None, "model"),
        ({"eos_reward": False}, answer(finish="length"), "length", None, None),
    ],
)
def test_metadata(chat, server, options, reply, reason, stopped, source):
    server.answers = [reply]
    given = chat.invoke("Hi", **options)
    pieces = [p["message"] for p in reply[1]["choices"]]
    choice = reply[1]["choices"][0]
    server.answers = [
        events(pieces[0]["content"], finish=choice["finish_reason"], stop=choice["stop_reason"])
    ]
    *_, last = streamed = list(chat.stream("Hi", **options))
    whole = streamed[0]
    for piece in streamed[1:]:
        whole += piece
    wanted = {"finish_reason": reason, "stop_reason": stopped, "eos_source": source}
    for message in (given, whole):
        assert {name: message.response_metadata[name] for name in wanted} == wanted
        assert message.response_metadata["model_name"] == "m"
        assert message.usage_metadata["total_tokens"] == 8
        assert message.content == "Fine."


def test_a_server_without_the_processor_is_noticed(chat, server):
    server.answers = [answer(finish="length")]
    with pytest.warns(UserWarning, match="has cut an answer that `eos_reward` has to end"):
        chat.invoke("Hi")
    chat.bind_tools([add]).invoke("Hi")  # a call may be cut
    for body in ({"ignore_eos": True}, {"min_tokens": 9}, {"structured_outputs": {"regex": "a"}}):
        chat.invoke("Hi", extra_body=body)


# What goes wrong on the way

BUSY = (503, {"error": {"message": "starting", "code": 503}})
FULL = (429, {"error": {"message": "too many", "code": 429}})


def quick(chat, **settings):
    """The same model with a short pause between its tries."""
    return ChatLlamaStopServer(model="m", base_url=list(chat.base_urls), **settings)


@pytest.mark.parametrize("reply", [BUSY, FULL])
def test_busy_servers_are_asked_again(chat, server, reply):
    server.answers = [reply, answer()]
    assert chat.invoke("Hi").content == "Fine."
    assert len(server.asked) == 2
    server.answers = [reply, answer()]
    assert asyncio.run(chat.ainvoke("Hi")).content == "Fine."


@pytest.mark.parametrize(("reply", "kind"), [(BUSY, ModelAPIError), (FULL, ModelRateLimitError)])
def test_a_server_that_stays_busy(chat, server, reply, kind):
    server.answers = [reply]
    with pytest.raises(kind, match=rf"{server.url} fails the request \(status {reply[0]}\)"):
        quick(chat, max_retries=1).invoke("Hi")
    assert len(server.asked) == 2


def test_a_refusal_is_not_asked_again(chat, server):
    server.answers = [(400, {"error": {"message": "`start` is bad.", "code": 400}})]
    with pytest.raises(ModelInvalidRequestError, match="`start` is bad") as caught:
        chat.invoke("Hi")
    assert str(caught.value) == f"{server.url} refuses the request (status 400): `start` is bad."
    assert len(server.asked) == 1
    server.answers = [(400, {"error": {"message": "maximum context length", "code": 400}})]
    with pytest.raises(ContextOverflowError, match="maximum context length"):
        chat.invoke("Hi")
    server.answers = [(401, {"error": {"message": "Unauthorized", "code": 401}})]
    with pytest.raises(ModelAuthenticationError, match="give `api_key`"):
        chat.invoke("Hi")


def test_a_refusal_within_a_stream(chat, server):
    error = {"error": {"message": "`start` is bad.", "code": 400}}
    server.answers = [(200, [f"data: {json.dumps(error)}\n\n", "data: [DONE]\n\n"])]
    with pytest.raises(ModelInvalidRequestError, match="refuses .* `start` is bad"):
        list(chat.stream("Hi"))


@pytest.mark.parametrize(
    ("code", "kind"),
    [(404, ModelNotFoundError), (429, ModelRateLimitError), (500, ModelAPIError)],
)
def test_a_failure_within_a_stream(chat, server, code, kind):
    error = {"error": {"message": "The engine has died.", "code": code}}
    server.answers = [(200, [f"data: {json.dumps(error)}\n\n", "data: [DONE]\n\n"])]
    with pytest.raises(kind, match="The engine has died"):
        list(chat.stream("Hi"))
    with pytest.raises(kind, match="The engine has died"):
        gathered(chat, "astream")


@pytest.mark.parametrize("path", ["stream", "astream"])
def test_a_stream_that_stalls(server, path):
    stalls = [*events("One")[1][:1], *["data: [DONE]\n\n"]]
    server.answers = [(200, lambda: stalls)]
    server.pause = 1.0
    chat = ChatLlamaStopServer(model="m", base_url=server.url)
    with pytest.raises(ModelTimeoutError, match="`timeout` ran out"):
        gathered(chat.bind(timeout=0.2), path)


def test_no_server():
    url = f"http://127.0.0.1:{refused_port()}"
    nowhere = ChatLlamaStopServer(model="m", base_url=url, max_retries=0)
    for call in (
        lambda: nowhere.invoke("Hi"),
        lambda: list(nowhere.stream("Hi")),
        lambda: asyncio.run(nowhere.ainvoke("Hi")),
    ):
        with pytest.raises(ModelConnectionError) as caught:
            call()
        assert f"No whole answer from {url}: " in str(caught.value)
        assert "refused" in str(caught.value) or "attempts failed" in str(caught.value)
        assert "vllm serve MODEL" in str(caught.value)
    with pytest.raises(ModelConnectionError, match="vllm serve MODEL"):
        nowhere.get_num_tokens("Hi")


def test_a_stream_that_breaks_off(chat, server):
    server.answers = [events("One", " two", done=False)]
    stream = chat.stream("Hi")
    assert next(stream).content == "One"
    with pytest.raises(ModelConnectionError, match="No whole answer from"):
        list(stream)
    assert len(server.asked) == 1  # a part of it has been given away


def test_a_server_that_does_not_answer(chat, server):
    server.answers = [(200, lambda: time.sleep(0.6) or answer()[1])]
    with pytest.raises(ModelTimeoutError, match="`timeout` ran out before"):
        quick(chat, timeout=0.1, max_retries=0).invoke("Hi")


# Several servers


def test_servers_in_turn(server, second):
    dead = f"http://127.0.0.1:{refused_port()}"
    server.answers = [BUSY]
    chat = ChatLlamaStopServer(model="m", base_url=[dead, f"{server.url}/v1", second.url])
    assert chat.invoke("Hi").content == "Fine."
    assert (len(server.asked), len(second.asked)) == (1, 1)
    assert second.headers[0]["Host"] == second.url.removeprefix("http://")
    chat.invoke("Hi")  # the one that has answered is asked first
    assert (len(server.asked), len(second.asked)) == (1, 2)
    assert asyncio.run(chat.ainvoke("Hi")).content == "Fine."
    server.answers = [answer("Again.")]
    second.answers = [FULL]
    assert chat.invoke("Hi").content == "Again."
    second.answers = [events("One", " two")]
    server.answers = [FULL]
    assert "".join(piece.content for piece in chat.stream("Hi")) == "One two"
    second.answers = [(200, {"tokens": [1], "count": 1})]
    assert chat.get_num_tokens("Hi") == 1


def test_a_server_that_lets_the_time_run_out_is_left(server, second):
    server.answers = [(200, lambda: time.sleep(0.6) or answer()[1])]
    both = ChatLlamaStopServer(
        model="m", base_url=[server.url, second.url], timeout=0.2, max_retries=1
    )
    with pytest.raises(ModelTimeoutError):  # which is the whole call's
        both.invoke("Hi")
    assert both.invoke("Hi").content == "Fine."
    assert (len(server.asked), len(second.asked)) == (1, 1)


def test_no_server_of_several(server):
    dead = [f"http://127.0.0.1:{refused_port()}" for _ in range(2)]
    chat = ChatLlamaStopServer(model="m", base_url=dead, max_retries=0)
    with pytest.raises(ModelConnectionError, match=f"{dead[0]} or {dead[1]}"):
        chat.invoke("Hi")


def test_servers_under_one_address(server):
    server.answers = [FULL, FULL, answer(), answer()]
    roots = [server.url, f"{server.url}/b", f"{server.url}/c"]
    chat = ChatLlamaStopServer(model="m", base_url=roots)
    chat.invoke("Hi")
    chat.invoke("Hi")
    paths = [asked["path"].removesuffix("/chat/completions") for asked in server.asked]
    assert paths == ["/v1", "/b/v1", "/c/v1", "/c/v1"]


def test_a_server_that_cannot_be_reached_is_soon_given_up(server, monkeypatch):
    """Its connections are dropped; with a refused one it is known at once."""
    monkeypatch.setattr("langchain_llama_stop.vllm.http._CONNECT", 0.2)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        waiting = [socket.socket() for _ in range(4)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        both = ChatLlamaStopServer(model="m", base_url=[url, server.url])
        assert both.invoke("Hi").content == "Fine."
        gone = ChatLlamaStopServer(model="m", base_url=url, max_retries=0)
        with pytest.raises(ModelConnectionError, match="No whole answer from .*: .*[Tt]ime"):
            gone.invoke("Hi")
        for one in waiting:
            one.close()


def test_an_own_client_is_used(server, second):
    with httpx2.Client(headers={"X-Mine": "1"}) as own:
        ChatLlamaStopServer(model="m", base_url=server.url, http_client=own).invoke("Hi")
        assert server.headers[0]["X-Mine"] == "1"
        dead = f"http://127.0.0.1:{refused_port()}"
        both = ChatLlamaStopServer(model="m", base_url=[dead, second.url], http_client=own)
        assert both.invoke("Hi").content == "Fine." and second.headers[0]["X-Mine"] == "1"


def test_event_loops_one_after_another(chat, server):
    for _ in range(3):
        assert asyncio.run(chat.ainvoke("Hi")).content == "Fine."


def test_a_proxy_that_the_environment_names_is_not_used(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{refused_port()}")
    chat = ChatLlamaStopServer(model="m", base_url=server.url, max_retries=0)
    assert chat.invoke("Hi").content == asyncio.run(chat.ainvoke("Hi")).content == "Fine."


# Keys, copies, secrets


def test_no_key_of_another_service_is_sent(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://elsewhere.invalid/v1")
    monkeypatch.setenv("OPENAI_PROXY", "http://elsewhere.invalid:1")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-secret")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "project-secret")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: secret")
    ChatLlamaStopServer(model="m", base_url=server.url).invoke("Hi")
    monkeypatch.setenv("VLLM_API_KEY", "mine")
    chat = ChatLlamaStopServer(model="m", base_url=server.url)
    chat.invoke("Hi")
    ChatLlamaStopServer(model="m", base_url=server.url, api_key="other").invoke("Hi")
    sent = [headers["Authorization"] for headers in server.headers]
    assert sent == ["Bearer EMPTY", "Bearer mine", "Bearer other"]
    assert not any("secret" in str(headers) for headers in server.headers)
    field = ConfigurableField(id="t")
    chat.configurable_fields(top_k=field).with_config(configurable={"t": 1}).invoke("Hi")
    assert "mine" not in repr(chat) and "mine" not in str(chat._get_invocation_params())


def test_copies_keep_everything(server):
    chat = ChatLlamaStopServer(model="m", base_url=server.url, temperature=0, top_k=3)
    field = ConfigurableField(id="t")
    chat.configurable_fields(temperature=field).with_config(configurable={"t": 1.0}).invoke("Hi")
    chat.model_copy(update={"top_k": 5}).invoke("Hi")
    assert [(a["temperature"], a["top_k"]) for a in server.asked] == [(1.0, 3), (0, 5)]


def test_a_copy_with_other_servers_asks_them(server, second):
    chat = ChatLlamaStopServer(model="m", base_url=server.url)
    field = ConfigurableField(id="servers")
    moved = chat.configurable_fields(base_urls=field)
    moved.with_config(configurable={"servers": [second.url]}).invoke("Hi")
    assert (len(server.asked), len(second.asked)) == (0, 1)


def test_the_cache_tells_options_and_servers_apart(server, second):
    cache = InMemoryCache()
    plain = {"model": "m", "base_url": server.url, "cache": cache}
    for more in (
        {},
        {},
        {"top_k": 3},
        {"eos_reward": False},
        {"answer_hint": "Be brief."},
        {"stop_token_ids": [7]},
    ):
        ChatLlamaStopServer(**plain, **more).invoke("Hi")
    assert len(server.asked) == 5
    for stop in (["b"], ["c"]):
        ChatLlamaStopServer(**plain, stop=["a"]).invoke("Hi", stop=stop)
    assert len(server.asked) == 7
    ChatLlamaStopServer(**{**plain, "base_url": second.url}).invoke("Hi")
    assert len(second.asked) == 1


def test_traces_name_the_model_and_the_options():
    chat = ChatLlamaStopServer(model="m", temperature=0, stop=["a"], max_tokens=7)
    params = chat._get_ls_params(stop=["b"])
    assert params["ls_provider"] == "llama_stop" and params["ls_model_name"] == "m"
    assert params["ls_max_tokens"] == 7 and params["ls_temperature"] == 0
    assert params["ls_stop"] == ["a", "b"]


# The reward as arguments


@given(
    start=st.none() | st.floats(0, 1),
    strength=st.floats(0, 100),
    boundary=st.sampled_from(["sentence", "line", "paragraph"]),
    close_sentence=st.booleans(),
    force_eos=st.booleans(),
)
def test_what_is_written_is_read(**options):
    reward = EosReward(**options, hindsight=False)
    sent = json.loads(json.dumps(reward_args(reward)))
    assert all(type(value) in (int, float, str) for value in sent.values())
    assert request_reward(sent) == reward


def test_request_reward():
    assert reward_args(None) == {} and reward_args(EosReward()) == {"eos_reward": 1}
    assert request_reward(None) is None and request_reward({"other": 1}) is None
    assert request_reward({"eos_reward": 0, "eos_reward_strength": 3}) is None
    asked = request_reward({"eos_reward_boundary": "paragraph", "eos_reward_force_eos": "false"})
    assert asked == EosReward(boundary="paragraph", force_eos=False, hindsight=False)
    with pytest.raises(ValueError, match="`vllm_xargs` has no option 'eos_reward_hindsight'"):
        request_reward({"eos_reward_hindsight": 1})
    with pytest.raises(ValueError, match="`eos_reward` has to be true or false"):
        request_reward({"eos_reward": "maybe"})


@pytest.mark.parametrize("asked", [{}, {"stop": ["x"]}, {"seed": 1, "stop": ["x"], "top_k": 3}])
@pytest.mark.parametrize("streamed", [False, True])
def test_options_are_parsed_once_per_call(server, streamed, asked, monkeypatch):
    server.answers = [events("Fine.")] if streamed else [answer()]
    chat, parsed = ChatLlamaStopServer(model="m", base_url=server.url, eos_reward=False), []
    checked = options_module._checked
    monkeypatch.setattr(options_module, "_checked", lambda v: parsed.append(v) or checked(v))
    given = list(chat.stream("Hi", **asked)) if streamed else chat.invoke("Hi", **asked)
    assert given
    assert sum(len(values) == len(OPTIONS) for values in parsed) <= 1  # the constructor's
    checked_names = [name for v in parsed if len(v) < len(OPTIONS) for name in v]
    assert sorted(checked_names) == sorted(asked)
    assert server.asked[0].get("stop") == asked.get("stop")


def test_a_request_carries_what_the_table_says(server):
    given = {
        "max_new_tokens": 8,
        "temperature": 0,
        "top_p": 0.5,
        "seed": 0,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 2,
        "top_k": 0,
        "repetition_penalty": 1.5,
        "stop_token_ids": [3, 4],
        "answer_hint": "Be brief.",
        "json_schema": {},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    carried = {name for name, option in OPTIONS.items() if option.request}
    assert carried == {*given, "eos_reward", "grammar"}
    ChatLlamaStopServer(model="m", base_url=server.url, **given).invoke("Hi")
    body = server.asked[0]
    assert body.pop("messages")[-1]["content"].endswith("Be brief.")
    assert body.pop("vllm_xargs") == {"eos_reward": 1}
    assert body.pop("structured_outputs") == {"json": {}}
    assert body == {
        "path": "/v1/chat/completions",
        "model": "m",
        "stream": False,
        "max_completion_tokens": 8,
        "temperature": 0.0,
        "top_p": 0.5,
        "seed": 0,
        "stop": ["x"],
        "logprobs": True,
        "top_logprobs": 2,
        "top_k": 0,
        "repetition_penalty": 1.5,
        "stop_token_ids": [3, 4],
        "chat_template_kwargs": {"enable_thinking": False},
    }
