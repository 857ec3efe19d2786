"""GLM: `<tool_call>NAME<arg_key>KEY</arg_key><arg_value>VALUE</arg_value>…</tool_call>`."""

from dataclasses import replace

from langchain_llama_stop.chat.tool_formats.arguments import LINE, Element
from langchain_llama_stop.chat.tool_formats.body import elements
from langchain_llama_stop.chat.tool_formats.hermes import HERMES

GLM = replace(
    HERMES,
    recognises=lambda template: "<arg_key>" in template,
    name="",
    arguments=LINE,
    end="</tool_call>",
    is_bare=True,
    element=Element("<arg_key>", f"</arg_key>{LINE}<arg_value>", "</arg_value>", LINE),
    bodies=(
        elements(
            r"\n?",
            r"\s*(?=<arg_key>|</tool_call>)",
            r"\s*<arg_key>(?P<key>[^<\n]+)</arg_key>\s*<arg_value>",
            "</arg_value>",
            r"\s*(?=</tool_call>)",
            partial=r"\n?(?:\w[\w.-]*\s*<?/?\w*)?",
        ),
    ),
)
