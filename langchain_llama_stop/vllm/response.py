"""What vLLM's server answers: the metadata of an answer, and the last chunk of a stream."""

from __future__ import annotations

import json
import warnings
from typing import Any, cast

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk, ChatResult

from langchain_llama_stop.options import DEFAULT_MAX_NEW_TOKENS
from langchain_llama_stop.vllm.request import RequestInfo


def finish_result(result: ChatResult, request: RequestInfo) -> ChatResult:
    """Gives LangChain's result of a request our metadata; a call that was cut becomes invalid."""
    (generation,) = result.generations
    message, info = cast(AIMessage, generation.message), dict(generation.generation_info or {})
    if info.get("logprobs") is None:
        info.pop("logprobs", None)
    if request.must_call and info["finish_reason"] == "length" and not message.tool_calls:
        error = "The call was cut: give more `max_tokens`."
        cut = invalid_tool_call(name=None, args=message.text, id=None, error=error)
        message.invalid_tool_calls = [cut]
        message.content = ""
    called = bool(message.tool_calls)
    generation.generation_info = _metadata(request, info, message.usage_metadata, called)
    return result


class StreamTail:
    """Keeps what a stream gives only at its end: tool calls, token counts and metadata.

    A tool call comes at the end because only there it is known whether it is complete.
    """

    def __init__(self, request: RequestInfo) -> None:
        """Starts with nothing kept."""
        self._request = request
        self._info: dict[str, Any] = {}
        self._usage: UsageMetadata | None = None
        self._calls = AIMessageChunk(content="")

    def feed(self, chunk: ChatGenerationChunk) -> ChatGenerationChunk | None:
        """Takes the next chunk; returns the part that can be given now, or None."""
        message, info = cast(AIMessageChunk, chunk.message), dict(chunk.generation_info or {})
        if message.tool_call_chunks:
            more = AIMessageChunk(content="", tool_call_chunks=message.tool_call_chunks)
            self._calls = self._calls + more
        self._info |= {name: info.pop(name) for name in _LAST_INFO if name in info}
        self._usage = message.usage_metadata or self._usage
        if not message.content and not info and not message.additional_kwargs:
            return None
        calls = ("tool_call_chunks", "tool_calls", "invalid_tool_calls")
        emptied: dict[str, Any] = {name: [] for name in calls} | {"usage_metadata": None}
        rest = message.model_copy(update=emptied)
        return ChatGenerationChunk(message=rest, generation_info=info or None)

    def last(self) -> ChatGenerationChunk:
        """Returns all that was kept, as the last chunk of the stream."""
        calls, complete = list(self._calls.tool_call_chunks), 0
        cut = self._info.get("finish_reason") == "length"
        if not calls and self._request.must_call and cut:
            calls = [tool_call_chunk(index=0)]  # cut before the server recognized a call
        for number, call in enumerate(calls, 1):
            args = call["args"] or ""
            # vLLM writes "{}" if the answer was cut after the name of the tool.
            name_only = cut and number == len(calls) and args == "{}"
            if _is_object(args) and not name_only:
                complete += 1
            else:  # no JSON any more: LangChain would complete arguments that were cut
                call["args"] = f"cut: {args}"
        message = AIMessageChunk(
            content="", tool_call_chunks=calls, usage_metadata=self._usage, chunk_position="last"
        )
        info = _metadata(self._request, self._info, self._usage, complete > 0)
        return ChatGenerationChunk(message=message, generation_info=info)


_LAST_INFO = ("finish_reason", "stop_reason", "model_name")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _metadata(
    request: RequestInfo, info: dict[str, Any], usage: UsageMetadata | None, called: bool
) -> dict[str, Any]:
    """The metadata of an answer as our other models give it, from the server's.

    `eos_source` is "model" where no reward was at work yet, or there was none at all. Else it is
    None, as a server does not say whether the reward chose EOS.
    """
    options, stop_reason = request.options, info.get("stop_reason")
    if isinstance(stop_reason, int):
        # If a model has several EOS ids, vLLM gives the one that ended the answer here, too.
        stop_reason = [stop_reason] if (stop_reason,) in options.stop_token_ids else None
    finish_reason, reward = info.get("finish_reason"), options.eos_reward
    by_eos = finish_reason in ("stop", "tool_calls") and stop_reason is None
    zone = reward.zone(options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS) if reward else None
    unrewarded = zone is None or (usage is not None and usage["output_tokens"] <= zone)
    forced = reward and reward.force_eos and not options.answer_grammar
    if finish_reason == "length" and forced and request.ends_freely:
        warnings.warn(
            "The server has cut an answer that `eos_reward` has to end: start it with `vllm serve "
            "MODEL --logits-processors langchain_llama_stop.vllm:EosRewardLogitsProcessor`, or "
            "give `eos_reward=False`.",
            stacklevel=2,
        )
    return {
        **info,
        "finish_reason": "tool_calls" if called and finish_reason == "stop" else finish_reason,
        "stop_reason": stop_reason,
        "eos_source": "model" if by_eos and unrewarded else None,
    }
