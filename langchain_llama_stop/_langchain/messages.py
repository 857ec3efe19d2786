"""LangChain's messages in the form that chat templates take, and answers back."""

from __future__ import annotations

import json
import uuid
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

from langchain_llama_stop.chat.template import Message
from langchain_llama_stop.chat.tool_formats import parse_tool_calls

_ROLES = ("system", "user", "assistant")
_LEFT_OUT = ("tool_use", "tool_call", "reasoning", "thinking", "redacted_thinking")
"""Blocks of earlier answers: calls stand in `tool_calls` too, thoughts are not told again."""


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
    if isinstance(message, ChatMessage):
        if message.role not in _ROLES:
            raise ValueError(
                f"The role of a ChatMessage has to be one of {', '.join(map(repr, _ROLES))}, but "
                f"is {message.role!r}."
            )
        return {"role": message.role, "content": content}
    raise ValueError(
        f"`messages` has to hold system, human, AI and tool messages, but holds a "
        f"{type(message).__name__}."
    )


def schema_message(schema: Mapping[str, Any]) -> Message:
    """Tells the model which schema its answer has to fit.

    Args:
        schema: The JSON schema.

    Returns:
        A message of the system.
    """
    text = f"Answer with JSON that fits this schema:\n{json.dumps(schema)}"
    return {"role": "system", "content": text}


def with_text(message: Message, text: str) -> Message:
    """Puts a paragraph at the end of a message.

    Args:
        message: Its content is a text, or a list of blocks.
        text: The paragraph; "" for none.

    Returns:
        A message like it.
    """
    if not text:
        return message
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": f"{content}\n\n{text}"}
    return {**message, "content": [*content, {"type": "text", "text": text}]}


def check_last(messages: Sequence[BaseMessage], continue_final_message: bool) -> None:
    """Refuses conversations that leave nothing to answer, or nothing to continue.

    Args:
        messages: The messages.
        continue_final_message: Whether the last one is an answer that has begun.

    Raises:
        ValueError: If they do.
    """
    if not isinstance(continue_final_message, bool):
        raise ValueError(
            f"`continue_final_message` has to be True or False, but is {continue_final_message!r}."
        )
    if not messages:
        raise ValueError("`messages` has to hold at least one message, but is empty.")
    last = messages[-1]
    answer = isinstance(last, AIMessage) or getattr(last, "role", "") == "assistant"
    begun = answer and last.text and not getattr(last, "tool_calls", None)
    if continue_final_message and not begun:
        raise ValueError(
            "The last of `messages` has to be an AI message with a text and no tool calls for "
            f"`continue_final_message=True`, but is {last!r}."
        )
    if answer and not continue_final_message:
        raise ValueError(
            "The last of `messages` has to be a human's or a tool's, but is an AI message: there "
            "is nothing to answer. `continue_final_message=True` goes on with it."
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
            if not isinstance(block.get("text"), str):
                raise ValueError(
                    f"A block of type 'text' has to hold a string under `text`, but is {block!r}."
                )
            texts.append(block["text"])
        elif block.get("type") == "json":
            texts.append(json.dumps(block.get("json"), ensure_ascii=False))
        elif block.get("type") not in _LEFT_OUT:
            raise ValueError(
                f"A message's content has to be text, but holds a block of type "
                f"{block.get('type')!r}: this model reads text only."
            )
    return "\n".join(texts)


def answer_fields(
    text: str, info: dict[str, Any], names: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Takes an answer apart into what an `AIMessage` holds.

    Args:
        text: The answer; where it may call tools without the prompt, with its special tokens.
        info: Its metadata, `usage_metadata` among them.
        names: The tools that it may call.

    Returns:
        The content, and the message's other fields.
    """
    fields: dict[str, Any] = {"usage_metadata": info.pop("usage_metadata")}
    found = parse_tool_calls(text, names) if names else None
    if found and (found.calls or found.invalid):
        text = found.content
        if found.calls:
            info["finish_reason"] = "tool_calls"
        fields["tool_calls"] = [
            {"name": name, "args": args, "id": f"call_{uuid.uuid4().hex[:24]}"}
            for name, args in found.calls
        ]
        fields["invalid_tool_calls"] = [
            {"name": None, "args": body, "id": None, "error": error}
            for body, error in found.invalid
        ]
    return text, {**fields, "response_metadata": info}
