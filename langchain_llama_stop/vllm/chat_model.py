"""ChatLlamaStopServer: the chat model of this package, with the model on a vLLM server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

import httpx2
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import (
    BaseChatModel,
    LangSmithParams,
    LanguageModelInput,
    ModelProfile,
)
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_openai.chat_models.base import BaseChatOpenAI
from pydantic import ConfigDict, Field, SecretStr, model_validator

from langchain_llama_stop._checks import check_number, refuse_unknown
from langchain_llama_stop._langchain.fields import ParsedOptionsMixin, model_profile
from langchain_llama_stop._langchain.messages import check_last
from langchain_llama_stop._langchain.serialization import ChatSerializationMixin, explicit_fields
from langchain_llama_stop._langchain.structured_output import BindingMixin
from langchain_llama_stop._langchain.tools import format_choice, format_response, format_tools
from langchain_llama_stop._version import __version__
from langchain_llama_stop.options import (
    ALIASES,
    DEFAULT_MAX_NEW_TOKENS,
    OPTIONS,
    GenerationOptions,
    RequestOptions,
    resolve_aliases,
)
from langchain_llama_stop.vllm.request import (
    REQUEST_OPTIONS,
    RequestInfo,
    refuse_server_options,
    request,
    strict_tools,
    with_instructions,
)
from langchain_llama_stop.vllm.response import StreamTail, finish_result
from langchain_llama_stop.vllm.servers import (
    are_ours,
    clear_errors,
    http_clients,
    server_root,
    timeouts,
)

_LOCAL = "http://localhost:8000/v1"
_NO_KEY = "EMPTY"
_NAMES = {  # the argument's name in LangChain's classes: the field's in langchain-openai's
    "model": "model_name",
    "api_key": "openai_api_key",
    "timeout": "request_timeout",
    "stop_sequences": "stop",
}
_CLIENT = (
    *("model_name", "base_urls", "openai_api_base", "openai_api_key", "request_timeout"),
    *("max_retries", "streaming", "extra_body", "default_headers", "default_query"),
    *("http_client", "http_async_client", "stream_chunk_timeout", "output_version"),
)
_FIXED = {"use_responses_api": False, "stream_usage": True, "openai_proxy": None}
_HTTP = ("http_client", "http_async_client")
_DERIVED = (
    *("client", "async_client", "root_client", "root_async_client", *_HTTP, *_FIXED),
    *("model_name", "base_urls", "openai_api_base", "openai_api_key", "openai_organization"),
    *("request_timeout", "model_kwargs", "default_headers", "default_query"),
)
"""Fields that follow from others, or that the constructor takes under another name."""
_CALL = (
    *("tools", "tool_choice", "parallel_tool_calls", "continue_final_message", "response_format"),
    *("extra_body", "extra_headers", "timeout", "user", "stream", "stream_options"),
)
_OPTIONS = {*OPTIONS, *ALIASES} - {*_CALL}  # `timeout` is here that of the HTTP request


class ChatLlamaStopServer(
    ChatSerializationMixin, ParsedOptionsMixin, BindingMixin, RequestOptions, BaseChatOpenAI
):
    r"""A chat model on a vLLM server, whose answers end and stop where the options say.

    Example:
        ```python
        chat = ChatLlamaStopServer(model="meta-llama/Llama-3.1-8B-Instruct", temperature=0)
        chat.invoke("What can I do in Paris?", max_tokens=128)
        chat.invoke([("system", "Be brief."), ("human", "Name a river.")], stop=["\n"])
        ```

    It takes the options of `ChatLlamaStop` that a request can carry. The others are refused; the
    error names the setting of the server to use instead. A request that fails raises one of
    LangChain's `ModelError`s: at once if the server refuses it, after `max_retries` more tries if
    the server is busy, breaks down or cannot be reached.
    """

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    model_name: str = Field(alias="model")
    """The name under which the server serves the model."""
    base_urls: tuple[str, ...] = ()
    """Where the servers listen, without "/v1": the argument is `base_url`, an address or a list of
    them. Each request goes to the one that answered last, and on to the next where that fails."""
    default_headers: Mapping[str, str] | None = Field(default=None, repr=False)
    """Headers of each request."""
    default_query: Mapping[str, object] | None = Field(default=None, repr=False)
    """What stands after "?" in the address of each request."""
    if TYPE_CHECKING:  # type checkers see arguments of the constructor
        base_url: str | Sequence[str] | None = None
        api_key: SecretStr | str | None = None
        max_new_tokens: int | None = None
    else:

        @property
        def max_new_tokens(self) -> int | None:
            """Another name of `max_tokens`."""
            return self.max_tokens

    @model_validator(mode="before")
    @classmethod
    def _known_arguments_only(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuses unknown arguments and resolves other names of known ones."""
        values = resolve_aliases(refuse_server_options(values))
        for name, field in {**_NAMES, "max_new_tokens": "max_tokens"}.items():
            if name in values:
                values.setdefault(field, values.pop(name))
        ours = {*BaseChatModel.model_fields, *REQUEST_OPTIONS, "max_tokens", *_CLIENT}
        for name in set(values) & set(cls.model_fields) - ours:
            # LangChain copies a model with all of its fields, inherited ones included.
            default = cls.model_fields[name].get_default(call_default_factory=True)
            if values[name] in (None, default, _FIXED.get(name)) or name.endswith("client"):
                del values[name]
        refuse_unknown(values, {*ours, *_NAMES, "base_url"}, "option")
        given = values.pop("base_url", None)
        if given is None:
            given = values.get("base_urls") or values.get("openai_api_base") or _LOCAL
        given = [given] if isinstance(given, str) else given
        roots = values["base_urls"] = tuple(server_root(url) for url in given)
        if not roots:
            raise ValueError("`base_url` has to hold at least one address, but is empty.")
        values["openai_api_base"] = f"{roots[0]}/v1"
        if values.get("openai_api_key") is None:
            values["openai_api_key"] = os.environ.get("VLLM_API_KEY") or _NO_KEY
        seconds = values.get("request_timeout")
        if seconds is None or isinstance(seconds, (int, float)):
            check_number("timeout", seconds, 0, "over 0 seconds", above=True)
            values["request_timeout"] = timeouts(600.0 if seconds is None else seconds)
        given_clients = {name: values.pop(name, None) for name in _HTTP}
        return {**values, **http_clients(roots, **given_clients), **_FIXED}

    @model_validator(mode="before")
    @classmethod
    def validate_temperature(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Replaces langchain-openai's check, which goes by the names of OpenAI's models."""
        return values

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        """Checks the options; a client sends nothing that the environment says of OpenAI."""
        self._add_version("langchain-llama-stop", __version__)
        request(self._options(), self.extra_body or {})
        self.openai_organization = None
        for client in (self.root_client, self.root_async_client):
            client.organization = client.project = None
            client._custom_headers = dict(self.default_headers or {})
        return self

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The name under which `load` is given the key."""
        key = self.openai_api_key
        plain = key.get_secret_value() if isinstance(key, SecretStr) else key
        return {} if plain in (None, _NO_KEY) else {"openai_api_key": "VLLM_API_KEY"}

    def _constructor_arguments(self) -> dict[str, Any]:
        limits = self.request_timeout
        seconds = limits.read if isinstance(limits, httpx2.Timeout) else None
        ours = are_ours(self.http_client, self.http_async_client)
        may_hold_secrets = self.default_headers or self.default_query
        if not ours or may_hold_secrets or seconds is None or limits != timeouts(seconds):
            raise TypeError("Clients and what they send along have no form in JSON.")
        fields = explicit_fields(self, *_DERIVED, refused=())
        return {
            **fields,
            "model": self.model_name,
            "base_url": self.base_urls,
            "timeout": seconds,
        }

    @property
    def _llm_type(self) -> str:
        return "chat_llama_stop_server"

    def _resolve_model_profile(self) -> ModelProfile:
        # A request has either a schema or tools. Agents that need both read this, and give the
        # schema as a tool.
        profile = model_profile(self.model_name, None)
        return cast(ModelProfile, {**profile, "structured_output": False})

    def _given(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in REQUEST_OPTIONS}
        return {k: v for k, v in values.items() if v is not None}

    def _request_info(self, stop: list[str] | None, call: Mapping[str, Any]) -> RequestInfo:
        return RequestInfo.of(self._call_options(stop, call), call, self.extra_body or {})

    def _call_options(self, stop: list[str] | None, call: Mapping[str, Any]) -> GenerationOptions:
        """The options of one call; the constructor's stops stay in force."""
        changed = refuse_server_options({k: v for k, v in call.items() if k in _OPTIONS})
        if call.get("response_format") is not None:
            changed["json_schema"] = format_response(call["response_format"])
        return self._asked(stop, changed)

    @property
    def _default_params(self) -> dict[str, Any]:
        """The request without call options: for traces and the cache's key."""
        options = self._options()
        arguments = request(options, self.extra_body or {})
        # LangChain overwrites "stop" with the call's stops.
        stops = {"constructor_stop": arguments.pop("stop", None)}
        other = {"answer_hint": options.answer_hint, "servers": self.base_urls}
        return {"model": self.model_name, **arguments, **stops, **other}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        options = self._call_options(stop, kwargs)
        params = super()._get_ls_params(stop=list(options.stop) or None, **kwargs)
        params["ls_provider"] = "llama_stop"
        params["ls_max_tokens"] = options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        return params

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Writes one call as arguments of openai's client."""
        options = self._call_options(stop, kwargs)
        rest = {k: v for k, v in kwargs.items() if k not in _OPTIONS}
        rest.pop("ls_structured_output_format", None)
        refuse_unknown(rest, [*_CALL, *REQUEST_OPTIONS, *ALIASES], "call option")
        rest.pop("response_format", None)
        continues = rest.pop("continue_final_message", False)
        tools = format_tools(rest.pop("tools", None) or [])
        choice = format_choice(rest.pop("tool_choice", None), tools)
        if tools and choice != "none":
            if options.answer_grammar:
                raise ValueError(
                    "`json_schema` and `grammar` have to be None with `tools`, as a request holds "
                    "an answer to one or lets it call the others: give the schema as a tool "
                    "(`ToolStrategy`, `method='function_calling'`)."
                )
            rest["tools"] = strict_tools(tools)
            if choice is not None:
                named = {"type": "function", "function": {"name": choice}}
                rest["tool_choice"] = {"auto": "auto", "any": "required"}.get(choice, named)
        body = {**(self.extra_body or {}), **(rest.pop("extra_body", None) or {})}
        if continues:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        messages = self._convert_input(input_).to_messages()
        check_last(messages, continues)
        payload = super()._get_request_payload(messages)
        return {
            "model": self.model_name,
            "messages": with_instructions(payload["messages"], options),
            "stream": self.streaming,
            **request(options, body),
            **rest,
        }

    def _create_chat_result(
        self, response: Any, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        choice = response.choices[0]
        info = result.generations[0].generation_info
        if info is not None:
            info["stop_reason"] = getattr(choice, "stop_reason", None)
        return result

    def _convert_chunk_to_generation_chunk(
        self, chunk: dict[str, Any], *args: Any
    ) -> ChatGenerationChunk | None:
        converted = super()._convert_chunk_to_generation_chunk(chunk, *args)
        info = converted.generation_info if converted else None
        if info and "finish_reason" in info:
            info["stop_reason"] = chunk["choices"][0].get("stop_reason")
        return converted

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with clear_errors(self.base_urls):
            result = super()._generate(messages, stop, run_manager, **kwargs)
        return finish_result(result, self._request_info(stop, kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with clear_errors(self.base_urls):
            result = await super()._agenerate(messages, stop, run_manager, **kwargs)
        return finish_result(result, self._request_info(stop, kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        tail = StreamTail(self._request_info(stop, kwargs))
        with clear_errors(self.base_urls):
            for chunk in super()._stream(messages, stop, **kwargs):
                if (ready := tail.feed(chunk)) is not None:
                    if run_manager:
                        run_manager.on_llm_new_token(ready.text, chunk=ready)
                    yield ready
        last = tail.last()
        if run_manager:
            run_manager.on_llm_new_token("", chunk=last)
        yield last

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        tail = StreamTail(self._request_info(stop, kwargs))
        with clear_errors(self.base_urls):
            async for chunk in super()._astream(messages, stop, **kwargs):
                if (ready := tail.feed(chunk)) is not None:
                    if run_manager:
                        await run_manager.on_llm_new_token(ready.text, chunk=ready)
                    yield ready
        last = tail.last()
        if run_manager:
            await run_manager.on_llm_new_token("", chunk=last)
        yield last

    def get_token_ids(self, text: str) -> list[int]:
        """Lets the server encode a text, without the tokens that begin a prompt."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        answer = self._tokenize({"prompt": text, "add_special_tokens": False})
        return cast(list[int], answer["tokens"])

    def get_num_tokens_from_messages(
        self, messages: Sequence[BaseMessage], tools: Sequence[Any] | None = None, **_: Any
    ) -> int:
        """Lets the server count the tokens of a prompt, those of the chat template included.

        Args:
            messages: The messages; without any the count is 0.
            tools: Tools that go into the prompt.
        """
        if not messages:
            return 0
        payload = super()._get_request_payload(list(messages))
        body: dict[str, Any] = {"messages": with_instructions(payload["messages"], self._options())}
        if tools:
            body["tools"] = strict_tools(format_tools(tools))
        return cast(int, self._tokenize(body)["count"])

    def _tokenize(self, body: dict[str, Any]) -> dict[str, Any]:
        """Calls the server's tokenizer, whose address is beside "/v1"."""
        with clear_errors(self.base_urls):
            answer: Any = self.root_client.post(
                f"{self.base_urls[0]}/tokenize",
                body={"model": self.model_name, **body},
                cast_to=dict[str, Any],
            )
        return cast(dict[str, Any], answer)
