"""Functionary: `<function=NAME>{…}</function>`; elements in it are read too."""

from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.body import elements, named

_PARTIAL = r"[\w.\"-]*>?\s*"

FUNCTIONARY = ToolFormat(
    recognises=lambda template: "<function=" in template,
    trigger="<function=",
    name="",
    arguments=">",
    end="</function>",
    between="<function=",
    opening_tags=("<function=",),
    closing_tags=("</function>", "</tool_call>"),
    is_bare=True,
    bodies=(
        named("", r">\s*", partial=_PARTIAL),
        elements(
            "",
            r">",
            r"\s*<parameter=(?P<key>[^>\n]+)>\n?",
            "</parameter>",
            r"\s*(?=</function>)",
            partial=_PARTIAL,
        ),
    ),
)
