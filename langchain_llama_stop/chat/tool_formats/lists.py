"""Lists of JSON objects between tags of a family's own: Nemotron, Apriel, MiniMax-M1, Cohere."""

from dataclasses import replace

from langchain_llama_stop.chat.tool_formats.arguments import NUMBER
from langchain_llama_stop.chat.tool_formats.base import ToolFormat


def _tagged(opening: str, closing: str) -> ToolFormat:
    return ToolFormat(
        recognises=lambda template: opening in template,
        trigger=f"{opening}[",
        name='{"name": ',
        arguments=', "arguments": ',
        end="}",
        between=", ",
        close=f"]{closing}",
        opening_tags=(opening,),
        closing_tags=(closing,),
    )


NEMOTRON = _tagged("<TOOLCALL>", "</TOOLCALL>")
TOOL_CALLS = _tagged("<tool_calls>", "</tool_calls>")
MINIMAX_M1 = replace(
    TOOL_CALLS,  # one object a line
    recognises=lambda template: '<tool_calls>\\n{"name"' in template,
    trigger="<tool_calls>\n",
    end="}\n",
    between="",
    close="</tool_calls>",
)
COHERE = replace(
    _tagged("<|START_ACTION|>", "<|END_ACTION|>"),
    trigger="<|START_ACTION|>[\n    ",
    name=f'{{"tool_call_id": "{NUMBER}", "tool_name": ',
    arguments=', "parameters": ',
    between=",\n    ",
    close="\n]<|END_ACTION|>",
)
