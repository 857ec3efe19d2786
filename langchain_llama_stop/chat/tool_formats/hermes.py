"""Hermes and Qwen: `<tool_call>{"name": …, "arguments": …}</tool_call>`."""

from langchain_llama_stop.chat.tool_formats.base import ToolFormat

HERMES = ToolFormat(
    recognises=lambda template: "<tool_call>" in template,
    trigger="<tool_call>",
    name='\n{"name": ',
    arguments=', "arguments": ',
    end="}\n</tool_call>",
    between="\n<tool_call>",
    opening_tags=("<tool_call>",),
    closing_tags=("</tool_call>",),
)
