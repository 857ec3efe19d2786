"""Command R+: "Action:" and a list of JSON objects, in a fence."""

from langchain_llama_stop.chat.tool_formats.base import ToolFormat
from langchain_llama_stop.chat.tool_formats.body import fenced

COMMAND_R = ToolFormat(
    recognises=lambda template: "Action:\\n```json" in template,
    trigger="Action:\n```json\n[\n",
    name='    {\n        "tool_name": ',
    arguments=',\n        "parameters": ',
    end="\n    }",
    between=",\n",
    close="\n]\n```",
    opening_tags=("Action:",),
    bodies=(fenced(),),
)
