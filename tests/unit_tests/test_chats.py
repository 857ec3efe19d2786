"""Chats as agents and reasoning models have them: what is asked, and what comes back."""

import json
from typing import TypedDict

import pytest
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from pydantic import BaseModel

from langchain_llama_stop import ChatLlamaStop
from langchain_llama_stop._langchain.messages import answer_fields
from tests.fakes import ScriptedLlama, byte_tokenizer, hashed_scores, make_pipeline
from tests.fakes.chats import Says
from tests.fakes.templates import OURS, tokenizer_of

TOKENIZERS = {name: tokenizer_of(template) for name, template in OURS.items()}


def chat(template="calls and results", **options):
    tokenizer = TOKENIZERS[template]
    size, eos = len(tokenizer), tokenizer.eos_token_id
    pipeline = make_pipeline(ScriptedLlama(size, hashed_scores(size, 0), eos, eos), tokenizer)
    return ChatLlamaStop(pipeline=pipeline, max_tokens=300, eos_reward=False, **options)


def says(text, template="calls and results"):
    return Says(TOKENIZERS[template], text)


def look(city: str) -> str:
    """Looks at the weather."""
    return city


CALL = '<tool_call>\n{"name": "look", "arguments": {"city": "Oslo"}}\n</tool_call>'
THOUGHT, OPEN = "no thoughts", "ends in a thought"

# Histories


@pytest.mark.parametrize(
    "history",
    [
        [("human", "How is Rome?"), ("ai", "Sunny.")],
        [("ai", "Sunny.")],
        [("system", "Be brief.")],
        [("human", "a"), ("system", "b"), ("human", "c"), ("system", "d")],
        [HumanMessage("a"), HumanMessage("b"), AIMessage(""), AIMessage("c"), HumanMessage("d")],
        [HumanMessage("a"), ToolMessage("b", tool_call_id="gone")],
        [HumanMessage("a"), FunctionMessage("b", name="f")],
        [ChatMessage("a", role="critic"), ChatMessage("b", role="developer")],
        [HumanMessage([{"type": "text", "text": "a"}, {"type": "image", "url": "x"}])],
        [HumanMessage("a"), AIMessage([{"type": "computer_use", "id": "1"}]), HumanMessage("b")],
        [SystemMessage("a"), AIMessage("", tool_calls=[{"name": "f", "args": {}, "id": "1"}])],
    ],
)
@pytest.mark.parametrize("template", OURS)
def test_any_history_is_answered(template, history):
    processor = says("Yes.", template)
    answer = chat(template).invoke(history, logits_processor=processor)
    assert answer.content.endswith("Yes.") or template == OPEN or "thought" in template
    for message in history:
        text = message[1] if isinstance(message, tuple) else message.text
        assert text in processor.asked


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match="has to hold at least one message"):
        chat().invoke([])


# Thoughts


@pytest.mark.parametrize(
    ("template", "text", "thoughts", "content"),
    [
        (THOUGHT, "<think>\nHm.\n</think>\n\nIt is.", "Hm.", "It is."),
        (THOUGHT, "It is.", None, "It is."),
        (OPEN, "Hm.\n</think>\n\nIt is.", "Hm.", "It is."),
        (OPEN, "Hm. So", "Hm. So", ""),
        (OPEN, "</think>It is.", None, "It is."),
    ],
)
@pytest.mark.parametrize("tools", [[], [look]])
def test_thoughts_are_told_apart(template, text, thoughts, content, tools):
    model = chat(template).bind_tools(tools) if tools else chat(template)
    answer = model.invoke("?", logits_processor=says(text, template))
    streamed = None
    for chunk in model.stream("?", logits_processor=says(text, template)):
        streamed = chunk if streamed is None else streamed + chunk
    for message in (answer, streamed):
        assert message.content == content
        assert message.additional_kwargs.get("reasoning_content") == thoughts
        kinds = [block["type"] for block in message.content_blocks]
        assert kinds == ["reasoning"] * bool(thoughts) + ["text"] * bool(content)


def test_content_of_version_v1_has_blocks():
    text = "Hm.\n</think>\n\nIt is."
    answer = chat(OPEN, output_version="v1").invoke("?", logits_processor=says(text, OPEN))
    assert [block["type"] for block in answer.content] == ["reasoning", "text"]
    assert answer.content[0]["reasoning"] == "Hm."


