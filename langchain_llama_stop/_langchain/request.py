"""Turns a conversation of LangChain's messages into one request for the engine."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage

from langchain_llama_stop._langchain.messages import (
    check_last,
    template_messages,
    with_text,
)
from langchain_llama_stop._langchain.schema_text import schema_text
from langchain_llama_stop.chat.reshape import with_system
from langchain_llama_stop.chat.template import chat_ids, knows_tools
from langchain_llama_stop.chat.thoughts import opened_thought
from langchain_llama_stop.chat.tool_formats import (
    ToolFormat,
    call_grammar,
    is_known_format,
    tool_format,
)
from langchain_llama_stop.engine.config import eos_token_ids, token_budget
from langchain_llama_stop.engine.refusals import truncated
from langchain_llama_stop.grammar.schema import Grammar
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.detokenizer import detokenizer


class ChatRequest(NamedTuple):
    """One call of a chat model, as the engine takes it.

    Attributes:
        prompt_ids: Token ids of the rendered conversation.
        options: The call's options; with tools, their grammar is among them.
        tools: The parameters (a JSON schema) of each tool that the answer may call, by its name.
        parallel: Whether the answer may hold several calls.
        thought: The tag that closes the thought that the prompt has begun, "" if it has begun none;
            None for an answer that is not taken apart, as it is given with its prompt.
    """

    prompt_ids: list[int]
    options: GenerationOptions
    tools: dict[str, Any]
    parallel: bool
    thought: str | None


def build_request(
    pipeline: Any,
    messages: Sequence[BaseMessage],
    options: GenerationOptions,
    *,
    template: str,
    tools: Sequence[Mapping[str, Any]],
    choice: str | None,
    parallel: bool,
    continue_final_message: bool,
) -> ChatRequest:
    """Checks and encodes one call of a chat model.

    Args:
        pipeline: The loaded pipeline.
        messages: The conversation.
        options: The call's options.
        template: The chat template (Jinja).
        tools: Tools in OpenAI's form; [] if none may be called.
        choice: The tool choice, as `format_choice` returns it.
        parallel: Whether one answer may hold several calls.
        continue_final_message: Whether to continue the last message, an answer.

    Returns:
        The request.

    Raises:
        ValueError: If there is no message, the messages cannot be rendered, or options exclude
            each other.
    """
    check_last(messages, continue_final_message)
    tool_names = [tool["function"]["name"] for tool in tools]
    must_call = choice in ("any", *tool_names)
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
    if continue_final_message and (options.answer_grammar or must_call):
        raise ValueError(
            "`continue_final_message` has to be False with `json_schema`, `grammar` or a demanded "
            "tool, but is True: what they allow begins with the answer. Leave one of them out."
        )
    prompt_ids = conversation_ids(
        pipeline,
        messages,
        options,
        template=template,
        tools=tools,
        show_example=not must_call,
        answer_next=not continue_final_message,
        continue_final_message=continue_final_message,
        close_thought=bool(must_call or options.answer_grammar),
    )
    end = detokenizer(pipeline.tokenizer).decode(prompt_ids[-16:], special=True)
    thought = opened_thought(end)
    if tools and (
        must_call
        or options.json_schema is not None
        or is_known_format(template)
        or not knows_tools(template)
    ):
        several = parallel and knows_tools(template)
        eos = eos_token_ids(pipeline, options)
        added = pipeline.tokenizer.get_added_vocab().items()
        fmt = tool_format(template, {token: i for token, i in added if i not in eos})
        given = json.dumps([tools, options.json_schema])
        grammar = _grammar_of(given, fmt, choice, several, thought)
        options = options.replaced(json_schema=None, grammar=grammar)
    parameters: dict[str, Any] = {}
    for function in (tool["function"] for tool in tools):
        own, others = function["parameters"], parameters.get(function["name"])
        parameters[function["name"]] = own if others is None else {"anyOf": [others, own]}
    thought_of_answer = None if options.return_full_text else thought
    return ChatRequest(prompt_ids, options, parameters, parallel, thought_of_answer)


@functools.lru_cache(maxsize=16)
def _grammar_of(
    given: str, fmt: ToolFormat, choice: str | None, several: bool, thought: str
) -> Grammar:
    """The grammar of calls of [tools, schema of other answers], given as JSON; 16 are kept."""
    tools, schema = json.loads(given)
    return call_grammar(tools, fmt, choice=choice, several=several, schema=schema, thought=thought)


def conversation_ids(
    pipeline: Any,
    messages: Sequence[BaseMessage],
    options: GenerationOptions,
    *,
    template: str,
    tools: Sequence[Mapping[str, Any]] = (),
    show_example: bool = True,
    answer_next: bool = False,
    continue_final_message: bool = False,
    close_thought: bool = False,
) -> list[int]:
    """Renders and encodes a conversation, with the hint and the JSON schema of the options.

    Args:
        pipeline: The loaded pipeline.
        messages: The conversation, at least one message.
        options: The call's options.
        template: The chat template (Jinja).
        tools: Tools in OpenAI's form.
        show_example: As in `chat_ids`.
        answer_next: As in `chat_ids`.
        continue_final_message: Whether to continue the last message, an answer.
        close_thought: As in `chat_ids`.

    Returns:
        The ids of the prompt. It ends where the answer begins or continues; without `answer_next`
        after the last message if that is an answer.

    Raises:
        ValueError: If a message cannot be rendered.
    """
    conversation = template_messages(messages)
    if options.json_schema is not None:
        conversation = with_system(conversation, schema_text(options.json_schema))
    settings: dict[str, Any] = {
        "template": template,
        "tools": tools,
        "show_example": show_example,
        "answer_next": answer_next,
        "continue_final_message": continue_final_message,
        "close_thought": close_thought,
        "split_special_tokens": options.split_special_tokens is not False,
        "template_kwargs": options.chat_template_kwargs,
    }
    ids = chat_ids(pipeline.tokenizer, conversation, **settings)
    if options.answer_hint and conversation[-1]["role"] == "user":
        budget = token_budget(pipeline, options, len(ids), first=True)
        conversation[-1] = with_text(conversation[-1], options.hint(budget))
        ids = chat_ids(pipeline.tokenizer, conversation, **settings)
    return truncated(pipeline, ids)
