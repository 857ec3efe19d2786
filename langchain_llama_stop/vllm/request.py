"""Options and messages as a request to vLLM's chat completions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from langchain_llama_stop._langchain.messages import with_text
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
    """Writes the options as arguments of openai's `chat.completions.create`.

    Args:
        options: The options.
        extra_body: What the user adds to the body for vLLM.

    Returns:
        The arguments, without model and messages.

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
    arguments: dict[str, Any] = {"max_completion_tokens": DEFAULT_MAX_NEW_TOKENS}
    body = dict(extra_body)
    for option in OPTIONS.values():
        value = getattr(options, option.name)
        where, _, name = option.request.partition(".")
        if value is None or value is False or value == () or where in ("", "messages"):
            continue
        if value == {} and option.name not in _WRITERS:
            continue  # nothing was given
        written = _WRITERS[option.name](value) if option.name in _WRITERS else value
        (body if name else arguments)[name or where] = written
    if xargs:
        body["vllm_xargs"] = {**xargs, **body["vllm_xargs"]}
    return {**arguments, "extra_body": body} if body else arguments


class RequestInfo(NamedTuple):
    """What has to be known of a request to judge its answer.

    Attributes:
        options: Its options.
        must_call: Whether the answer has to be a tool call.
        ends_freely: Whether nothing but the reward decides where the answer ends.
    """

    options: GenerationOptions
    must_call: bool
    ends_freely: bool

    @classmethod
    def of(
        cls, options: GenerationOptions, call: Mapping[str, Any], extra_body: Mapping[str, Any]
    ) -> RequestInfo:
        """Reads it from a call's options, its other arguments, and the model's `extra_body`."""
        tools = bool(call.get("tools")) and call.get("tool_choice") != "none"
        body = {**extra_body, **(call.get("extra_body") or {})}
        must_call = tools and call.get("tool_choice") not in (None, "auto")
        return cls(options, must_call, not tools and not body.keys() & {*_MAY_CUT})


def with_instructions(messages: list[Message], options: GenerationOptions) -> list[Message]:
    """Adds to a conversation what the options tell the model: the schema first, the hint last.

    Args:
        messages: Messages in the form of openai's client.
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
        text = _text(message.get("content"))
        message = message if text is None else {**message, "content": text}
        both = (*joined[-1:], message)
        if joined and all(isinstance(m["content"], str) and "name" not in m for m in both):
            joined[-1:] = merged([joined[-1], message])
        else:
            joined.append(message)
    return joined


def _text(content: Any) -> str | None:
    """The content of a message as text; None if it holds more than text."""
    if content is None or isinstance(content, str):
        return content or ""
    if all(block.get("type") == "text" for block in content):
        return "\n".join(block["text"] for block in content)
    return None


def strict_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Makes vLLM hold calls to the schemas of their tools, as the models in process always do."""
    return [{**tool, "function": {**tool["function"], "strict": True}} for tool in tools]