def test_a_call_inside_a_thought_is_none():
    text = f"I might say {CALL}.\n</think>\n\nNo."
    free = chat(OPEN)
    request = free._request([HumanMessage("?")], None, {"tools": [look]})
    info = {"usage_metadata": None}
    content, fields = answer_fields(text, info, request.tools, request.thought)
    assert (content, fields.get("tool_calls", [])) == ("No.", [])


def test_special_tokens_around_thoughts_are_no_content():
    tokenizer = tokenizer_of(OURS["any roles"])
    tokenizer.add_tokens(["[THINK]", "[/THINK]"], special_tokens=True)
    size, eos = len(tokenizer), tokenizer.eos_token_id
    pipeline = make_pipeline(ScriptedLlama(size, hashed_scores(size, 0), eos, eos), tokenizer)
    model = ChatLlamaStop(pipeline=pipeline, max_tokens=300, eos_reward=False)
    text = "[THINK]Hm.[/THINK]It is."
    answer = model.invoke("?", logits_processor=Says(tokenizer, text))
    streamed = list(model.stream("?", logits_processor=Says(tokenizer, text)))
    assert answer.content == "".join(chunk.content for chunk in streamed) == "It is."
    assert answer.additional_kwargs == {"reasoning_content": "Hm."}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("said", ["I look.", ""])
def test_a_stream_with_calls_whose_tag_is_a_special_token(special, said):
    rule = "{% if tools %}{{ tools }}{% endif %}{# [TOOL_CALLS] #}"
    tokenizer = tokenizer_of(rule + OURS["any roles"])
    tokenizer.add_tokens(["[TOOL_CALLS]"], special_tokens=special)
    size, eos = len(tokenizer), tokenizer.eos_token_id
    pipeline = make_pipeline(ScriptedLlama(size, hashed_scores(size, 0), eos, eos), tokenizer)
    model = ChatLlamaStop(pipeline=pipeline, max_tokens=300, eos_reward=False).bind_tools([look])
    text = said + '[TOOL_CALLS] [{"name": "look", "arguments": {"city": "Oslo"}}]'
    answer = model.invoke("?", logits_processor=Says(tokenizer, text))
    streamed = list(model.stream("?", logits_processor=Says(tokenizer, text)))
    assert answer.content == "".join(chunk.content for chunk in streamed) == said
    whole = streamed[0]
    for chunk in streamed[1:]:
        whole += chunk
    for message in (answer, whole):
        assert [call["args"] for call in message.tool_calls] == [{"city": "Oslo"}]


@pytest.mark.parametrize(
    "options",
    [
        {"json_schema": {"type": "object", "properties": {}}},
        {"grammar": 'start: "{" "}"'},
        {"tools": [look], "tool_choice": "any"},
        {"tools": [look], "tool_choice": "look"},
    ],
)
def test_a_constrained_answer_begins_after_the_thought(options):
    processor = says("{}", OPEN)
    chat(OPEN).invoke("?", logits_processor=processor, **options)
    assert processor.asked.endswith("<think>\n\n</think>\n\n")


# Options


@pytest.mark.parametrize("where", ["constructor", "bind", "call"])
def test_settings_of_the_template_come_from_everywhere(where):
    template, given = "ends in a thought if told", {"enable_thinking": False}
    options = {"chat_template_kwargs": given}
    processor = says("Yes.", template)
    model = chat(template, **options) if where == "constructor" else chat(template)
    model = model.bind(**options) if where == "bind" else model
    call = options if where == "call" else {}
    answer = model.invoke("?", logits_processor=processor, **call)
    assert processor.asked.endswith("assistant\n") and answer.content == "Yes."


@pytest.mark.parametrize("parallel", [True, False, None])
@pytest.mark.parametrize("bound", [True, False])
def test_one_call_at_most(parallel, bound):
    given = {"parallel_tool_calls": parallel}
    model = chat().bind_tools([look], **(given if bound else {}))
    processor = says(f"{CALL}\n{CALL}")
    answer = model.invoke("?", logits_processor=processor, **({} if bound else given))
    assert len(answer.tool_calls) == (1 if parallel is False else 2)


