"""Tool calls as each family of models writes them."""

import time

import pytest
from langchain_core.messages import HumanMessage

from langchain_llama_stop import ChatLlamaStop
from langchain_llama_stop.chat import tool_formats
from langchain_llama_stop.chat.template import knows_tools
from langchain_llama_stop.chat.tool_formats import (
    FORMATS,
    call_begins,
    is_known_format,
    parse_tool_calls,
    tool_format,
)
from tests.fakes import ScriptedLlama, hashed_scores, make_pipeline
from tests.fakes.chats import Says
from tests.fakes.templates import OURS, REAL, tokenizer_of

PARAMETERS = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "near": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
        "where": {"type": "array", "items": {"type": "number"}},
    },
}
TOOLS = {"get_time": PARAMETERS, "get_news": PARAMETERS}
OSLO, BONN = ("get_time", {"city": "Oslo"}), ("get_news", {"city": "Bonn"})
MIXED = ("get_time", {"city": "5", "days": 5, "near": True, "where": [1, 2.5]})
_R1 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
_INVOKE = '<｜DSML｜invoke name="get_time">\n'

ANSWERS = {
    "mistral": ('[TOOL_CALLS] [{"name": "get_time", "arguments": {"city": "Oslo"}}]', [OSLO]),
    "mistral with ids": (
        '[TOOL_CALLS] [{"name": "get_time", "arguments": {"city": "Oslo"}, "id": "abcdefghi"}, '
        '{"name": "get_news", "arguments": {"city": "Bonn"}, "id": "abcdefghj"}]',
        [OSLO, BONN],
    ),
    "mistral, args": (
        '[TOOL_CALLS]get_time[ARGS]{"city": "Oslo"}[TOOL_CALLS]get_news[ARGS]{"city": "Bonn"}',
        [OSLO, BONN],
    ),
    "mistral, call id": ('[TOOL_CALLS]get_time[CALL_ID]abcdefghi[ARGS]{"city": "Oslo"}', [OSLO]),
    "mistral, name only": ('[TOOL_CALLS]get_time{"city": "Oslo"}', [OSLO]),
    "qwen coder": (
        "<tool_call>\n<function=get_time>\n<parameter=city>\nOslo\n</parameter>\n</function>\n"
        "</tool_call>",
        [OSLO],
    ),
    "qwen coder, types": (
        "<tool_call>\n<function=get_time>\n<parameter=city>\n5\n</parameter>\n"
        "<parameter=days>\n5\n</parameter>\n<parameter=near>\nTrue\n</parameter>\n"
        "<parameter=where>\n[1, 2.5]\n</parameter>\n</function>\n</tool_call>",
        [MIXED],
    ),
    "qwen coder, two": (
        "<tool_call><function=get_time><parameter=city>Oslo</parameter></function></tool_call>\n"
        "<tool_call><function=get_news><parameter=city>Bonn</parameter></function></tool_call>",
        [OSLO, BONN],
    ),
    "functionary": (
        '<function=get_time>{"city": "Oslo"}</function><function=get_news>{"city": "Bonn"}'
        "</function>",
        [OSLO, BONN],
    ),
    "functions in tags": (
        '<tool_call><function=get_time>{"city": "Oslo"}</function></tool_call>',
        [OSLO],
    ),
    "elements without tags": (
        "<function=get_time>\n<parameter=city>\nOslo\n</parameter>\n</function>",
        [OSLO],
    ),
    "glm": (
        "<tool_call>get_time\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>",
        [OSLO],
    ),
    "glm, types": (
        "<tool_call>get_time<arg_key>city</arg_key><arg_value>5</arg_value><arg_key>days</arg_key>"
        "<arg_value>5</arg_value><arg_key>near</arg_key><arg_value>true</arg_value>"
        "<arg_key>where</arg_key><arg_value>[1, 2.5]</arg_value></tool_call>",
        [MIXED],
    ),
    "glm, no arguments": ("<tool_call>get_time</tool_call>", [("get_time", {})]),
    "granite": ('<|tool_call|>[{"name": "get_time", "arguments": {"city": "Oslo"}}]', [OSLO]),
    "phi": (
        '<|tool_call|>[{"name": "get_time", "arguments": {"city": "Oslo"}}]<|/tool_call|>',
        [OSLO],
    ),
    "deepseek r1": (
        f'{_R1}get_time\n```json\n{{"city": "Oslo"}}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_news\n```json\n"
        '{"city": "Bonn"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        [OSLO, BONN],
    ),
    "deepseek v3.1": (
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>"
        '{"city": "Oslo"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_news<｜tool▁sep｜>'
        '{"city": "Bonn"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        [OSLO, BONN],
    ),
    "deepseek v3.2": (
        f'<｜DSML｜function_calls>\n{_INVOKE}<｜DSML｜parameter name="city" string="true">5'
        "</｜DSML｜parameter>\n"
        '<｜DSML｜parameter name="days" string="false">5</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="near" string="false">true</｜DSML｜parameter>\n'
        '<｜DSML｜parameter name="where" string="false">[1, 2.5]</｜DSML｜parameter>\n'
        "</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        [MIXED],
    ),
    "kimi": (
        "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_time:0"
        '<|tool_call_argument_begin|>{"city": "Oslo"}<|tool_call_end|><|tool_call_begin|>'
        'functions.get_news:1<|tool_call_argument_begin|>{"city": "Bonn"}<|tool_call_end|>'
        "<|tool_calls_section_end|>",
        [OSLO, BONN],
    ),
    "nemotron": (
        '<TOOLCALL>[{"name": "get_time", "arguments": {"city": "Oslo"}}]</TOOLCALL>',
        [OSLO],
    ),
    "minimax m1": (
        '<tool_calls>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n'
        '{"name": "get_news", "arguments": {"city": "Bonn"}}\n</tool_calls>',
        [OSLO, BONN],
    ),
    "cohere": (
        '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "get_time", '
        '"parameters": {"city": "Oslo"}}]<|END_ACTION|>',
        [OSLO],
    ),
    "gemma": ('```json\n{"name": "get_time", "parameters": {"city": "Oslo"}}\n```', [OSLO]),
}


