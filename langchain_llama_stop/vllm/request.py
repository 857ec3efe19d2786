"""Options and messages as the body of a request to vLLM's chat completions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from langchain_core.messages import BaseMessage, convert_to_openai_messages

from langchain_llama_stop._langchain.messages import MEDIA, template_messages, with_text
from langchain_llama_stop._langchain.schema_text import schema_text
from langchain_llama_stop.chat.reshape import Message, merged
from langchain_llama_stop.options import DEFAULT_MAX_NEW_TOKENS, OPTIONS, GenerationOptions
from langchain_llama_stop.vllm.xargs import reward_args

REQUEST_OPTIONS = tuple(option.name for option in OPTIONS.values() if option.request)
"""The options of a generation that a request carries."""

_TAKEN = {
    *REQUEST_OPTIONS,
    *("messages", "model", "max_tokens", "max_completion_tokens", "n", "stream", "stream_options"),
    *("tools", "tool_choice", "response_format"),
}
"""What `extra_body` may not hold, because an argument or an option of its own sets it."""

_MAY_CUT = ("ignore_eos", "min_tokens", "structured_outputs", "logit_bias")
"""Settings of vLLM under which an answer may be cut although the reward is on."""

_ELSEWHERE = {
    "pipeline": "it needs the model in this process: use `ChatLlamaStop`",
    "quantization": "start the server with `vllm serve --quantization`",
    "adapter": "start the server with `vllm serve --enable-lora --lora-modules NAME=FOLDER` and "
    "give `model=NAME`",
    "dtype": "start the server with `vllm serve --dtype`",
    "device_map": "start the server with `vllm serve --tensor-parallel-size`",
    "revision": "start the server with `vllm serve --revision`",
    "token": "give the server's environment an `HF_TOKEN`, and this class an `api_key`",
    "trust_remote_code": "start the server with `vllm serve --trust-remote-code`",
    "model_kwargs": "give `extra_body`",
    # `timeout` is an argument of the client too.
    **{o.name: o.server for o in OPTIONS.values() if o.server and o.name != "timeout"},
}
"""Arguments of `ChatLlamaStop` that a request does not carry, and what to do instead."""

_WRITERS: dict[str, Callable[[Any], Any]] = {
    "stop": list,
    "stop_token_ids": lambda sequences: [token_id for (token_id,) in sequences],
    "eos_reward": reward_args,
    "json_schema": lambda schema: {"json": schema},
    # vLLM picks one backend for all requests: a schema is taken by each, Lark only by one.
    "grammar": lambda grammar: (
        {"json": json.loads(grammar.schema)} if grammar.schema else {"grammar": grammar.lark}
    ),
}
"""How a request writes those options that it does not take as they are."""


def refuse_server_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options without those that a request does not carry.

    Raises:
        ValueError: If one of those is not the default; the message says what to do instead.
    """
    for name, instead in _ELSEWHERE.items():
        value, default = values.get(name), OPTIONS[name].default if name in OPTIONS else None
        if value is not None and value not in ([], (), {}, False, default):
            raise ValueError(
                f"`{name}` is no option of a request to a server, but is {value!r}: {instead}."
            )
    return {name: value for name, value in values.items() if name not in _ELSEWHERE}


def request(options: GenerationOptions, extra_body: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the options as the body of a request.

    Args:
        options: The options.
        extra_body: What the user adds to the body for vLLM.

    Returns:
        The body, without model and messages.

    Raises:
        ValueError: If `stop_token_ids` holds a sequence of several ids, or `extra_body` holds what
            an option sets.
    """
    xargs = extra_body.get("vllm_xargs") or {}
    taken = [name for name in extra_body if name in _TAKEN]
    if taken or any(name.startswith("eos_reward") for name in xargs):
        raise ValueError(
            f"`extra_body` may hold no {taken[0] if taken else 'eos_reward'!r}, which is asked for "
            "by an option of its own."
        )
    for sequence in options.stop_token_ids:
        if len(sequence) > 1:
            raise ValueError(
                f"`stop_token_ids` has to hold single ids, as vLLM takes no sequences, but holds "
                f"{list(sequence)!r}: give its text as `stop`."
            )
    body: dict[str, Any] = {"max_completion_tokens": DEFAULT_MAX_NEW_TOKENS, **extra_body}
    for option in OPTIONS.values():
        value = getattr(options, option.name)
        if value is None or value is False or value == () or option.request in ("", "messages"):
            continue
        if value == {} and option.name not in _WRITERS:
            continue  # nothing was given
        written = _WRITERS[option.name](value) if option.name in _WRITERS else value
        body[option.request.removeprefix("extra_body.")] = written
    if xargs:
        body["vllm_xargs"] = {**xargs, **body["vllm_xargs"]}
    return body


class RequestInfo(NamedTuple):
    """What has to be known of a request to judge its answer.

    Attributes:
        options: Its options.
        must_call: Whether the answer has to be a tool call.
        ends_freely: Whether nothing but the reward decides where the answer ends.
        servers: The addresses that may answer, for errors.
    """

    options: GenerationOptions
    must_call: bool
    ends_freely: bool
    servers: str

    @classmethod
    def of(
        cls, options: GenerationOptions, body: Mapping[str, Any], servers: Sequence[str]
    ) -> RequestInfo:
        """Reads it from a call's options and the body of its request."""
        tools = "tools" in body
        must_call = tools and body.get("tool_choice", "auto") != "auto"
        freely = not tools and not body.keys() & {*_MAY_CUT}
        return cls(options, must_call, freely, " or ".join(servers))


def openai_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """A conversation in OpenAI's form, its texts as the models in process read them.

    Args:
        messages: Messages of LangChain, also those that other providers' models have made.

    Raises:
        ValueError: If a block of a message cannot be sent.
    """
    media = [m for m in messages if isinstance(m.content, list) and any(map(_is_media, m.content))]
    told = template_messages(
        [m.model_copy(update={"content": ""}) if m in media else m for m in messages]
    )
    for message, written in zip(messages, told, strict=True):
        written.pop("reasoning_content", None)
        if message in media:
            (converted,) = convert_to_openai_messages([message])
            written["content"] = converted["content"]
        for call in written.get("tool_calls", ()):
            function = call["function"]
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return told


def _is_media(block: Any) -> bool:
    return isinstance(block, dict) and block.get("type") in MEDIA


def with_instructions(messages: list[Message], options: GenerationOptions) -> list[Message]:
    """Adds to a conversation what the options tell the model: the schema first, the hint last.

    Args:
        messages: Messages in OpenAI's form.
        options: Their schema becomes a system message; their hint goes to the end of the last
            message if that is the user's.

    Returns:
        The messages. Neighbours of one role are joined if both are text and have no name.
    """
    if options.json_schema is not None:
        messages = [{"role": "system", "content": schema_text(options.json_schema)}, *messages]
    if messages[-1]["role"] == "user":
        hint = options.hint(options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS)
        messages = [*messages[:-1], with_text(messages[-1], hint)]
    joined: list[Message] = []
    for message in messages:
        both = (*joined[-1:], message)
        if joined and all(isinstance(m["content"], str) and "name" not in m for m in both):
            joined[-1:] = merged([joined[-1], message])
        else:
            joined.append(message)
    return joined


def strict_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Makes vLLM hold calls to the schemas of their tools, as the models in process always do."""
    return [{**tool, "function": {**tool["function"], "strict": True}} for tool in tools]
