"""In every format: what is told is what the grammar allows and what the parser reads."""

import json
import os

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from langchain_llama_stop import ChatLlamaStop
from langchain_llama_stop.chat import tool_formats
from langchain_llama_stop.chat.tool_formats import (
    FORMATS,
    call_begins,
    call_grammar,
    parse_tool_calls,
    tool_format,
)
from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.grammar.completion import grammar_tokens
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import ScriptedLlama, byte_tokenizer, hashed_scores, make_pipeline
from tests.fakes.chats import Says

SEEDS = 8 if os.environ.get("LLAMA_STOP_LONG") else 1
NAMES = {id(value): name for name, value in vars(tool_formats).items() if name.isupper()}
all_formats = pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: NAMES[id(fmt)])
all_tags = pytest.mark.parametrize("tags", ["text", "special"])

WORDS = {
    "LFM": "{# List of tools: #}",
    "HUNYUAN": "{# <tool_sep{}> #}",
    "MINIMAX_M1": "{{ '<tool_calls>\\n{\"name\": ' }}",
    "COMMAND_R": "{{ 'Action:\\n```json' }}",
    "GLM": "<arg_key>",
}
"""What a template of some formats says besides the calls themselves."""


def template_of(fmt):
    """A template that such a format recognises."""
    calls = fmt.write([("f", {"a": "b", "c": 1})]).replace("{", "").replace("}", "")
    words = f"{WORDS.get(NAMES[id(fmt)], '')}{{# {calls} #}}"
    if fmt.plain:
        words = "<|python_tag|>"
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    return "{% if tools %}{{ tools | tojson }}{% endif %}" + words + template


def tokenizer_of(fmt, tags):
    tokenizer = byte_tokenizer()
    if tags != "text":
        texts = fmt.write([("f", {"a": "b", "c": 1}), ("f", {})])
        tokens = [
            *("<think>", "</think>", "<|im_start|>", '<|"|>', "[ARGS]", "[CALL_ID]"),
            *(
                "</arg_value>",
                "<arg_key>",
                "</arg_key>",
                "<arg_value>",
                "<｜tool▁sep｜>",
                "<｜tool▁call▁begin｜>",
            ),
            *("<｜tool▁call▁end｜>", "<|tool_call_begin|>", "<|tool_call_end|>"),
            *fmt.opening_tags,
            *fmt.closing_tags,
        ]
        found = [t for t in tokens if t in texts or "think" in t or "im_start" in t]
        found = [t for t in found if t[0] in "<[" and t[-1] in ">]"]
        tokenizer.add_tokens(found, special_tokens=tags == "special")
    tokenizer.chat_template = template_of(fmt)
    return tokenizer


def format_of(fmt, tokenizer):
    eos = tokenizer.eos_token_id
    vocabulary = {t: i for t, i in tokenizer.get_added_vocab().items() if i != eos}
    return tool_format(tokenizer.chat_template, vocabulary)


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def accepts(tokenizer, grammar, text):
    """Whether a grammar takes a text, as llguidance and our own rules see it."""
    matcher = grammar_tokens(tokenizer).compiled(grammar.lark).deep_copy()
    ids = ids_of(tokenizer, text)
    taken = matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids)
    texts = grammar_tokens(tokenizer).vocabulary.texts
    place = grammar.parser.begin()
    for token in ids:
        named = place.after(chr(256 + token))
        place = named if named is not None else place.after(texts[token])
        if place is None:
            break
    ours = place is not None and place.accepting
    assert ours == bool(taken and matcher.is_accepting())
    return ours


