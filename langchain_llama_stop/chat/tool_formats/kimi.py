"""Kimi K2: `<|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{…}`, in a section."""

from langchain_llama_stop.chat.tool_formats.arguments import NUMBER
from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.body import named

_BEGIN, _ARGUMENTS = "<|tool_call_begin|>", "<|tool_call_argument_begin|>"

KIMI = ToolFormat(
    recognises=lambda template: "<|tool_calls_section_begin|>" in template,
    trigger="<|tool_calls_section_begin|>",
    name=f"{_BEGIN}functions.",
    arguments=f":{NUMBER}{_ARGUMENTS}",
    end="<|tool_call_end|>",
    between="",
    close="<|tool_calls_section_end|>",
    opening_tags=("<|tool_calls_section_begin|>",),
    closing_tags=("<|tool_calls_section_end|>",),
    is_bare=True,
    bodies=(
        named(
            r"\s*<\|tool_call_begin\|>\s*(?:functions\.)?",
            r"(?::\d+)?\s*<\|tool_call_argument_begin\|>\s*",
            after=r"\s*(?:<\|tool_call_end\|>)?",
            partial=r"\s*(?:<[^\n]{0,120}\s*)?",
        ),
    ),
)
