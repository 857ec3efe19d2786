"""Lists of JSON objects between tags of a family's own: Nemotron, Apriel, MiniMax-M1, Cohere."""

from langchain_llama_stop.chat.tool_formats.base import ToolFormat


def _tagged(
    opening: str, closing: str, name: str = "name", arguments: str = "arguments"
) -> ToolFormat:
    return ToolFormat(
        recognises=lambda template: opening in template,
        trigger=f"{opening}[",
        name=f'{{"{name}": ',
        arguments=f', "{arguments}": ',
        end="}",
        between=", ",
        close=f"]{closing}",
        opening_tags=(opening,),
        closing_tags=(closing,),
        is_free=True,  # with ids before the names, or one object after the other
    )


NEMOTRON = _tagged("<TOOLCALL>", "</TOOLCALL>")
TOOL_CALLS = _tagged("<tool_calls>", "</tool_calls>")
COHERE = _tagged("<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters")
