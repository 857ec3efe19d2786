"""Llama 3: plain JSON, `{"name": …, "parameters": …}`, sometimes after `<|python_tag|>`."""

from langchain_llama_stop.chat.tool_formats.base import ToolFormat

LLAMA_3 = ToolFormat(
    recognises=lambda template: (
        "<|python_tag|>" in template
        or ("<|start_header_id|>" in template and '"parameters"' in template)
    ),
    trigger='{"name": ',
    name="",
    arguments=', "parameters": ',
    end="}",
    between='; {"name": ',
    opening_tags=("<|python_tag|>",),
    plain=True,
)
