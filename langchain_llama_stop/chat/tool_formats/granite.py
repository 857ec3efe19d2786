"""Granite 3 and Phi-4: a list of JSON objects after `<|tool_call|>`."""

from langchain_llama_stop.chat.tool_formats.base import ToolFormat

GRANITE = ToolFormat(
    recognises=lambda template: "<|tool_call|>" in template,
    trigger="<|tool_call|>[",
    name='{"name": ',
    arguments=', "arguments": ',
    end="}",
    between=", ",
    close="]",
    opening_tags=("<|tool_call|>",),
    closing_tags=("<|/tool_call|>",),
)