HARMLESS = st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"], exclude_characters="[]<>|｜")
TEXTS = st.one_of(
    st.text(HARMLESS, max_size=8),
    st.sampled_from(
        [
            "",
            "a < b",
            "line\nline",
            '"quoted"',
            "it's",
            "</",
            "\\n",
            "5",
            "true",
            " x ",
            "a\n",
            "\nb",
        ]
    ),
)
KINDS = {
    "text": ({"type": "string"}, TEXTS),
    "few": ({"enum": ["red", "green", "a b"]}, st.sampled_from(["red", "green", "a b"])),
    "short": ({"type": "string", "maxLength": 9, "pattern": "^[a-z]+$"}, st.just("abc")),
    "count": ({"type": "integer"}, st.integers(-999, 999)),
    "share": ({"type": "number"}, st.integers(-99, 99).map(lambda n: n / 4)),
    "flag": ({"type": "boolean"}, st.booleans()),
    "nothing": ({"type": "null"}, st.none()),
    "maybe": (
        {"anyOf": [{"type": "string"}, {"type": "null"}]},
        st.sampled_from([None, "some", "a\nb"]),
    ),
    "texts": ({"type": "array", "items": {"type": "string"}}, st.lists(TEXTS, max_size=3)),
    "inner": (
        {
            "type": "object",
            "properties": {"deep": {"type": "string"}, "on": {"type": "boolean"}},
            "required": ["deep", "on"],
        },
        st.builds(lambda deep, on: {"deep": deep, "on": on}, TEXTS, st.booleans()),
    ),
}


@st.composite
def tools_and_calls(draw):
    parameters, calls = {}, []
    for name in draw(
        st.lists(st.sampled_from(["get", "get_time", "a-1"]), min_size=1, unique=True)
    ):
        kinds = draw(st.lists(st.sampled_from(sorted(KINDS)), unique=True, max_size=4))
        needed = draw(st.lists(st.sampled_from(kinds), unique=True)) if kinds else []
        parameters[name] = {
            "type": "object",
            "properties": {kind: KINDS[kind][0] for kind in kinds},
            "required": [kind for kind in kinds if kind in needed],
        }
    for name in draw(st.lists(st.sampled_from(sorted(parameters)), min_size=1, max_size=3)):
        schema = parameters[name]
        kinds = [k for k in schema["properties"] if k in schema["required"] or draw(st.booleans())]
        calls.append((name, {kind: draw(KINDS[kind][1]) for kind in kinds}))
    return parameters, calls


def described(parameters):
    return [
        {"type": "function", "function": {"name": name, "parameters": schema}}
        for name, schema in parameters.items()
    ]


TEXT_TOOL = {"get": {"type": "object", "properties": {"text": {"type": "string"}}}}


@all_formats
@all_tags
@given(drawn=tools_and_calls(), free=st.booleans())
@example(
    drawn=(TEXT_TOOL, [("get", {"text": "a < b"}), ("get", {"text": ""}), ("get", {})]), free=True
)
@settings(max_examples=4, deadline=None, phases=[Phase.explicit, Phase.generate])
def test_what_is_told_is_allowed_and_read(fmt, tags, drawn, free):
    parameters, calls = drawn
    tokenizer = tokenizer_of(fmt, tags)
    found = format_of(fmt, tokenizer)
    assert found.recognises is fmt.recognises
    text = found.write(calls)
    parsed = parse_tool_calls(text, parameters)
    assert (parsed.calls, parsed.invalid, parsed.content) == (calls, [], "")
    assert all(call_begins(text[:end]) == 0 for end in range(len(text)))
    demanded = calls[0][0] if len(calls) == 1 else "any"
    tools, choice = described(parameters), None if free else demanded
    for several in (True, False):
        grammar = call_grammar(tools, found, choice=choice, several=several)
        assert accepts(tokenizer, grammar, text) is (several or len(calls) == 1)


@all_formats
@all_tags
@pytest.mark.parametrize("choice", ["any", "get", None])
def test_what_does_not_fit_is_not_allowed(fmt, tags, choice):
    tokenizer = tokenizer_of(fmt, tags)
    found = format_of(fmt, tokenizer)
    schema = {
        "type": "object",
        "properties": {"count": {"type": "integer"}, "few": {"enum": ["red", "green"]}},
        "required": ["count"],
    }
    grammar = call_grammar(described({"get": schema}), found, choice=choice)
    assert accepts(tokenizer, grammar, found.write([("get", {"count": 5, "few": "red"})]))
    for name, arguments in [
        ("get", {"count": "five"}),
        ("get", {"count": 5, "few": "blue"}),
        ("get", {}),
        ("get", {"count": 5, "other": 1}),
        ("other", {"count": 5}),
    ]:
        assert not accepts(tokenizer, grammar, found.write([(name, arguments)])), arguments
    assert accepts(tokenizer, grammar, "It is five.") is (choice is None)


