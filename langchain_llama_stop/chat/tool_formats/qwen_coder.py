"""Qwen3-Coder: elements, `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…`."""

from dataclasses import replace

from langchain_llama_stop.chat.tool_formats.body import elements, named
from langchain_llama_stop.chat.tool_formats.hermes import HERMES

_PARTIAL = r"\s*(?:<f?u?n?c?t?i?o?n?(?:=[\w.\"-]*>?\s*)?)?"

QWEN_CODER = replace(
    HERMES,
    recognises=lambda template: "<function=" in template and "<parameter=" in template,
    is_free=True,
    bodies=(
        # Functionary writes the arguments as one JSON object.
        named(r"\s*<function=", r">\s*", after=r"\s*(?:</function>)?", partial=_PARTIAL),
        elements(
            r"\s*<function=",
            r">",
            r"\s*<parameter=(?P<key>[^>\n]+)>\n?",
            "</parameter>",
            r"\s*</function>",
            partial=_PARTIAL,
        ),
    ),
)
