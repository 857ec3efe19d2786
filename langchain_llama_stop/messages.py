"""LangChain's messages in the form that chat templates take."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_llama_stop.chat_templates import Message


def template_message(message: BaseMessage) -> Message:
    """One LangChain message as a chat template takes it.

    Args:
        message: The message; its content is text, as a string or in blocks.

    Returns:
        A dict of role and content, with tool calls in OpenAI's form.

    Raises:
        ValueError: If it is of another kind, or holds what is no text.
    """
    content = _text(message.content)
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": content}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": content}
    if isinstance(message, ToolMessage):
        return {
            "role": "tool",
            "content": content,
            "name": message.name or "",
            "tool_call_id": message.tool_call_id,
        }
    if isinstance(message, AIMessage):
        spoken: Message = {"role": "assistant", "content": content}
        if message.tool_calls:
            spoken["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
        return spoken
    if isinstance(message, ChatMessage) and message.role in ("system", "user", "assistant"):
        return {"role": message.role, "content": content}
    raise ValueError(
        f"`messages` has to hold system, human, AI and tool messages, but holds a "
        f"{type(message).__name__}."
    )


def _text(content: str | Sequence[str | Mapping[str, Any]]) -> str:
    """The text of a message's content."""
    if isinstance(content, str):
        return content
    texts = []
    for block in content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block["text"]))
        elif block.get("type") == "json":
            texts.append(json.dumps(block.get("json"), ensure_ascii=False))
        elif block.get("type") not in ("tool_use", "tool_call"):  # these stand in `tool_calls` too
            raise ValueError(
                f"A message's content has to be text, but holds a block of type "
                f"{block.get('type')!r}: this model reads text only."
            )
    return "\n".join(texts)