@all_formats
@all_tags
def test_a_thought_holds_no_call(fmt, tags):
    tokenizer = tokenizer_of(fmt, tags)
    found = format_of(fmt, tokenizer)
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    grammar = call_grammar(described({"get": schema}), found, choice=None)
    begun = call_grammar(described({"get": schema}), found, choice=None, thought="</think>")
    call, wrong = found.write([("get", {"text": "a"})]), found.write([("other", {"b": 1})])
    thought = call_of_text = "I could write it."
    if tags != "text" or not any(t in wrong for t in tokenizer.get_added_vocab()):
        thought = f"I could write {wrong} or\n{call}"
    for grammar_of, opening in ((grammar, "<think>"), (grammar, "\n<think>\n"), (begun, "")):
        for rest in ("", "It is.", call, f"I look.\n{call}" if not found.plain else call):
            assert accepts(tokenizer, grammar_of, f"{opening}{thought}</think>{rest}")
        assert accepts(tokenizer, grammar_of, f"{opening}{call_of_text}")
        if not found.plain:
            assert not accepts(tokenizer, grammar_of, f"{opening}a</think>I look. {wrong}")


@pytest.mark.slow
@all_formats
@all_tags
@pytest.mark.parametrize("choice", ["any", "get"])
def test_any_model_that_has_to_call_calls(fmt, tags, choice):
    tokenizer = tokenizer_of(fmt, tags)
    found = format_of(fmt, tokenizer)
    schema = {
        "type": "object",
        "properties": {kind: KINDS[kind][0] for kind in ("text", "count", "few", "inner", "texts")},
        "required": ["text", "count", "inner"],
    }
    parameters = {"get": schema, "get_time": {"type": "object", "properties": {}}}
    grammar = call_grammar(described(parameters), found, choice=choice)
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    for seed in range(SEEDS):
        scores = hashed_scores(size, 2 * seed + (choice == "get"))
        pipeline = make_pipeline(ScriptedLlama(size, scores, eos, eos), tokenizer)
        options = GenerationOptions.parse({"grammar": grammar, "max_new_tokens": 600})
        response = generate(pipeline, ["go"], options)[0]
        text = tokenizer.decode([i for i in response.token_ids if i != eos])
        parsed = parse_tool_calls(text, parameters)
        assert parsed.calls and not parsed.invalid and not parsed.content, text
        for name, arguments in parsed.calls:
            assert not [*Draft202012Validator(parameters[name]).iter_errors(arguments)]
            assert choice in ("any", name)


@pytest.mark.slow
@all_formats
@all_tags
def test_a_stream_tells_the_text_before_a_call_as_it_comes(fmt, tags):
    if fmt.plain:
        pytest.skip("such calls follow no text")
    tokenizer = tokenizer_of(fmt, tags)
    size, eos = len(tokenizer), tokenizer.eos_token_id
    pipeline = make_pipeline(ScriptedLlama(size, hashed_scores(size, 0), eos, eos), tokenizer)
    chat = ChatLlamaStop(pipeline=pipeline, max_tokens=600, eos_reward=False)
    call = ("get", {"text": "a < b"})
    written = format_of(fmt, tokenizer).write([call])
    says = Says(tokenizer, f"I look it up.\n{written}")
    given = {"tools": described(TEXT_TOOL), "logits_processor": says}
    chunks = [*chat.stream("?", **given)]
    whole = sum(chunks[1:], chunks[0])
    answer = chat.invoke(
        "?", **given | {"logits_processor": Says(tokenizer, f"I look it up.\n{written}")}
    )
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [call]
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [call]
    assert whole.content == answer.content == "I look it up."
    before = [chunk.content for chunk in chunks if chunk.content]
    assert len(before) > 5 and not chunks[-1].content
    assert json.dumps(whole.content) == json.dumps("".join(before))
