"""What a generation asks for as a request to vLLM's chat completions, and what came of it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_llama_stop._langchain.messages import schema_message, with_text
from langchain_llama_stop.chat.template import Message, merged
from langchain_llama_stop.options import DEFAULT_MAX_NEW_TOKENS, GenerationOptions
from langchain_llama_stop.vllm.xargs import reward_args

REQUEST_OPTIONS = (
    *("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed"),
    *("stop", "stop_token_ids", "eos_reward", "answer_hint", "json_schema", "grammar"),
    *("logprobs", "top_logprobs"),
)
"""The options of a generation that a request carries."""

_TAKEN = {
    *REQUEST_OPTIONS,
    *("messages", "model", "max_tokens", "max_completion_tokens", "n", "stream", "stream_options"),
    *("tools", "tool_choice", "response_format"),
}
"""What a user may not put into the body of a request, as it is asked for otherwise."""

_FREE_ENDS = ("ignore_eos", "min_tokens", "structured_outputs", "logit_bias")
"""Settings of vLLM under which an answer may be cut though the reward is on."""

_IN_PROCESS = "it needs the model in this process: use `ChatLlamaStop`"
_ELSEWHERE = {
    "quantization": "start the server with `vllm serve --quantization`",
    "adapter": "start the server with `vllm serve --enable-lora --lora-modules NAME=FOLDER` and "
    "give `model=NAME`",
    "dtype": "start the server with `vllm serve --dtype`",
    "device_map": "start the server with `vllm serve --tensor-parallel-size`",
    "revision": "start the server with `vllm serve --revision`",
    "token": "give the server's environment an `HF_TOKEN`, and this class an `api_key`",
    "trust_remote_code": "start the server with `vllm serve --trust-remote-code`",
    "batch_size": "start the server with `vllm serve --max-num-seqs`",
    "prefix_cache": "start the server with `vllm serve --enable-prefix-caching`, its default",
    "prompt_lookup_num_tokens": "vLLM runs no logits processors of ours beside guessed tokens",
    "assistant_model": "vLLM runs no logits processors of ours beside guessed tokens",
    "logits_processor": "start the server with `vllm serve --logits-processors`",
    "stopping_criteria": "give `stop` or `stop_token_ids`",
    "pipeline_kwargs": "give `extra_body`",
    "model_kwargs": "give `extra_body`",
    "max_calls": "start the server with `vllm serve --max-num-seqs`",
    "on_timeout": "an answer of a server that takes too long is always an error",
    "pipeline": _IN_PROCESS,
    "on_length": _IN_PROCESS,
    "thinking_tokens": _IN_PROCESS,
    "return_full_text": _IN_PROCESS,
    "split_special_tokens": _IN_PROCESS,
}
"""What `ChatLlamaStop` takes and a request does not carry, and what to do instead."""


def without_elsewhere(values: Mapping[str, Any]) -> dict[str, Any]:
    """Refuses what is no option of a request; what says the default is dropped.

    Args:
        values: Options as a user writes them.

    Returns:
        Those that are not set elsewhere.

    Raises:
        ValueError: If one is set elsewhere, saying where.
    """
    defaults = GenerationOptions()
    for name, instead in _ELSEWHERE.items():
        value = values.get(name)
        if value is not None and value not in ([], {}, False, getattr(defaults, name, None)):
            raise ValueError(
                f"`{name}` is no option of a request to a server, but is {value!r}: {instead}."
            )
    return {name: value for name, value in values.items() if name not in _ELSEWHERE}


def request(options: GenerationOptions, extra_body: Mapping[str, Any]) -> dict[str, Any]:
    """Writes the options as arguments of openai's `chat.completions.create`.

    Args:
        options: The options.
        extra_body: The user's own, for vLLM.

    Returns:
        The arguments, without model and messages.

    Raises:
        ValueError: If `stop_token_ids` holds a sequence of several, or `extra_body` what has an
            option of its own.
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
    schema, grammar = options.json_schema, options.grammar
    xargs = {**xargs, **reward_args(options.eos_reward)}
    body = {
        "top_k": options.top_k,
        "repetition_penalty": options.repetition_penalty,
        "stop_token_ids": [i for (i,) in options.stop_token_ids] or None,
        "structured_outputs": (
            {"json": schema}
            if schema is not None
            else {"grammar": grammar.lark}
            if grammar
            else None
        ),
        "vllm_xargs": xargs or None,
    }
    arguments = {
        "max_completion_tokens": options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "seed": options.seed,
        "stop": list(options.stop) or None,
        "logprobs": options.logprobs or None,
        "top_logprobs": options.top_logprobs,
        "extra_body": {**extra_body, **_given(body)} or None,
    }
    return _given(arguments)


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


