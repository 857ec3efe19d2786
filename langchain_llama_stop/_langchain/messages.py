"""LangChain's messages as chat templates take them, and answers as LangChain's messages."""

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
_SKIPPED_BLOCKS = ("tool_use", "tool_call", "reasoning", "thinking", "redacted_thinking")
"""Blocks of earlier answers: calls are in `tool_calls` too, and thoughts are not repeated."""


def template_message(message: BaseMessage) -> Message:
    """One message as a chat template takes it: role, content, tool calls in OpenAI's form."""
    content = content_text(message.content)
    if content is None:
        kinds = (
            block.get("type")
            for block in message.content
            if not isinstance(block, str) and _block_text(block) is None
        )
        raise ValueError(
            f"A message's content has to be text, but holds a block of type "
            f"{next(kinds)!r}: this model reads text only."
        )
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
        answer: Message = {"role": "assistant", "content": content}
        if message.tool_calls:
            answer["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
        return answer
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
    """A system message that tells the model which JSON schema its answer has to fit."""
    text = f"Answer with JSON that fits this schema:\n{json.dumps(schema)}"
    return {"role": "system", "content": text}


def with_text(message: Message, text: str) -> Message:
    """Adds a paragraph to the end of a message, in a copy; "" adds none.

    Args:
        message: Its content is a string or a list of blocks.
        text: The paragraph.

    Returns:
        The copy.
    """
    if not text:
        return message
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": f"{content}\n\n{text}"}
    return {**message, "content": [*content, {"type": "text", "text": text}]}


def check_last(messages: Sequence[BaseMessage], continue_final_message: bool) -> None:
    """Refuses conversations that leave nothing to answer or nothing to continue.

    Args:
        messages: The conversation.
        continue_final_message: Whether the model is to continue the last message, an answer.

    Raises:
        ValueError: If there is no message, if the last one is an answer that is not to be
            continued, or if it is to be continued but is no answer with text.
    """
    if not isinstance(continue_final_message, bool):
        raise ValueError(
            f"`continue_final_message` has to be True or False, but is {continue_final_message!r}."
        )
    if not messages:
        raise ValueError("`messages` has to hold at least one message, but is empty.")
    last = messages[-1]
    is_answer = isinstance(last, AIMessage) or getattr(last, "role", "") == "assistant"
    can_continue = is_answer and last.text and not getattr(last, "tool_calls", None)
    if continue_final_message and not can_continue:
        raise ValueError(
            "The last of `messages` has to be an AI message with a text and no tool calls for "
            f"`continue_final_message=True`, but is {last!r}."
        )
    if is_answer and not continue_final_message:
        raise ValueError(
            "The last of `messages` has to be a human's or a tool's, but is an AI message: there "
            "is nothing to answer. `continue_final_message=True` continues it."
        )


def content_text(content: str | Sequence[str | Mapping[str, Any]] | None) -> str | None:
    """The text of a message's content.

    Args:
        content: A string, a list of strings and blocks, or None.

    Returns:
        The text, one line per block, without thoughts and tool calls; None if a block holds
        something other than text, such as an image.

    Raises:
        ValueError: If a block of type "text" holds no string.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for block in content:
        text = _block_text(block)
        if text is None:
            return None
        if isinstance(block, str) or block.get("type") not in _SKIPPED_BLOCKS:
            texts.append(text)
    return "\n".join(texts)


def _block_text(block: str | Mapping[str, Any]) -> str | None:
    """The text of one block, "" of a skipped one; None if it is not text."""
    if isinstance(block, str):
        return block
    kind = block.get("type")
    if kind == "text":
        text = block.get("text")
        if not isinstance(text, str):
            raise ValueError(
                f"A block of type 'text' has to hold a string under `text`, but is {block!r}."
            )
        return text
    if kind == "json":
        return json.dumps(block.get("json"), ensure_ascii=False)
    return "" if kind in _SKIPPED_BLOCKS else None


def answer_fields(
    text: str, info: dict[str, Any], tool_names: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Splits an answer into the content and the other fields of its `AIMessage`.

    Args:
        text: The answer; with its special tokens where it may call tools.
        info: Its metadata, `usage_metadata` among them.
        tool_names: The tools that it may call.

    Returns:
        The content, and the message's other fields.
    """
    fields: dict[str, Any] = {"usage_metadata": info.pop("usage_metadata")}
    parsed = parse_tool_calls(text, tool_names) if tool_names else None
    if parsed and (parsed.calls or parsed.invalid):
        text = parsed.content
        if parsed.calls:
            info["finish_reason"] = "tool_calls"
        fields["tool_calls"] = [
            {"name": name, "args": args, "id": f"call_{uuid.uuid4().hex[:24]}"}
            for name, args in parsed.calls
        ]
        fields["invalid_tool_calls"] = [
            {"name": None, "args": body, "id": None, "error": error}
            for body, error in parsed.invalid
        ]
    return text, {**fields, "response_metadata": info}
