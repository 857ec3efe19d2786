"""A conversation of LangChain's messages into what a generation is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage

from langchain_llama_stop._langchain.messages import (
    check_last,
    schema_message,
    template_message,
    with_text,
)
from langchain_llama_stop.chat.template import chat_ids, knows_tools
from langchain_llama_stop.chat.tool_formats import call_grammar, tool_format
from langchain_llama_stop.engine.config import token_budget
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.encoding import tokenizer_lock


class Task(NamedTuple):
    """What a call of a chat model asks for.

    Attributes:
        ids: The prompt.
        options: The options, with the grammar that tools make.
        names: The tools that an answer may call.
    """

    ids: list[int]
    options: GenerationOptions
    names: list[str]


def task(
    pipeline: Any,
    messages: Sequence[BaseMessage],
    options: GenerationOptions,
    *,
    template: str,
    tools: Sequence[Mapping[str, Any]],
    choice: str | None,
    continue_final_message: bool,
) -> Task:
    """Puts together what a call asks for.

    Args:
        pipeline: The pipeline.
        messages: The messages.
        options: The call's options.
        template: The chat template (Jinja).
        tools: Tools in OpenAI's form; [] where none may be called.
        choice: As for `call_grammar`.
        continue_final_message: Whether the last message is an answer that has begun.

    Returns:
        The task.

    Raises:
        ValueError: If the messages leave nothing to answer or cannot be rendered, two tools have
            one name, or things are asked for that do not go together.
    """
    check_last(messages, continue_final_message)
    names = [tool["function"]["name"] for tool in tools]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"Each of `tools` has to have a name of its own, but {len(twice)} are called "
            f"{twice[0]!r}: rename or leave out the others."
        )
    free = choice not in ("any", *names)
    if tools and options.grammar:
        raise ValueError(
            "`grammar` and `tools` cannot go together, as tools make a grammar of their own: give "
            "one of them (`grammar=None`, `tool_choice='none'`)."
        )
    if tools and options.return_full_text:
        raise ValueError(
            "`return_full_text` has to be False with `tools`, but is True: a prompt that tells of "
            "tools is full of calls."
        )
    if continue_final_message and (options.answer_grammar or not free):
        raise ValueError(
            "`continue_final_message` has to be False with `json_schema`, `grammar` or a demanded "
            "tool, but is True: what they allow begins with the answer. Leave one of them out."
        )
    ids = conversation_ids(
        pipeline,
        messages,
        options,
        template=template,
        tools=tools,
        show_example=free,
        continue_final_message=continue_final_message,
    )
    if tools:
        grammar = call_grammar(
            tools,
            tool_format(template, pipeline.tokenizer.get_added_vocab()),
            choice=choice,
            several=knows_tools(template),
            schema=options.json_schema,
        )
        options = options.replaced(json_schema=None, grammar=grammar)
    return Task(ids, options, names)


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
        spoken.insert(0, schema_message(options.json_schema))
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
            spoken[-1] = with_text(spoken[-1], options.hint(budget))
            ids = chat_ids(pipeline.tokenizer, spoken, **settings)
    return ids