class Asked(NamedTuple):
    """What an answer is asked for with.

    Attributes:
        options: The options.
        demanded: Whether it has to call a tool.
        free: Whether nothing but the reward says where it ends.
    """

    options: GenerationOptions
    demanded: bool
    free: bool

    @classmethod
    def of(
        cls, options: GenerationOptions, call: Mapping[str, Any], extra_body: Mapping[str, Any]
    ) -> Asked:
        """Reads it from a call.

        Args:
            options: Its options.
            call: Its other arguments.
            extra_body: The constructor's.

        Returns:
            What was asked for.
        """
        tools = bool(call.get("tools")) and call.get("tool_choice") != "none"
        body = {**extra_body, **(call.get("extra_body") or {})}
        demanded = tools and call.get("tool_choice") not in (None, "auto")
        return cls(options, demanded, not tools and not body.keys() & {*_FREE_ENDS})


def told(messages: list[Message], options: GenerationOptions) -> list[Message]:
    """Puts into a conversation what the options tell the model.

    Args:
        messages: As openai's client takes them.
        options: Their schema is told first, their hint at the end of the user's turn.

    Returns:
        The messages; neighbours of one role are joined where they are text.
    """
    if options.json_schema is not None:
        messages = [schema_message(options.json_schema), *messages]
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
    """A message's content as a text; None if it is more than that."""
    if content is None or isinstance(content, str):
        return content or ""
    if all(block.get("type") == "text" for block in content):
        return "\n".join(block["text"] for block in content)
    return None


