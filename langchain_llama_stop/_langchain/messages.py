"""LangChain's messages as chat templates take them, and answers as LangChain's messages."""

from __future__ import annotations

import json
import logging
import secrets
import string
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_llama_stop.chat.reshape import Message
from langchain_llama_stop.chat.thoughts import split_thoughts
from langchain_llama_stop.chat.tool_formats import parse_tool_calls
from langchain_llama_stop.grammar.schema import tool_argument, violation

_log = logging.getLogger("langchain_llama_stop")

_ROLES = {"human": "user", "ai": "assistant", "model": "assistant", "function": "tool"}
"""Other names of roles, as `ChatMessage` and other providers use them."""
_THOUGHTS = ("reasoning", "thinking")
MEDIA = {
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "input_audio"), "audio"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
    **dict.fromkeys(("file", "input_file", "document", "media"), "file"),
}
"""Blocks of what is not text, and the word that stands for each."""


def template_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """A conversation as a chat template takes it.

    Args:
        messages: Messages of LangChain, also those that other providers' models have made.

    Returns:
        Role and content of each, tool calls in OpenAI's form, and the thoughts of an answer as
        `reasoning_content`. A tool's result has the name that stands in its call.

    Raises:
        ValueError: If a block of type "text" holds no string.
    """
    told = [template_message(message) for message in messages]
    names = dict[str, str]()
    for message in told:
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        if message["role"] == "tool" and (name := names.get(message.get("tool_call_id", ""))):
            message.setdefault("name", name)
    return told


def template_message(message: BaseMessage) -> Message:
    """One message as a chat template takes it: role, content, tool calls in OpenAI's form."""
    told: Message = {"role": _role(message), "content": content_text(message.content)}
    if message.name:
        told["name"] = message.name
    if isinstance(message, ToolMessage):
        told["tool_call_id"] = message.tool_call_id
    if isinstance(message, AIMessage):
        if message.tool_calls:
            told["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
        if thoughts := _thoughts(message):
            told["reasoning_content"] = thoughts
    return told


def _role(message: BaseMessage) -> str:
    """The role of a message, as templates call it; the name of a `ChatMessage`'s own role."""
    kinds = {
        SystemMessage: "system",
        HumanMessage: "user",
        AIMessage: "assistant",
        ToolMessage: "tool",
    }
    role = next((role for kind, role in kinds.items() if isinstance(message, kind)), None)
    own = getattr(message, "role", message.type)
    return role or _ROLES.get(own, own)


def _thoughts(message: AIMessage) -> str:
    """What an answer says that it has thought."""
    given = message.additional_kwargs.get("reasoning_content")
    if isinstance(given, str):
        return given
    blocks = [] if isinstance(message.content, str) else message.content
    texts = (
        block.get(block["type"])
        for block in blocks
        if isinstance(block, dict) and block.get("type") in _THOUGHTS
    )
    return "".join(text for text in texts if isinstance(text, str))


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
        ValueError: If there is no message, or if the last one is to be continued but is no answer
            with text.
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


def content_text(content: str | Sequence[str | Mapping[str, Any]] | None) -> str:
    """The text of a message's content.

    Args:
        content: A string, a list of strings and blocks of any provider, or None.

    Returns:
        The text in one piece, without thoughts, tool calls and other blocks that hold no text. A
        picture is told as "[image]", with a warning; sounds, videos and files alike.

    Raises:
        ValueError: If a block of type "text" holds no string.
    """
    if content is None or isinstance(content, str):
        return content or ""
    texts = list[str]()
    for block in content:
        text = block if isinstance(block, str) else _block_text(block)
        is_mark = not isinstance(block, str) and block.get("type") in MEDIA
        if is_mark and texts and not texts[-1][-1:].isspace():
            text = f"\n{text}"
        texts.append(text)
    return "".join(texts)


def _block_text(block: Mapping[str, Any]) -> str:
    """The text of one block; "" if it has none."""
    kind = block.get("type")
    if isinstance(kind, str) and kind in MEDIA:
        _log.warning("This model reads text only: a block of type %r is told as a word", kind)
        return f"[{MEDIA[kind]}]"
    if kind == "json":
        return json.dumps(block.get("json"), ensure_ascii=False)
    if kind == "tool_result":
        return content_text(block.get("content"))
    if kind == "refusal":
        return str(block.get("refusal") or "")
    text = block.get("text")
    if kind == "text" and not isinstance(text, str):
        raise ValueError(
            f"A block of type 'text' has to hold a string under `text`, but is {block!r}."
        )
    return text if isinstance(text, str) and kind not in _THOUGHTS else ""


def answer_fields(
    text: str,
    info: dict[str, Any],
    tools: Mapping[str, Mapping[str, Any]],
    closing: str | None = "",
    *,
    parallel: bool = True,
) -> tuple[str, dict[str, Any]]:
    """Splits an answer into the content and the other fields of its `AIMessage`.

    Args:
        text: The answer; with its special tokens where it may call tools.
        info: Its metadata, `usage_metadata` among them.
        tools: The parameters (a JSON schema) of each tool that it may call, by its name.
        closing: The tag that ends the thoughts that the prompt has begun; "" if it has begun none,
            None if thoughts are not to be looked for.
        parallel: Whether the answer may hold several calls; else the first one counts.

    Returns:
        The content, and the message's other fields.
    """
    fields: dict[str, Any] = {"usage_metadata": info.pop("usage_metadata")}
    if closing is not None:
        thoughts, text = split_thoughts(text, closing)
        if thoughts:
            fields["additional_kwargs"] = {"reasoning_content": thoughts}
    parsed = parse_tool_calls(text, tools) if tools else None
    if parsed and (parsed.calls or parsed.invalid):
        text = parsed.content
        if parsed.calls:
            info["finish_reason"] = "tool_calls"
        calls: list[dict[str, Any]] = [
            {"name": name, "args": args, "id": _new_call_id()}
            for name, args in (parsed.calls if parallel else parsed.calls[:1])
        ]
        problems = [
            violation(tools[call["name"]], call["args"], tool_argument(call["name"]))
            for call in calls
        ]
        fields["tool_calls"] = [
            c for c, problem in zip(calls, problems, strict=True) if not problem
        ]
        fields["invalid_tool_calls"] = [
            *(
                {**call, "args": json.dumps(call["args"]), "error": problem}
                for call, problem in zip(calls, problems, strict=True)
                if problem
            ),
            *(
                {"name": None, "args": body, "id": None, "error": error}
                for body, error in parsed.invalid
            ),
        ]
    return text, {**fields, "response_metadata": info}


def _new_call_id() -> str:
    """Nine letters and digits, which every template takes."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
