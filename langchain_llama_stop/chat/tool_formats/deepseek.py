"""DeepSeek: a name and JSON between its own tags, or, from V3.2 on, elements with `｜DSML｜`."""

from dataclasses import replace

from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.body import elements, named
from langchain_llama_stop.chat.tool_formats.hermes import HERMES

_CALL, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
_DSML = "｜DSML｜"

DEEPSEEK = ToolFormat(
    recognises=lambda template: "<｜tool▁calls▁begin｜>" in template,
    trigger="<｜tool▁calls▁begin｜>",
    name=f"{_CALL}function{_SEPARATOR}",
    arguments="\n```json\n",
    end="\n```<｜tool▁call▁end｜>",
    between="\n",
    close="<｜tool▁calls▁end｜>",
    opening_tags=("<｜tool▁calls▁begin｜>",),
    closing_tags=("<｜tool▁calls▁end｜>",),
    is_free=True,
    bodies=(
        # R1 and V3 put the name on a line of its own, after "function"; V3.1 before the separator.
        named(
            rf"\s*{_CALL}function{_SEPARATOR}",
            r"\s*(?:```json)?\s*",
            after=r"\s*(?:```)?\s*(?:<｜tool▁call▁end｜>)?",
            partial=r"\s*(?:<[^\n]{0,120}\s*(?:`{1,3}\w*)?\s*)?",
        ),
        named(
            rf"\s*{_CALL}",
            rf"{_SEPARATOR}\s*",
            after=r"\s*(?:<｜tool▁call▁end｜>)?",
            partial=r"\s*(?:<[^\n]{0,120}\s*)?",
        ),
    ),
)

DEEPSEEK_V3_2 = replace(
    HERMES,
    recognises=lambda template: _DSML in template,
    opening_tags=(f"<{_DSML}function_calls>", f"<{_DSML}tool_calls>"),
    closing_tags=(f"</{_DSML}function_calls>", f"</{_DSML}tool_calls>"),
    is_free=True,
    bodies=(
        elements(
            rf"\s*<{_DSML}invoke name=",
            r">",
            rf"\s*<{_DSML}parameter name=\"(?P<key>[^\">\n]+)\""
            r"(?: string=\"(?:true|(?P<json>false))\")?>",
            f"</{_DSML}parameter>",
            rf"\s*</{_DSML}invoke>",
            between=rf"(?=\s*<{_DSML}invoke)",
            partial=r"\s*(?:<[^\n]{0,120})?",
        ),
    ),
)
