"""Functionary: `<function=NAME>{…}</function>`; elements in it are read too."""

from dataclasses import replace

from langchain_llama_stop.chat.tool_formats.body import elements, named
from langchain_llama_stop.chat.tool_formats.hermes import HERMES

_PARTIAL = r"[\w.\"-]*>?\s*"

FUNCTIONARY = replace(
    HERMES,
    recognises=lambda template: "<function=" in template,
    opening_tags=("<function=",),
    closing_tags=("</function>", "</tool_call>"),
    is_free=True,
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