def test_the_models_own_name_may_be_given_to_a_call():
    model = chat()
    answer = model.invoke("?", model=model.model_name, logits_processor=says("Yes."))
    assert answer.content == "Yes."


@pytest.mark.parametrize("stop", ["s.", ["s."]])
@pytest.mark.parametrize("bound", [True, False])
def test_a_stop_of_one_string(stop, bound):
    model = chat().bind(stop=stop) if bound else chat()
    given = {} if bound else {"stop": stop}
    assert model.invoke("?", logits_processor=says("Yes."), **given).content == "Ye"


class Place(BaseModel):
    """A place."""

    city: str


class Spot(TypedDict):
    """A place."""

    city: str


SCHEMA = Place.model_json_schema()


@pytest.mark.parametrize(
    "given", ["json_object", {}, {"type": "xml"}, {"type": "json_schema"}, SCHEMA, {"schema": 5}]
)
def test_a_response_format_that_says_nothing_is_refused(given):
    with pytest.raises(ValueError, match="`response_format` has to be"):
        chat().invoke("?", response_format=given)


@pytest.mark.parametrize("temperature", [0, -0.0, 1e-8, 5e-324, 0.0009, 0.001])
@pytest.mark.parametrize("bound", [True, False])
def test_tiny_temperatures_are_greedy(temperature, bound):
    model = chat().bind(temperature=temperature) if bound else chat(temperature=temperature)
    answers = {model.invoke("?", max_tokens=8).content for _ in range(3)}
    assert answers == {chat(temperature=0).invoke("?", max_tokens=8).content}


