"""Qwen3-Coder: elements, `<tool_call><function=NAME><parameter=KEY>VALUE</parameter>…`."""

from dataclasses import replace

from langchain_llama_stop.chat.tool_formats.arguments import LINE, Element
from langchain_llama_stop.chat.tool_formats.body import elements, named
from langchain_llama_stop.chat.tool_formats.hermes import HERMES

_PARTIAL = r"\s*(?:<f?u?n?c?t?i?o?n?(?:=[\w.\"-]*>?\s*)?)?"

QWEN_CODER = replace(
    HERMES,
    recognises=lambda template: "<function=" in template and "<parameter=" in template,
    name=f"{LINE}<function=",
    arguments=f">{LINE}",
    end=f"</function>{LINE}</tool_call>",
    is_bare=True,
    element=Element("<parameter=", f">{LINE}", f"{LINE}</parameter>", LINE),
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

SEED = replace(
    QWEN_CODER,
    recognises=lambda template: "<seed:tool_call>" in template,
    trigger="<seed:tool_call>",
    between="\n<seed:tool_call>",
    end=f"</function>{LINE}</seed:tool_call>",
    opening_tags=("<seed:tool_call>",),
    closing_tags=("</seed:tool_call>",),
)
