"""The grammar of tools is made once for tools that are given again."""

import json

import pytest

from langchain_llama_stop._langchain.request import _grammar_of
from langchain_llama_stop.chat.tool_formats.hermes import HERMES
from langchain_llama_stop.chat.tool_formats.llama3 import LLAMA_3


def tool(name, **properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def grammar(tools=None, fmt=HERMES, choice="any", several=True, schema=None, thought=""):
    tools = tools or [tool("f", a={"type": "string"})]
    return _grammar_of(json.dumps([tools, schema]), fmt, choice, several, thought)


def test_the_same_tools_share_a_grammar():
    assert grammar() is grammar()


@pytest.mark.parametrize(
    "other",
    [
        {"tools": [tool("g", a={"type": "string"})]},
        {"tools": [tool("f", a={"type": "integer"})]},
        {"fmt": LLAMA_3},
        {"choice": "f"},
        {"several": False},
        {"choice": None, "schema": {"type": "integer"}},
        {"choice": None, "thought": "</think>"},
    ],
)
def test_others_do_not(other):
    assert grammar(**other).lark != grammar().lark
    assert grammar(**other) is grammar(**other)


def test_few_are_kept():
    first = grammar()
    for number in range(20):
        grammar([tool(f"f{number}")])
    assert grammar() is not first