@pytest.mark.parametrize("temperature", [-1e-9, float("nan"), True, "0"])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` has to be 0 .greedy. or more"):
        chat().invoke("?", temperature=temperature)


@pytest.mark.parametrize("parallel", [0, 1, "no", [], {}])
def test_parallel_tool_calls_is_true_or_false(parallel):
    with pytest.raises(ValueError, match="`parallel_tool_calls` has to be True or False"):
        chat().bind_tools([look]).invoke("?", parallel_tool_calls=parallel)


@pytest.mark.parametrize("stop", ["", [""], ["s.", ""], b"s.", 5])
@pytest.mark.parametrize("where", ["constructor", "bind", "call"])
def test_a_stop_that_is_no_text_is_refused(stop, where):
    with pytest.raises(ValueError, match="`stop` has to"):
        model = chat(stop=stop) if where == "constructor" else chat()
        model = model.bind(stop=stop) if where == "bind" else model
        model.invoke("?", **({"stop": stop} if where == "call" else {}))


@pytest.mark.parametrize("name", ["gpt-4o", "unknown-2", "Unknown", 5, b"unknown"])
@pytest.mark.parametrize("bound", [True, False])
def test_the_name_of_another_model_is_refused(name, bound):
    model = chat().bind(model=name) if bound else chat()
    with pytest.raises(ValueError, match="`model` of a call has to be the name of this model"):
        model.invoke("?", **({} if bound else {"model": name}))


@pytest.mark.parametrize(
    "said", ["<tool_call_response>", "I look.\n<tool_calls>", "<tool_call/>", "a <tool_call b"]
)
def test_a_call_that_is_begun_is_a_call(said):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = OURS["calls and results"]
    size, eos = len(tokenizer), tokenizer.eos_token_id
    pipeline = make_pipeline(ScriptedLlama(size, hashed_scores(size, 0), eos, eos), tokenizer)
    model = ChatLlamaStop(pipeline=pipeline, max_tokens=300, eos_reward=False).bind_tools([look])
    answer = model.invoke("?", logits_processor=Says(tokenizer, said))
    assert [call["name"] for call in answer.tool_calls] == ["look"]
    assert answer.content == said.partition("<tool_call")[0].rstrip()


@pytest.mark.parametrize(
    ("response_format", "keys"),
    [
        ({"type": "json_object"}, None),
        ({"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}}, {"city"}),
        (Place, {"city"}),
        (Spot, {"city"}),
        ({"type": "json_object", "schema": SCHEMA}, {"city"}),
        ({"type": "json_schema", "schema": SCHEMA, "strict": True}, {"city"}),
        ({"type": "json_schema", "json_schema": {"name": "p", "schema": Place}}, {"city"}),
    ],
)
@pytest.mark.parametrize("bound", [True, False])
def test_a_response_format(response_format, keys, bound):
    given = {"response_format": response_format}
    model = chat().bind(**given) if bound else chat()
    processor = says('{"city": "Oslo"}')
    answer = model.invoke("?", logits_processor=processor, **({} if bound else given))
    assert json.loads(answer.content) == {"city": "Oslo"}
    loose = model.invoke("?", logits_processor=says('{"a": 1}'), **({} if bound else given))
    assert keys is None or keys == {*json.loads(loose.content)}


def test_a_response_format_of_text_and_json_mode_without_a_schema():
    text = {"type": "text"}
    answer = chat().invoke("?", response_format=text, logits_processor=says("Yes."))
    assert answer.content == "Yes."
    structured = chat().with_structured_output(None, method="json_mode")
    assert structured.invoke("?", config=None, logits_processor=says('{"a": 1}')) == {"a": 1}


# What decoding cannot enforce

UNIQUE = {"type": "object", "properties": {"x": {"type": "array", "items": {"type": "integer"},
          "uniqueItems": True}}, "required": ["x"], "title": "unique"}  # fmt: skip


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize(("items", "fits"), [([1, 2], True), ([1, 1], False), ([3, 2, 3], False)])
def test_an_object_is_checked_where_decoding_could_not_enforce_it(method, items, fits):
    text = json.dumps({"x": items})
    if method == "function_calling":
        text = '<tool_call>\n{"name": "unique", "arguments": ' + text + "}\n</tool_call>"
    model = chat(logits_processor=[says(text)])
    answer = model.with_structured_output(UNIQUE, method=method, include_raw=True).invoke("go")
    assert (answer["parsed"] == {"x": items}) is fits
    assert fits or "non-unique" in str(answer["parsing_error"]) or method == "function_calling"


@pytest.mark.parametrize(("items", "fits"), [([1, 2], True), ([1, 1], False), ([], True)])
def test_a_call_is_checked_where_decoding_could_not_enforce_it(items, fits):
    tool = {"type": "function", "function": {"name": "f", "parameters": UNIQUE}}
    text = '<tool_call>\n{"name": "f", "arguments": ' + json.dumps({"x": items}) + "}\n</tool_call>"
    answer = chat().bind_tools([tool]).invoke("go", logits_processor=says(text))
    assert [call["args"] for call in answer.tool_calls] == ([{"x": items}] if fits else [])
    assert bool(answer.invalid_tool_calls) is not fits


def test_tools_of_one_name():
    tools = [
        {
            "type": "function",
            "function": {"name": "f", "parameters": {"properties": {key: {"type": "integer"}}}},
        }
        for key in "ab"
    ]
    for key in "ab":
        written = json.dumps({"name": "f", "arguments": {key: 1}})
        text = f"<tool_call>\n{written}\n</tool_call>"
        answer = chat().bind_tools(tools, tool_choice="f").invoke("go", logits_processor=says(text))
        assert answer.tool_calls[0]["args"] == {key: 1}


class Leaf(BaseModel):
    """A leaf or a twig."""

    name: str
    kids: list["Leaf"] = []


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        (None, {}),
        ({}, {}),
        ({"type": "object"}, {}),
        ({"type": "object", "properties": {}}, {}),
        (Leaf, {"name": "a", "kids": [{"name": "b", "kids": [{"name": "c"}]}]}),
    ],
)
@pytest.mark.parametrize("choice", ["any", None])
def test_tools_without_arguments_and_of_themselves(parameters, arguments, choice):
    tool = parameters
    if parameters is not Leaf:
        function = {"name": "Leaf", "description": "x"}
        function |= {} if parameters is None else {"parameters": parameters}
        tool = {"type": "function", "function": function}
    written = json.dumps({"name": "Leaf", "arguments": arguments})
    text = f"<tool_call>\n{written}\n</tool_call>"
    answer = chat().bind_tools([tool], tool_choice=choice).invoke("go", logits_processor=says(text))
    assert [call["args"] for call in answer.tool_calls] == [arguments]