@pytest.mark.parametrize("text", ANSWERS)
def test_calls_are_read(text):
    written, calls = ANSWERS[text]
    for before in ("", "I look.\n") if text != "gemma" else ("",):
        parsed = parse_tool_calls(before + written, TOOLS)
        assert (parsed.content, parsed.calls, parsed.invalid) == (before.rstrip(), calls, [])
        for end in range(len(before), len(before + written)):
            assert call_begins((before + written)[:end]) <= len(before)


@pytest.mark.parametrize("text", ANSWERS)
def test_a_part_of_a_call_is_no_other_call(text):
    written, calls = ANSWERS[text]
    for end in range(len(written)):
        parsed = parse_tool_calls(written[:end], TOOLS)
        assert parsed.calls == calls[: len(parsed.calls)]


@pytest.mark.parametrize("text", ANSWERS)
def test_another_tool_is_an_invalid_call(text):
    parsed = parse_tool_calls(ANSWERS[text][0], {"other": {}})
    assert parsed.calls == []
    assert text == "gemma" or all("not 'get_" in error for _, error in parsed.invalid)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.trigger)
def test_what_a_format_writes_it_reads(fmt):
    parsed = parse_tool_calls(fmt.write([OSLO, BONN]), TOOLS)
    assert (parsed.content, parsed.calls, parsed.invalid) == ("", [OSLO, BONN], [])


FORMAT_OF = {
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "HERMES",
    "Qwen-Qwen2.5-7B-Instruct": "HERMES",
    "ibm-granite-granite-4.0": "HERMES",
    "Qwen3.5-4B": "QWEN_CODER",
    "GLM-4.6": "GLM",
    "meetkai-functionary-medium-v3.1": "FUNCTIONARY",
    "poolside-Laguna-S-2.1": "GLM",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "DEEPSEEK",
    "deepseek-ai-DeepSeek-V3.2": "DEEPSEEK_V3_2",
    "Kimi-K2-Thinking": "KIMI",
    "mistralai-Ministral-3-14B-Reasoning-2512": "MISTRAL_ARGS",
    "ibm-granite-granite-3.3-2B-Instruct": "GRANITE",
    "NVIDIA-Nemotron-Nano-v2": "NEMOTRON",
    "MiniMax-M1": "MINIMAX_M1",
    "Apriel-1.6-15b-Thinker-fixed": "TOOL_CALLS",
    "Cohere2MoE": "COHERE",
    "CohereForAI-c4ai-command-r-plus-tool_use": "COMMAND_R",
    "MiniMax-M2": "MINIMAX",
    "tencent-Hy3": "HUNYUAN",
    "LFM2-8B-A1B": "LFM",
    "LFM2.5-Instruct": "LFM",
    "google-gemma-4-31B-it": "GEMMA",
    "google-gemma-4-31B-it-interleaved": "GEMMA",
    "deepseek-ai-DeepSeek-V4": "DEEPSEEK_V4",
}


