"""MiniMax M2: `<minimax:tool_call><invoke name="NAME"><parameter name="KEY">VALUE</parameter>…`."""

from langchain_llama_stop.chat.tool_formats.arguments import Element
from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.body import elements

MINIMAX = ToolFormat(
    recognises=lambda template: "<minimax:tool_call>" in template,
    trigger="<minimax:tool_call>",
    name='\n<invoke name="',
    arguments='">\n',
    end="</invoke>",
    between="",
    close="\n</minimax:tool_call>",
    opening_tags=("<minimax:tool_call>",),
    closing_tags=("</minimax:tool_call>",),
    is_bare=True,
    element=Element('<parameter name="', '">', "</parameter>", "\n"),
    bodies=(
        elements(
            r"\s*<invoke name=\"",
            r"\">",
            r"\s*<parameter name=\"(?P<key>[^\">\n]+)\">",
            "</parameter>",
            r"\s*</invoke>",
            between=r"(?=\s*<invoke)",
            partial=r"\s*(?:<[^\n]{0,120})?",
        ),
    ),
)
