"""A tool-call format is one file and one line: here one of ten lines, from template to calls."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop import ChatLlamaStop
from langchain_llama_stop.chat import tool_formats
from langchain_llama_stop.chat.template import chat_ids
from langchain_llama_stop.chat.tool_formats import ToolFormat, call_grammar, parse_tool_calls
from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import ScriptedLlama, byte_bpe_tokenizer, hashed_scores, make_pipeline
from tests.fakes.chats import result, tool_of, weather

ACME = ToolFormat(
    recognises=lambda template: "[ACME_CALLS]" in template,
    trigger="[ACME_CALLS] [",
    name='{"name": ',
    arguments=', "arguments": ',
    end="}",
    between=", ",
    close="]",
    opening_tags=("[ACME_CALLS]",),
)

SNIPPET = Path(__file__).parents[3] / "docs" / "_snippets" / "tool_format.md"
PLAIN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
TEMPLATES = {
    "knows tools": "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% if m.tool_calls %}[ACME_CALLS] "
    "{{ m.tool_calls | map(attribute='function') | list | tojson }}"
    "{% endif %}{% endfor %}<assistant>",
    "knows none": PLAIN + "{# [ACME_CALLS] #}",
}
TOOLS = [
    tool_of(parameters={"type": "object", "properties": {"city": {"type": "string"}}}),
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
]
NAMES = {"weather", "now"}
CALLS = [("weather", {"city": "Rome"}), ("now", {})]
WRITTEN = (
    '[ACME_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}, '
    '{"name": "now", "arguments": {}}]'
)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(tool_formats, "FORMATS", (*tool_formats.FORMATS, ACME))


def tokenizer_with(tag, template):
    """A tokenizer in which the tag is text, an added token or a special one."""
    tokenizer = byte_bpe_tokenizer()
    if tag != "text":
        tokenizer.add_tokens(["[ACME_CALLS]"], special_tokens=tag == "special")
    tokenizer.chat_template = template
    return tokenizer


def pipeline_of(tokenizer, seed):
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    return make_pipeline(ScriptedLlama(size, hashed_scores(size, seed), eos, eos), tokenizer)


def test_the_how_to_shows_these_ten_lines():
    block = SNIPPET.read_text().partition("```python\n")[2].partition("```")[0]
    assert block.count("\n") >= 10
    definition = block[block.index("ACME = ") :]
    assert definition in Path(__file__).read_text()


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_its_template_is_recognised(template):
    assert tool_formats.tool_format(template).trigger == ACME.trigger
    assert tool_formats.tool_format(PLAIN).trigger == "<tool_call>"


def test_its_calls_are_written_and_read():
    assert ACME.write(CALLS) == WRITTEN
    for text in (WRITTEN, f"I look. {WRITTEN}"):
        parsed = parse_tool_calls(text, NAMES)
        assert (parsed.calls, parsed.invalid) == (CALLS, [])
        assert parsed.content == text.removesuffix(WRITTEN).rstrip()
    assert parse_tool_calls("Use [ACME_CALLS] to call.", NAMES).calls == []
    assert parse_tool_calls('[ACME_CALLS] [{"name": "other"}]', NAMES).invalid


def test_other_formats_are_read_as_before():
    text = '<tool_call>{"name": "now"}</tool_call>'
    assert parse_tool_calls(text, NAMES).calls == [("now", {})]
    assert parse_tool_calls('{"name": "now", "parameters": {}}', NAMES).calls == [("now", {})]


def test_a_stream_withholds_what_may_become_its_call():
    for end in range(len(WRITTEN)):
        assert tool_formats.call_begins(f"I look. {WRITTEN[:end]}") <= len("I look.") + (end == 0)


def test_a_template_without_tools_describes_them_in_this_format():
    tokenizer = tokenizer_with("text", TEMPLATES["knows none"])
    messages = [{"role": "user", "content": "?"}, weather(city="Rome"), result("Hot.")]
    ids = chat_ids(tokenizer, messages, template=tokenizer.chat_template, tools=TOOLS)
    text = tokenizer.decode(ids)
    shape = '[ACME_CALLS] [{"name": <the function>, "arguments": <its arguments as JSON>}]'
    assert shape in text and "<tool_call>" not in text
    assert '[ACME_CALLS] [{"name": "get_time", "arguments": {"city": "Rome"}}]' in text
    assert '[ACME_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]' in text


@settings(max_examples=30, deadline=None)
@given(
    tag=st.sampled_from(["text", "token", "special"]),
    choice=st.sampled_from(["any", "weather", "now", "auto", None]),
    several=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_from_template_to_grammar_to_calls(tag, choice, several, seed):
    tokenizer = tokenizer_with(tag, TEMPLATES["knows tools"])
    fmt = tool_formats.tool_format(tokenizer.chat_template, tokenizer.get_added_vocab())
    assert list(fmt.tokens) == ([] if tag == "text" else ["[ACME_CALLS]"])
    grammar = call_grammar(TOOLS, fmt, choice=choice, several=several)
    opts = GenerationOptions.parse({"grammar": grammar, "max_new_tokens": 100})
    response = generate(pipeline_of(tokenizer, seed), ["go"], opts)[0]
    parsed = parse_tool_calls(tokenizer.decode(response.token_ids[:-1]), NAMES)
    assert parsed.invalid == []
    if choice not in ("auto", None):
        assert parsed.calls and parsed.content == ""
        assert several or len(parsed.calls) == 1
        assert choice == "any" or [name for name, _ in parsed.calls] == [choice]


@pytest.mark.parametrize("tag", ["text", "token", "special"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_chat_model_uses_it(template, tag):
    pipeline = pipeline_of(tokenizer_with(tag, template), seed=3)
    model = ChatLlamaStop(pipeline=pipeline, max_tokens=120)
    bound = model.bind_tools(TOOLS, tool_choice="any")
    answer = bound.invoke("How is the weather?")
    assert answer.tool_calls and answer.content == ""
    streamed = None
    for chunk in bound.stream("How is the weather?"):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.content == ""
    assert [c["args"] for c in streamed.tool_calls] == [c["args"] for c in answer.tool_calls]
