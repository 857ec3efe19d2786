"""ChatLlamaStop on scripted models: one behaviour on every path."""

import asyncio
import json
from typing import Literal

import pytest
import torch
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    trim_messages,
)
from langchain_core.tools import tool
from pydantic import BaseModel
from typing_extensions import TypedDict

from langchain_llama_stop import ChatLlamaStop
from langchain_llama_stop._langchain.tools import format_tools
from langchain_llama_stop.chat.template import chat_ids
from langchain_llama_stop.chat.tool_formats import call_grammar, tool_format
from langchain_llama_stop.grammar.processor import GrammarProcessor
from tests.fakes import (
    TOKENIZERS,
    ScriptedLlama,
    byte_bpe_tokenizer,
    make_pipeline,
    scripted_answers,
)
from tests.standard import StandardUnitTests

TOKENIZER = TOKENIZERS["byte_bpe"]
QUESTION = "What is it?"
USER = [{"role": "user", "content": QUESTION}]


@tool
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


class Person(BaseModel):
    """Somebody."""

    name: str
    age: int


def pipeline(answer, messages=QUESTION, tools=()):
    """A pipeline whose model gives one answer to one conversation."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    ids = chat_ids(TOKENIZER, messages, template=TOKENIZER.chat_template, tools=tools)
    spoken = TOKENIZER(answer, add_special_tokens=False)["input_ids"]
    eos, size = TOKENIZER.eos_token_id, len(TOKENIZER)
    scores = scripted_answers({tuple(ids): spoken}, size, eos)
    return make_pipeline(ScriptedLlama(size, scores, eos, eos), TOKENIZER)


def chat(answer="It is a cat. And a dog.", messages=QUESTION, tools=(), **kwargs):
    return ChatLlamaStop(pipeline=pipeline(answer, messages, tools), max_tokens=200, **kwargs)


COLOURED = {
    "type": "function",
    "function": {"name": "paint", "parameters": {"type": "colour"}},
}


class TestStandard(StandardUnitTests):
    @property
    def chat_model_class(self):
        return ChatLlamaStop

    @property
    def chat_model_params(self):
        return {"model": "demo"}


def test_every_path_gives_the_same_answer():
    model = chat()
    expected = model.invoke(QUESTION)
    assert expected.content == "It is a cat. And a dog."
    chunks = list(model.stream(QUESTION))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert len(chunks) > 3 and chunks[-1].chunk_position == "last"
    for other in (
        whole,
        asyncio.run(model.ainvoke(QUESTION)),
        *model.batch([QUESTION, QUESTION]),
        model.invoke([HumanMessage([{"type": "text", "text": QUESTION}])]),
    ):
        assert other.content == expected.content
        assert other.usage_metadata == expected.usage_metadata
        assert other.response_metadata == expected.response_metadata
    assert expected.response_metadata["finish_reason"] == "stop"
    assert expected.response_metadata["eos_source"] == "model"
    assert expected.usage_metadata["output_tokens"] > 3


def test_stops_of_constructor_and_call_both_apply():
    model = chat(stop=["dog"])
    assert model.invoke(QUESTION).content == "It is a cat. And a "
    answer = model.invoke(QUESTION, stop=["cat"])
    assert (answer.content, answer.response_metadata["stop_reason"]) == ("It is a ", "cat")
    assert "".join(c.content for c in model.stream(QUESTION, stop=["cat"])) == "It is a "
    assert model.bind(stop=["And"]).invoke(QUESTION).content == "It is a cat. "


def test_the_token_that_ends_a_turn_ends_the_answer_though_no_config_names_it():
    tokenizer = TOKENIZERS["bytes"]  # its EOS is not the <|im_end|> of its template
    ids = chat_ids(
        tokenizer, [{"role": "user", "content": QUESTION}], template=tokenizer.chat_template
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    spoken = [*b"A cat.", end, *b"And on."]
    scores = scripted_answers({tuple(ids): spoken}, len(tokenizer), tokenizer.eos_token_id)
    eos = tokenizer.eos_token_id
    pipe = make_pipeline(ScriptedLlama(len(tokenizer), scores, eos, eos), tokenizer)
    assert ChatLlamaStop(pipeline=pipe).invoke(QUESTION).content == "A cat."


@pytest.mark.parametrize("choice", [None, "auto", False, {"type": "auto"}])
def test_a_call_of_the_models_own_is_found(choice):
    text = 'I add. <tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    formatted = chat().bind_tools([add]).kwargs["tools"]
    model = chat(text, tools=formatted).bind_tools([add], tool_choice=choice)
    answer = model.invoke(QUESTION)
    assert (answer.content, answer.response_metadata["finish_reason"]) == ("I add.", "tool_calls")
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [("add", {"a": 1, "b": 2})]
    whole = AIMessageChunk(content="")
    for chunk in model.stream(QUESTION):
        whole += chunk
    assert whole.content == "I add." and whole.tool_calls[0]["args"] == {"a": 1, "b": 2}
    assert chat(text).bind_tools([add], tool_choice="none").invoke(QUESTION).tool_calls == []


def test_a_call_of_the_models_own_is_held_to_its_tools():
    formatted = chat().bind_tools([add]).kwargs["tools"]
    for wrong in ("add(1, 2)", '\n{"name": "sub"', '\n{"name": "add", "arguments": {"c": "x"'):
        model = chat(f"So: <tool_call>{wrong}", tools=formatted).bind_tools([add])
        answer = model.invoke(QUESTION)
        assert answer.content == "So:" and answer.invalid_tool_calls == []
        assert [c["name"] for c in answer.tool_calls] == ["add"]
        assert all(isinstance(answer.tool_calls[0]["args"][n], int) for n in "ab")


def calling(answer, marked=None):
    """A chat model whose template tells of tools; its tags are single tokens if `marked` is set."""
    tokenizer = byte_bpe_tokenizer()
    if marked is not None:
        tokenizer.add_tokens(["<tool_call>", "</tool_call>"], special_tokens=marked)
    tokenizer.chat_template = TOKENIZER.chat_template + "{{ tools | length if tools }}<tool_call>"
    tools = format_tools([add])
    ids = chat_ids(tokenizer, USER, template=tokenizer.chat_template, tools=tools)
    spoken = tokenizer(answer, add_special_tokens=False)["input_ids"]
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    scores = scripted_answers({tuple(ids): spoken}, size, eos)
    pipe = make_pipeline(ScriptedLlama(size, scores, eos, eos), tokenizer)
    return ChatLlamaStop(pipeline=pipe, max_tokens=250).bind_tools([add])


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'


@pytest.mark.parametrize("marked", [None, False, True], ids=["spelled", "token", "special"])
@pytest.mark.parametrize(
    ("text", "stop", "content", "calls"),
    [
        (f" \n I add. {CALL}", None, " \n I add.", 1),
        (CALL, None, "", 1),
        (f"So:\n{CALL}\n{CALL}", None, "So:", 2),
        (' {"a": 1} or\n\n[2] ', None, ' {"a": 1} or\n\n[2] ', 0),
        ('As {"name": "add"} says.', None, 'As {"name": "add"} says.', 0),
        (f"A.\n{CALL}\n{CALL.replace('1', '7')}", ["7"], "A.", 1),
        (f"A.\n{CALL}", ["2"], "A.", 0),
        ("A b c.", ["c"], "A b ", 0),
    ],
)
def test_a_stream_with_tools_adds_up_to_the_answer(marked, text, stop, content, calls):
    model = calling(text, marked)
    answer = model.invoke(QUESTION, stop=stop)
    assert (answer.content, len(answer.tool_calls)) == (content, calls)
    assert all(c["args"] == {"a": 1, "b": 2} for c in answer.tool_calls)
    reason = "tool_calls" if calls else "stop"
    assert answer.response_metadata["finish_reason"] == reason
    assert answer.response_metadata["stop_reason"] == (stop[0] if stop else None)
    cut = stop is not None and "<tool_call>" in text
    assert [c["args"][:11] for c in answer.invalid_tool_calls] == ["<tool_call>"] * cut
    whole = AIMessageChunk(content="")
    for chunk in model.stream(QUESTION, stop=stop):
        whole += chunk
    assert (whole.content, whole.response_metadata) == (content, answer.response_metadata)
    for kind in ("tool_calls", "invalid_tool_calls"):
        ours, theirs = ([(c["name"], c["args"]) for c in getattr(m, kind)] for m in (answer, whole))
        assert ours == theirs


@pytest.mark.parametrize("marked", [False, True], ids=["token", "special"])
def test_a_demanded_call_may_have_tags_that_are_tokens(marked):
    model = calling("It is a cat.", marked)
    tokenizer = model.bound.pipeline.tokenizer
    answer = model.invoke(QUESTION, tool_choice="add", logprobs=True)
    tokens = [entry["token"] for entry in answer.response_metadata["logprobs"]["content"]]
    assert tokens[0] == "<tool_call>" and "</tool_call>" in tokens
    assert answer.tool_calls[0]["name"] == "add" and answer.content == ""
    assert tokenizer.convert_tokens_to_ids("<tool_call>") is not None


def test_a_model_may_think_before_it_calls():
    tokenizer = byte_bpe_tokenizer()
    tokens = ["<tool_call>", "</tool_call>", "<think>", "</think>"]
    tokenizer.add_tokens(tokens, special_tokens=False)
    fmt = tool_format("tools <tool_call>", tokenizer.get_added_vocab())
    grammar = call_grammar(format_tools([add]), fmt, choice=None)
    text = f"<think>Well.</think>{CALL}"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    processor = GrammarProcessor(
        tokenizer, grammar, prompt_length=0, max_new_tokens=200, eos_token_ids=[eos]
    )
    for end, wanted in enumerate([*ids, eos]):
        before = torch.tensor([ids[:end]], dtype=torch.long)  # (1, end)
        assert processor(before, torch.zeros(1, len(tokenizer)))[0, wanted].isfinite()


def test_a_tool_call_or_an_answer_of_a_schema():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    given = {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}
    answer = chat().bind_tools([add], strict=True, **given).invoke(QUESTION)
    assert answer.tool_calls or json.loads(answer.content).keys() == {"n"}


def test_an_answer_that_has_begun_is_continued():
    begun = [("human", QUESTION), ("ai", "It is a cat.")]
    ids = chat_ids(TOKENIZER, USER, template=TOKENIZER.chat_template)
    ids += TOKENIZER("It is a cat.", add_special_tokens=False)["input_ids"]
    spoken = TOKENIZER(" And a dog.", add_special_tokens=False)["input_ids"]
    eos, size = TOKENIZER.eos_token_id, len(TOKENIZER)
    scores = scripted_answers({tuple(ids): spoken}, size, eos)
    model = ChatLlamaStop(pipeline=make_pipeline(ScriptedLlama(size, scores, eos, eos), TOKENIZER))
    assert model.invoke(begun, continue_final_message=True).content == " And a dog."
    with pytest.raises(ValueError, match="`continue_final_message=True`, but is"):
        model.invoke(QUESTION, continue_final_message=True)


def test_log_probabilities_of_every_token():
    answer = chat().invoke(QUESTION, top_logprobs=2)
    entries = answer.response_metadata["logprobs"]["content"]
    assert len(entries) == answer.usage_metadata["output_tokens"]
    assert "".join(e["token"] for e in entries).startswith(answer.content)
    for entry in entries:
        assert entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["logprob"] >= entry["logprob"]
    landed = chat().invoke(QUESTION, logprobs=True, max_tokens=entries_until(entries, "."))
    assert landed.response_metadata["eos_source"] == "reward"
    assert landed.response_metadata["logprobs"]["content"][-1]["logprob"] is None
    assert "logprobs" not in chat().invoke(QUESTION).response_metadata


def entries_until(entries, text):
    """Tokens up to the first that ends with a text, and EOS."""
    return next(n for n, e in enumerate(entries) if e["token"].endswith(text)) + 2


def test_the_profile_is_that_of_the_models_config():
    model = chat()
    window = model.pipeline.model.config.max_position_embeddings
    assert model.profile["max_input_tokens"] == window and model.profile["tool_calling"]
    assert "max_input_tokens" not in ChatLlamaStop(model="demo").profile


def test_control_tokens_in_messages_are_text_unless_asked_otherwise():
    eos = TOKENIZER.eos_token
    plain, read = (
        chat(split_special_tokens=value)._request([HumanMessage(eos)], None, {}).prompt_ids
        for value in (None, False)
    )
    assert read.count(TOKENIZER.eos_token_id) == plain.count(TOKENIZER.eos_token_id) + 1


BEGUN = [("human", QUESTION), ("ai", "It is")]


@pytest.mark.parametrize(
    "choice",
    [
        *("any", "add", "required", True, {"type": "any"}),
        {"type": "function", "function": {"name": "add"}},
        {"type": "tool", "name": "add"},
    ],
)
def test_a_demanded_call_is_made_whatever_the_model_says(choice):
    for answer in (
        chat().bind_tools([add], tool_choice=choice).invoke(QUESTION),
        chat().invoke(QUESTION, tools=[add], tool_choice=choice),
        chat().bind(tools=[add]).invoke(QUESTION, tool_choice=choice),
    ):
        call = answer.tool_calls[0]
        assert call["name"] == "add" and call["args"].keys() == {"a", "b"}


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_of_its_class(method):
    found = chat().with_structured_output(Person, method=method).invoke(QUESTION)
    assert isinstance(found, Person)
    found = (
        chat()
        .with_structured_output(Person.model_json_schema(), method=method, include_raw=True)
        .invoke(QUESTION)
    )
    assert found["parsed"].keys() == {"name", "age"} and found["parsing_error"] is None
    assert isinstance(found["raw"], AIMessage)


class Pet(BaseModel):
    """An animal, with a property named like a keyword."""

    type: Literal["cat", "dog"]
    name: str


class Node(BaseModel):
    """A list, which refers to itself."""

    value: int
    next: "Node | None"


class Colour(TypedDict):
    """A colour."""

    name: str


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize(
    ("schema", "keys"),
    [
        (Pet, None),
        (Node, None),
        (Colour, {"name"}),
        ({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}, {"a"}),
        ({"$defs": {"A": Person.model_json_schema()}, "$ref": "#/$defs/A"}, {"name", "age"}),
        ({"name": "paint", "parameters": Person.model_json_schema()}, {"name", "age"}),
    ],
)
def test_structured_output_of_every_kind_of_schema(schema, keys, method):
    found = chat().with_structured_output(schema, method=method).invoke(QUESTION)
    assert found.keys() == keys if keys else isinstance(found, schema)


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("own", [{"grammar": "start: /a+/"}, {"json_schema": {"type": "integer"}}])
def test_structured_output_replaces_what_the_constructor_asks_for(own, method):
    model = chat(**own).with_structured_output(Person, method=method)
    assert isinstance(model.invoke(QUESTION), Person)


def test_tokens_of_messages_are_counted_as_they_are_sent():
    model = chat()
    count = model.get_num_tokens_from_messages([HumanMessage(QUESTION)])
    assert count == model.invoke(QUESTION).usage_metadata["input_tokens"]
    with_tools = model.get_num_tokens_from_messages([HumanMessage(QUESTION)], tools=[add])
    assert with_tools == (model.bind_tools([add]).invoke(QUESTION).usage_metadata["input_tokens"])


@pytest.mark.parametrize("strategy", ["first", "last"])
def test_the_model_counts_for_trim_messages(strategy):
    model = chat()
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("One?"),
        AIMessage("Two."),
        HumanMessage("3"),
    ]
    most = model.get_num_tokens_from_messages(messages) - 1
    kept = trim_messages(messages, max_tokens=most, token_counter=model, strategy=strategy)
    assert 0 < len(kept) < 4 and model.get_num_tokens_from_messages(kept) <= most
    assert model.get_num_tokens_from_messages([]) == 0
    assert trim_messages(messages, max_tokens=1, token_counter=model, strategy=strategy) == []


def test_the_hint_stands_in_the_last_turn():
    hinted = f"{QUESTION}\n\nIn 8 sentences."
    model = chat(messages=hinted, answer_hint="In {sentences} sentences.")
    assert model.invoke(QUESTION).content == "It is a cat. And a dog."


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ChatLlamaStop(), "Either `model` .* or `pipeline` has to be given, but neither"),
        (lambda: ChatLlamaStop(model="demo", pipeline=pipeline("x")), "but both are"),
        (lambda: ChatLlamaStop(model="demo", nonsense=1), "Unknown option 'nonsense'"),
        (lambda: ChatLlamaStop(model="demo", max_tokens=0), "`max_new_tokens` has to be"),
        (lambda: ChatLlamaStop(model="demo", timeout=0), "`timeout` has to be over 0"),
        (lambda: ChatLlamaStop(pipeline="x"), "`pipeline` has to be a transformers pipeline"),
        (lambda: chat().invoke([]), "`messages` has to hold at least one message"),
        (
            lambda: chat().invoke([("human", "a"), ("ai", "b")], continue_final_message="yes"),
            "`continue_final_message` has to be True or False, but is 'yes'",
        ),
        (
            lambda: chat().bind_tools([add], tool_choice="sub"),
            "`tool_choice` has to be .* 'add', but is 'sub'",
        ),
        (lambda: chat().with_structured_output(Person, method="xml"), "`method` has to be one of"),
        (
            lambda: chat().with_structured_output({"title": "x", "type": "foo"}),
            "`schema` has to be a schema .*`type` has to be one .*'foo'",
        ),
        (lambda: chat().with_structured_output({}), "`schema` has to describe the answers"),
        (lambda: chat().with_structured_output(3), "`schema` has to be a Pydantic class"),
        (
            lambda: chat().with_structured_output({"type": "array"}, method="function_calling"),
            "`schema` has to describe an object for 'function_calling', but its type is 'array'",
        ),
        (lambda: chat().bind_tools([{"type": "web_search"}]), "`tools` has to hold|has to have a"),
        (
            lambda: chat(grammar="start: /a+/").bind_tools([add]).invoke(QUESTION),
            "`grammar` and `tools` cannot go together",
        ),
        (
            lambda: chat(return_full_text=True).bind_tools([add]).invoke(QUESTION),
            "`return_full_text` has to be False with `tools`",
        ),
        *(
            (
                lambda given=given: chat().invoke(BEGUN, continue_final_message=True, **given),
                "`continue_final_message` has to be False with",
            )
            for given in (
                {"json_schema": {"type": "object"}},
                {"grammar": "start: /a+/"},
                {"tools": [add], "tool_choice": "any"},
                {"tools": [add], "tool_choice": "add"},
            )
        ),
        (
            lambda: chat().bind_tools([{"type": "function", "function": {"parameters": {}}}]),
            "Each of `tools` has to have a name",
        ),
        (lambda: chat().bind_tools(add), "`tools` has to be a list of tools"),
        (lambda: chat().invoke(QUESTION, tools=[3]), "`tools` has to hold functions"),
        (lambda: chat().invoke(QUESTION, tools=[add], tool_choice="sub"), "but is 'sub'"),
        (lambda: chat().bind_tools([add], tool_choice=[]), "`tool_choice` has to be .* but is .."),
        (
            lambda: chat().bind_tools([add], tool_choice={"type": "tool", "name": "sub"}),
            "but is {'type': 'tool', 'name': 'sub'}",
        ),
        (
            lambda: chat().bind_tools([], tool_choice="any"),
            "has to be one of 'auto', 'none' where `tools` is empty, but is 'any'",
        ),
        (
            lambda: chat().bind_tools([add], response_format={"type": "xml"}),
            "`response_format` has to be {'type': 'json_schema'",
        ),
        (
            lambda: chat().invoke([HumanMessage([{"type": "text"}])]),
            "A block of type 'text' has to hold a string under `text`",
        ),
        (lambda: chat().invoke(QUESTION, model="gpt"), "`model` of a call has to be the name of"),
        (
            lambda: chat().invoke(QUESTION, parallel_tool_calls="no"),
            "`parallel_tool_calls` has to be True or False",
        ),
        (lambda: chat().bind_tools([3]), "`tools` has to hold functions .* but holds 3"),
        (
            lambda: chat().bind_tools(
                [{"type": "function", "function": {"name": "now", "parameters": [3]}}]
            ),
            "The schema of the tool 'now' has to be a dict, but is",
        ),
        (
            lambda: chat().bind_tools([COLOURED]),
            "schema of the tool 'paint' has to be .*`type` has to be one .*'colour'",
        ),
        (lambda: chat().invoke(QUESTION, nonsense=1), "Unknown option 'nonsense'"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_earlier_thoughts_are_left_out():
    thought = [{"type": "reasoning", "reasoning": "Well."}, {"type": "text", "text": "A cat."}]
    thought += [{"type": "thinking", "thinking": "Hm."}]
    counts = [
        chat().get_num_tokens_from_messages([HumanMessage(QUESTION), AIMessage(said)])
        for said in (thought, "A cat.")
    ]
    assert counts[0] == counts[1]


def test_a_whole_conversation_is_rendered():
    messages = [
        SystemMessage("Be brief."),
        HumanMessage("1 + 2?"),
        AIMessage("", tool_calls=[{"name": "add", "args": {"a": 1, "b": 2}, "id": "7"}]),
        ToolMessage("3", tool_call_id="7", name="add"),
        HumanMessage(QUESTION),
    ]
    assert chat().get_num_tokens_from_messages(messages) > 40
    assert isinstance(chat().invoke(messages).content, str)


def test_tokens_can_be_counted_in_a_way_of_ones_own():
    assert chat(custom_get_token_ids=lambda text: [7]).get_token_ids("It is.") == [7]
