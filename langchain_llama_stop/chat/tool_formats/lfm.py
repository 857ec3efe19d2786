"""LFM2: calls as Python writes them, `<|tool_call_start|>[name(key="value")]<|tool_call_end|>`."""

from langchain_llama_stop.chat.tool_formats.arguments import (
    Element,
    PythonRules,
    python_text,
)
from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.loose import python_calls

LFM = ToolFormat(
    # Some of its templates name no tag of a call; they tell a list of tools in these words.
    recognises=lambda template: "<|tool_call_start|>" in template or "List of tools: " in template,
    trigger="<|tool_call_start|>[",
    name="",
    arguments="(",
    end=")",
    between=", ",
    close="]<|tool_call_end|>",
    opening_tags=("<|tool_call_start|>",),
    closing_tags=("<|tool_call_end|>",),
    is_bare=True,
    element=Element(middle="=", between=", ", write=python_text, style=PythonRules),
    bodies=(python_calls(),),
)
