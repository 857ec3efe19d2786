"""Hunyuan 3: as GLM, in tags of its own, `<tool_calls:opensource><tool_call:opensource>NAME…`."""

from langchain_llama_stop.chat.tool_formats.arguments import Element
from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.body import elements

_SIGN = ":opensource"
_CALL, _END = f"<tool_call{_SIGN}>", f"</tool_call{_SIGN}>"
_VALUE_END = f"</arg_value{_SIGN}>"

HUNYUAN = ToolFormat(
    # The template puts its tags together from a name and this sign.
    recognises=lambda template: "<tool_sep{}>" in template or f"<tool_sep{_SIGN}>" in template,
    trigger=f"<tool_calls{_SIGN}>\n{_CALL}",
    name="",
    arguments=f"<tool_sep{_SIGN}>\n",
    end=f"{_END}\n",
    between=_CALL,
    close=f"</tool_calls{_SIGN}>",
    opening_tags=(f"<tool_calls{_SIGN}>",),
    closing_tags=(f"</tool_calls{_SIGN}>",),
    is_bare=True,
    element=Element(
        f"<arg_key{_SIGN}>", f"</arg_key{_SIGN}>\n<arg_value{_SIGN}>", _VALUE_END, "\n"
    ),
    bodies=(
        elements(
            rf"\s*{_CALL}\s*",
            rf"\s*<tool_sep{_SIGN}>",
            rf"\s*<arg_key{_SIGN}>(?P<key>[^<\n]+)</arg_key{_SIGN}>\s*<arg_value{_SIGN}>",
            _VALUE_END,
            rf"\s*{_END}",
            between=rf"(?=\s*{_CALL})",
            partial=r"\s*(?:<[^\n]{0,120}\s*)?",
        ),
    ),
)
