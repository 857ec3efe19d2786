"""Mistral: `[TOOL_CALLS] [{"name": …, "arguments": …}]`, later `[TOOL_CALLS]name[ARGS]{…}`.

Between these two there was `[TOOL_CALLS]name[CALL_ID]abcdefghi[ARGS]{…}`.
"""

from dataclasses import replace

from langchain_llama_stop.chat.tool_formats.arguments import ID
from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.body import named

MISTRAL = ToolFormat(
    recognises=lambda template: "[TOOL_CALLS]" in template,
    trigger="[TOOL_CALLS] [",
    name='{"name": ',
    arguments=', "arguments": ',
    end="}",
    between=", ",
    close="]",
    opening_tags=("[TOOL_CALLS]",),
    bodies=(
        named(
            r"\s*",
            r"(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*",
            partial=r"\s*(?:\w[\w.-]*(?:\[CALL_ID\]\w*)?(?:\[[A-Z_]*\]?)?\s*)?",
        ),
    ),
)

MISTRAL_ARGS = replace(
    MISTRAL,
    recognises=lambda template: "[TOOL_CALLS]" in template and "[ARGS]" in template,
    trigger="[TOOL_CALLS]",
    name="",
    arguments="[ARGS]",
    end="",
    between="[TOOL_CALLS]",
    close="",
    is_bare=True,
)

MISTRAL_IDS = replace(
    MISTRAL_ARGS,
    recognises=lambda template: "[TOOL_CALLS]" in template and "[CALL_ID]" in template,
    arguments=f"[CALL_ID]{ID}[ARGS]",
)
