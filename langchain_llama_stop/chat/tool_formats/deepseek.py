"""DeepSeek: a name and JSON between its own tags, or, from V3.2 on, elements with `｜DSML｜`."""

from dataclasses import replace

from langchain_llama_stop.chat.tool_formats.arguments import Element
from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.body import elements, named

_CALL, _SEPARATOR = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
_DSML = "｜DSML｜"

DEEPSEEK_V3_1 = ToolFormat(
    recognises=lambda template: "<｜tool▁calls▁begin｜>" in template and "```" not in template,
    trigger="<｜tool▁calls▁begin｜>",
    name=_CALL,
    arguments=_SEPARATOR,
    end="<｜tool▁call▁end｜>",
    between="",
    close="<｜tool▁calls▁end｜>",
    opening_tags=("<｜tool▁calls▁begin｜>",),
    closing_tags=("<｜tool▁calls▁end｜>",),
    is_bare=True,
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

DEEPSEEK = replace(
    DEEPSEEK_V3_1,
    recognises=lambda template: "<｜tool▁calls▁begin｜>" in template,
    name=f"{_CALL}function{_SEPARATOR}",
    arguments="\n```json\n",
    end="\n```<｜tool▁call▁end｜>",
    between="\n",
)


def _dsml(section: str) -> ToolFormat:
    return ToolFormat(
        recognises=lambda template: _DSML in template and f"{section}>" in template,
        trigger=f"<{_DSML}{section}>",
        name=f'\n<{_DSML}invoke name="',
        arguments='">\n',
        end=f"</{_DSML}invoke>",
        between="",
        close=f"\n</{_DSML}{section}>",
        opening_tags=(f"<{_DSML}{section}>",),
        closing_tags=(f"</{_DSML}{section}>",),
        is_bare=True,
        element=Element(
            f'<{_DSML}parameter name="',
            '" string="true">',
            f"</{_DSML}parameter>",
            "\n",
            json_middle='" string="false">',
        ),
        bodies=(
            elements(
                rf"\s*<{_DSML}invoke name=\"",
                r"\">",
                rf"\s*<{_DSML}parameter name=\"(?P<key>[^\">\n]+)\""
                r"(?: string=\"(?:(?P<text>true)|(?P<json>false))\")?>",
                f"</{_DSML}parameter>",
                rf"\s*</{_DSML}invoke>",
                between=rf"(?=\s*<{_DSML}invoke)",
                partial=r"\s*(?:<[^\n]{0,120})?",
            ),
        ),
    )


DEEPSEEK_V3_2, DEEPSEEK_V4 = _dsml("function_calls"), _dsml("tool_calls")
