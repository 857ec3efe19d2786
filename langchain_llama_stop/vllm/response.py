"""What a server answers as LangChain's results: messages, metadata, the parts of a stream."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any

from langchain_core.exceptions import ModelConnectionError
from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall, ToolCall
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from langchain_llama_stop.options import DEFAULT_MAX_NEW_TOKENS
from langchain_llama_stop.vllm.errors import status_error
from langchain_llama_stop.vllm.request import RequestInfo
from langchain_llama_stop.vllm.wire import Call, Chunk, Completion, Events, Usage, read


def result_of(body: bytes, request: RequestInfo) -> ChatResult:
    """Reads a whole answer; a call that was cut, or that is no object, becomes an invalid one.

    Raises:
        ModelAPIError: If it is no answer.
    """
    answer = read(Completion, body, request.servers)
    (choice,) = answer.choices
    content, usage = choice.message.content or "", _usage(answer.usage)
    calls, invalid = list[ToolCall](), list[InvalidToolCall]()
    for call in choice.message.tool_calls or []:
        name, args = call.function.name, call.function.arguments or ""
        if name and (arguments := _object(args)) is not None:
            calls.append(tool_call(name=name, args=arguments, id=call.id))
        else:
            error = "The call is no JSON object with a name."
            invalid.append(invalid_tool_call(name=name, args=args, id=call.id, error=error))
    if request.must_call and choice.finish_reason == "length" and not calls and not invalid:
        error = "The call was cut: give more `max_tokens`."
        invalid = [invalid_tool_call(name=None, args=content, id=None, error=error)]
        content = ""
    message = AIMessage(
        content=content, tool_calls=calls, invalid_tool_calls=invalid, usage_metadata=usage
    )
    info: dict[str, Any] = {
        "finish_reason": choice.finish_reason,
        "stop_reason": choice.stop_reason,
        "model_name": answer.model,
    }
    if choice.logprobs is not None:
        info["logprobs"] = choice.logprobs.model_dump()
    info = _metadata(request, info, usage, bool(calls))
    return ChatResult(generations=[ChatGeneration(message=message, generation_info=info)])


class AnswerStream:
    """Reads a streamed answer, and keeps what is given only at its end.

    Tool calls come at the end because only there it is known whether they are complete; so do
    token counts and metadata.
    """

    def __init__(self, request: RequestInfo) -> None:
        """Starts with nothing kept."""
        self._request, self._events = request, Events()
        self._info: dict[str, Any] = {"finish_reason": None, "stop_reason": None}
        self._usage: UsageMetadata | None = None
        self._calls: dict[int, Call] = {}

    def feed(self, piece: bytes) -> Iterator[ChatGenerationChunk]:
        """Takes the next bytes; returns what can be given now.

        Raises:
            ModelError: If a chunk is none, or says that the answer has failed.
        """
        for data in self._events.feed(piece):
            if data.strip() != b"[DONE]":
                chunk = read(Chunk, data, self._request.servers)
                yield from self._given_now(chunk)

    def _given_now(self, chunk: Chunk) -> Iterator[ChatGenerationChunk]:
        if chunk.error is not None:
            code = chunk.error.get("code") if isinstance(chunk.error, dict) else None
            status = code if isinstance(code, int) and 400 <= code < 600 else 500
            raise status_error(self._request.servers, status, chunk.error)
        self._usage = _usage(chunk.usage) or self._usage
        for choice in chunk.choices:
            if choice.finish_reason:
                self._info["finish_reason"] = choice.finish_reason
                self._info["stop_reason"] = choice.stop_reason
                self._info["model_name"] = chunk.model
            content = ""
            if choice.delta:
                content = choice.delta.content or ""
                for call in choice.delta.tool_calls or []:
                    self._add(call)
            info = {"logprobs": choice.logprobs.model_dump()} if choice.logprobs else None
            if content or info:
                message = AIMessageChunk(content=content)
                yield ChatGenerationChunk(message=message, generation_info=info)

    def _add(self, part: Call) -> None:
        call = self._calls.setdefault(part.index, part)
        if call is not part:
            call.id = call.id or part.id
            call.function.name = call.function.name or part.function.name
            arguments = (call.function.arguments, part.function.arguments)
            call.function.arguments = "".join(text for text in arguments if text)

    def last(self) -> ChatGenerationChunk:
        """Returns all that was kept, as the last chunk of the stream.

        Raises:
            ModelConnectionError: If the server has not finished the answer.
        """
        reason = self._info["finish_reason"]
        if reason is None:
            raise ModelConnectionError(
                f"No whole answer from {self._request.servers}: the stream has ended before the "
                "answer. Has the server been stopped, or does a proxy before it cut long streams?"
            )
        calls = [
            tool_call_chunk(
                name=call.function.name, args=call.function.arguments, id=call.id, index=index
            )
            for index, call in sorted(self._calls.items())
        ]
        complete, cut = 0, reason == "length"
        if not calls and self._request.must_call and cut:
            calls = [tool_call_chunk(index=0)]  # cut before the server recognized a call
        for number, chunk in enumerate(calls, 1):
            args = chunk["args"] or ""
            # vLLM writes "{}" if the answer was cut after the name of the tool.
            name_only = cut and number == len(calls) and args == "{}"
            if chunk["name"] and _object(args) is not None and not name_only:
                complete += 1
            else:  # no JSON any more: LangChain would complete arguments that were cut
                chunk["args"] = f"cut: {args}"
        message = AIMessageChunk(
            content="", tool_call_chunks=calls, usage_metadata=self._usage, chunk_position="last"
        )
        info = _metadata(self._request, self._info, self._usage, complete > 0)
        return ChatGenerationChunk(message=message, generation_info=info)


def _usage(usage: Usage | None) -> UsageMetadata | None:
    if usage is None:
        return None
    read_tokens, written = usage.prompt_tokens, usage.completion_tokens
    counts = UsageMetadata(
        input_tokens=read_tokens, output_tokens=written, total_tokens=read_tokens + written
    )
    details = usage.prompt_tokens_details
    if details and details.cached_tokens is not None:
        counts["input_token_details"] = InputTokenDetails(cache_read=details.cached_tokens)
    return counts


def _object(text: str) -> dict[str, Any] | None:
    """The object that a text is in JSON, None if it is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


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