def strict_tools(tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Asks vLLM to hold calls to the schemas of their tools, as is always done in process.

    Args:
        tools: Tools in OpenAI's form.

    Returns:
        Tools like them.
    """
    return [{**tool, "function": {**tool["function"], "strict": True}} for tool in tools]


def answer_info(
    options: GenerationOptions,
    *,
    finish_reason: str | None,
    stop_reason: str | int | None,
    output_tokens: int | None,
    calls: bool,
) -> dict[str, Any]:
    """Says of a server's answer what our models say of theirs.

    Args:
        options: The options it was asked for with.
        finish_reason: vLLM's.
        stop_reason: vLLM's: a stop string, a token id, or None.
        output_tokens: Tokens of the answer, EOS included; None where they are not known.
        calls: Whether it holds a whole tool call.

    Returns:
        `finish_reason`, `stop_reason` and `eos_source`. The source is "model" where there was no
        reward yet, or none at all; None where it was, as a server does not tell.
    """
    if isinstance(stop_reason, int):
        # vLLM names EOS ids too, where a model has several.
        found = (stop_reason,) in options.stop_token_ids
        stopped: str | list[int] | None = [stop_reason] if found else None
    else:
        stopped = stop_reason
    reward, budget = options.eos_reward, options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    alone = not reward or (output_tokens is not None and output_tokens <= reward.zone(budget))
    by_eos = finish_reason in ("stop", "tool_calls") and stopped is None
    return {
        "finish_reason": "tool_calls" if calls and finish_reason == "stop" else finish_reason,
        "stop_reason": stopped,
        "eos_source": "model" if by_eos and alone else None,
    }


class Ending:
    """What a stream tells of its answer, given as one at its end: also the calls, once whole."""

    def __init__(self, asked: Asked) -> None:
        """Begins with nothing known.

        Args:
            asked: What the answer was asked for with.
        """
        self._asked = asked
        self._info: dict[str, Any] = {}
        self._usage: UsageMetadata | None = None
        self._calls = AIMessageChunk(content="")

    def noted(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk | None:
        """Takes from a chunk what is given at the end.

        Args:
            chunk: The next of the stream.

        Returns:
            The rest of it; None if nothing is left.
        """
        message, info = cast(AIMessageChunk, chunk.message), dict(chunk.generation_info or {})
        if message.tool_call_chunks:
            more = AIMessageChunk(content="", tool_call_chunks=message.tool_call_chunks)
            self._calls = self._calls + more
        self._info |= {name: info.pop(name) for name in _ENDING if name in info}
        self._usage = message.usage_metadata or self._usage
        if not message.content and not info and not message.additional_kwargs:
            return None
        calls = ("tool_call_chunks", "tool_calls", "invalid_tool_calls")
        held: dict[str, Any] = {name: [] for name in calls} | {"usage_metadata": None}
        rest = message.model_copy(update=held)
        return ChatGenerationChunk(message=rest, generation_info=info or None)

    def last(self) -> ChatGenerationChunk:
        """Gives all that was held back, in the last chunk."""
        calls, whole = list(self._calls.tool_call_chunks), 0
        cut = self._info.get("finish_reason") == "length"
        if not calls and self._asked.demanded and cut:
            calls = [tool_call_chunk(index=0)]  # cut before the server has seen any of it
        for number, call in enumerate(calls, 1):
            args = call["args"] or ""
            # vLLM gives no arguments where it has seen the name only.
            begun = cut and number == len(calls) and args == "{}"
            if _is_object(args) and not begun:
                whole += 1
            else:  # LangChain would complete what was cut
                call["args"] = f"cut: {args}"
        message = AIMessageChunk(
            content="", tool_call_chunks=calls, usage_metadata=self._usage, chunk_position="last"
        )
        info = _finished(self._asked, self._info, self._usage, whole > 0)
        return ChatGenerationChunk(message=message, generation_info=info)


_ENDING = ("finish_reason", "stop_reason", "model_name")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def with_info(result: ChatResult, asked: Asked) -> ChatResult:
    """Gives an answer the metadata that our models give.

    Args:
        result: LangChain's result of one request.
        asked: What it was asked for with.

    Returns:
        The result.
    """
    (generation,) = result.generations
    message, info = cast(AIMessage, generation.message), dict(generation.generation_info or {})
    if info.get("logprobs") is None:
        info.pop("logprobs", None)
    if asked.demanded and info["finish_reason"] == "length" and not message.tool_calls:
        error = "The call was cut: give more `max_tokens`."
        cut = invalid_tool_call(name=None, args=message.text, id=None, error=error)
        message.invalid_tool_calls = [cut]
        message.content = ""
    calls = bool(message.tool_calls)
    generation.generation_info = _finished(asked, info, message.usage_metadata, calls)
    return result


def _finished(
    asked: Asked, info: dict[str, Any], usage: UsageMetadata | None, calls: bool
) -> dict[str, Any]:
    """The metadata of an answer, out of the server's."""
    options = asked.options
    found = answer_info(
        options,
        finish_reason=info.get("finish_reason"),
        stop_reason=info.get("stop_reason"),
        output_tokens=usage and usage["output_tokens"],
        calls=calls,
    )
    forced = options.eos_reward and options.eos_reward.force_eos and not options.answer_grammar
    if found["finish_reason"] == "length" and forced and asked.free:
        warnings.warn(
            "The server has cut an answer that `eos_reward` has to end: start it with `vllm serve "
            "MODEL --logits-processors langchain_llama_stop.vllm:EosRewardLogitsProcessor`, or "
            "give `eos_reward=False`.",
            stacklevel=2,
        )
    return {**info, **found}
