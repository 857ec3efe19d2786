"""A conversation of LangChain's messages into the ids of a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.messages import BaseMessage

from langchain_llama_stop.chat_templates import chat_ids
from langchain_llama_stop.jobs import tokenizer_lock
from langchain_llama_stop.messages import template_message
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.rows import sentences
from langchain_llama_stop.settings import token_budget


def conversation_ids(
    pipeline: Any,
    messages: Sequence[BaseMessage],
    options: GenerationOptions,
    *,
    template: str,
    tools: Sequence[Mapping[str, Any]] = (),
    show_example: bool = True,
    continue_final_message: bool = False,
) -> list[int]:
    """Renders and encodes a conversation.

    Args:
        pipeline: The pipeline.
        messages: The messages, at least one.
        options: Their hint and JSON schema are told to the model.
        template: The chat template (Jinja).
        tools: Tools in OpenAI's form.
        show_example: As for `chat_ids`.
        continue_final_message: Whether the last message is an answer that has begun.

    Returns:
        The ids, up to where the answer begins or goes on; up to the end where it is given.

    Raises:
        ValueError: If one cannot be rendered.
    """
    spoken = [template_message(message) for message in messages]
    if options.json_schema is not None:
        text = f"Answer with JSON that fits this schema:\n{json.dumps(options.json_schema)}"
        spoken.insert(0, {"role": "system", "content": text})
    settings: dict[str, Any] = {
        "template": template,
        "tools": tools,
        "show_example": show_example,
        "continue_final_message": continue_final_message,
        "split_special_tokens": options.split_special_tokens is not False,
    }
    with tokenizer_lock(pipeline.tokenizer):
        ids = chat_ids(pipeline.tokenizer, spoken, **settings)
        if options.answer_hint and spoken[-1]["role"] == "user":
            budget = token_budget(pipeline, options, len(ids), first=True)
            hint = options.answer_hint.format(sentences=sentences(budget))
            spoken[-1] = {**spoken[-1], "content": f"{spoken[-1]['content']}\n\n{hint}"}
            ids = chat_ids(pipeline.tokenizer, spoken, **settings)
    return ids


def check_last(messages: Sequence[BaseMessage], continue_final_message: bool) -> None:
    """Refuses conversations that leave nothing to answer, or nothing to continue.

    Args:
        messages: The messages.
        continue_final_message: Whether the last one is an answer that has begun.

    Raises:
        ValueError: If there is no message, or the last one is of the wrong kind.
    """
    if not isinstance(continue_final_message, bool):
        raise ValueError(
            f"`continue_final_message` has to be True or False, but is {continue_final_message!r}."
        )
    if not messages:
        raise ValueError("`messages` has to hold at least one message, but is empty.")
    message = template_message(messages[-1])
    answer = message["role"] == "assistant"
    if continue_final_message and (not answer or not message["content"] or "tool_calls" in message):
        raise ValueError(
            "The last of `messages` has to be an AI message with a text and no tool calls for "
            f"`continue_final_message=True`, but is {message!r}."
        )
    if answer and not continue_final_message:
        raise ValueError(
            "The last of `messages` has to be a human's or a tool's, but is an AI message: there "
            "is nothing to answer. `continue_final_message=True` goes on with it."
        )
