"""LangChain's messages and tools in the form that chat templates take, and answers back."""

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
from langchain_core.utils.function_calling import convert_to_openai_tool

from langchain_llama_stop.chat_templates import Message
from langchain_llama_stop.grammars import json_grammar
from langchain_llama_stop.tool_calling import parse_tool_calls


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


def format_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Writes tools in OpenAI's form.

    Args:
        tools: Pydantic classes, functions, LangChain tools, or dicts in OpenAI's form.

    Returns:
        One dict per tool, with name and parameters.

    Raises:
        ValueError: If one cannot be described, has no schema, or one that cannot be compiled.
    """
    formatted = []
    for tool in tools:
        try:
            described = convert_to_openai_tool(tool)
        except Exception as error:  # LangChain raises what it meets
            raise ValueError(
                f"`tools` has to hold functions with a docstring, Pydantic classes, LangChain "
                f"tools or dicts in OpenAI's form, but holds {tool!r}: {error}"
            ) from error
        function = described.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("parameters"), dict):
            raise ValueError(
                f"Each of `tools` has to have a schema of its arguments (`parameters`), but "
                f"{tool!r} has none: for a tool without arguments give "
                "{'type': 'object', 'properties': {}}."
            )
        json_grammar(function["parameters"], f"The schema of the tool {function['name']!r}")
        formatted.append(described)
    return formatted


def format_choice(
    choice: str | dict[str, Any] | bool | None, tools: Sequence[Mapping[str, Any]]
) -> str | None:
    """Reads `tool_choice`.

    Args:
        choice: As LangChain and OpenAI write it.
        tools: The tools, in OpenAI's form.

    Returns:
        None, "auto", "none", "any", or the name of a tool.

    Raises:
        ValueError: If it names none of the tools.
    """
    names = [tool["function"]["name"] for tool in tools]
    if isinstance(choice, dict):
        choice = str(choice.get("function", choice).get("name"))
    known = {True: "any", False: None, "required": "any", None: None}.get(choice, str(choice))
    if known not in (None, "auto", "none", "any", *names):
        raise ValueError(
            f"`tool_choice` has to be 'auto', 'none', 'any' or one of {', '.join(names)}, but "
            f"is {known!r}."
        )
    return known


def answer_fields(
    text: str, info: dict[str, Any], special: str, names: Sequence[str]
) -> tuple[str, dict[str, Any]]:
    """Takes an answer apart into what an `AIMessage` holds.

    Args:
        text: The answer.
        info: Its metadata, `usage_metadata` among them.
        special: The answer with its special tokens; "" if that is not known.
        names: The tools that it may call.

    Returns:
        The content, and the message's other fields.
    """
    fields: dict[str, Any] = {"usage_metadata": info.pop("usage_metadata")}
    found = parse_tool_calls(special or text, names) if names else None
    if found and (found.calls or found.invalid):
        text, info["finish_reason"] = found.content, "tool_calls"
        fields["tool_calls"] = [
            {"name": name, "args": args, "id": f"call_{uuid.uuid4().hex[:24]}"}
            for name, args in found.calls
        ]
        fields["invalid_tool_calls"] = [
            {"name": None, "args": body, "id": None, "error": error}
            for body, error in found.invalid
        ]
    return text, {**fields, "response_metadata": info}


def tool_call_chunks(calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Writes tool calls as the chunks of a stream, each whole in one.

    Args:
        calls: Tool calls of an `AIMessage`.

    Returns:
        Chunks for an `AIMessageChunk`.
    """
    return [
        {"name": c["name"], "args": json.dumps(c["args"]), "id": c["id"], "index": index}
        for index, c in enumerate(calls)
    ]