@pytest.mark.parametrize("name", FORMAT_OF)
def test_real_templates_are_recognised(name):
    if name not in REAL:
        pytest.skip("no ../shared/data/chat_templates beside the clone")
    template = REAL[name].read_text(encoding="utf-8")
    wanted = getattr(tool_formats, FORMAT_OF[name])
    assert is_known_format(template) and tool_format(template).recognises is wanted.recognises


@pytest.mark.parametrize(
    "text",
    [t for t in ANSWERS if t not in ("gemma", "mistral with ids", "functions in tags")],
)
@pytest.mark.parametrize("parallel", [True, False])
def test_a_model_calls_in_its_own_form(text, parallel):
    """From template to calls, with the tool's schema, where the model may choose."""
    written, calls = ANSWERS[text]
    words = f"{written}<arg_key>" if "glm" in text else written
    words = words.replace('"', "").replace("%", "")
    rule = "{% if tools %}{{ tools | tojson }}{% endif %}{# " + words + " #}"
    tokenizer = tokenizer_of(rule + OURS["any roles"])
    size, eos = len(tokenizer), tokenizer.eos_token_id
    pipeline = make_pipeline(ScriptedLlama(size, hashed_scores(size, 0), eos, eos), tokenizer)
    chat = ChatLlamaStop(pipeline=pipeline, max_tokens=600, eos_reward=False)
    tools = [
        {"type": "function", "function": {"name": name, "parameters": parameters}}
        for name, parameters in TOOLS.items()
    ]
    given = {"tools": tools, "parallel_tool_calls": parallel}
    answer = chat.invoke("?", logits_processor=Says(tokenizer, written), **given)
    found = [(call["name"], call["args"]) for call in answer.tool_calls]
    assert found == (calls if parallel else calls[:1])


COHERE_LIKE = '{{ tools }}{% raw %}{"tool_name": "x", "parameters": {}}{% endraw %}'


@pytest.mark.parametrize(
    ("template", "known"),
    [
        (COHERE_LIKE, False),
        ("{{ tools }} function_call {{ '\"parameters\"' }}", False),
        ("{{ tools }}<|start_header_id|>{{ '\"parameters\"' }}", True),
        ("{{ tools }}<tool_call>", True),
    ],
)
def test_an_unknown_form_is_warned_of(template, known, caplog):
    tokenizer = tokenizer_of(template + "{% for m in messages %}{{ m.content }}{% endfor %}")
    size, eos = len(tokenizer), tokenizer.eos_token_id
    pipeline = make_pipeline(ScriptedLlama(size, hashed_scores(size, 0), eos, eos), tokenizer)
    chat = ChatLlamaStop(pipeline=pipeline, max_tokens=3)
    tool = {"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}
    chat.bind_tools([tool]).invoke([HumanMessage("?")])
    assert knows_tools(template)
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == (0 if known else 1)
    assert known or "<tool_call>" in warned[0]


PIECES = [
    *("\n", "<tool_call>\n", '<tool_call>["', "<tool_call>[</tool_call>", "<tool_call>get_time\n"),
    *("<tool_call><function=get_time><parameter=a>", "[TOOL_CALLS]", "[TOOL_CALLS]get_time[ARGS]{"),
    *(
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n",
        "<|tool_call|>[",
    ),
    *('<｜DSML｜function_calls><｜DSML｜invoke name="get_time">', "<arg_key>", "`", "{", "; "),
]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("head", ["", "```", "x", "<tool_call>"])
def test_the_time_grows_with_the_answer(head, piece):
    def seconds(count):
        text = head + piece * count + "x"
        begun = time.process_time()
        parse_tool_calls(text, TOOLS)
        call_begins(text)
        return time.process_time() - begun

    seconds(10)
    assert seconds(3200) < 8 * seconds(800) + 0.1
