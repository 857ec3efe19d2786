"""Gemma 4: `<|tool_call>call:NAME{key:<|"|>text<|"|>,count:2}<tool_call|>`."""

from langchain_llama_stop.chat.tool_formats.arguments import Element, GemmaRules, gemma_text
from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.loose import gemma_call

GEMMA = ToolFormat(
    recognises=lambda template: "<|tool_call>" in template,
    trigger="<|tool_call>",
    name="call:",
    arguments="{",
    end="}<tool_call|>",
    between="<|tool_call>",
    opening_tags=("<|tool_call>",),
    closing_tags=("<tool_call|>",),
    is_bare=True,
    element=Element(middle=":", between=",", write=gemma_text, style=GemmaRules),
    bodies=(gemma_call(),),
)
