"""ChatLlamaStopServer: the chat model of this package, with the model on a vLLM server."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any, Self, cast

import httpx2
from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, ModelProfile
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from langchain_llama_stop._checks import check_integer, check_number, refuse_unknown
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
from langchain_llama_stop.vllm.errors import server_root
from langchain_llama_stop.vllm.http import Order, ServerCall
from langchain_llama_stop.vllm.request import (
    REQUEST_OPTIONS,
    RequestInfo,
    openai_messages,
    refuse_server_options,
    request,
    strict_tools,
    with_instructions,
)
from langchain_llama_stop.vllm.response import AnswerStream, result_of
from langchain_llama_stop.vllm.wait import Wait
from langchain_llama_stop.vllm.wire import Tokens, read

_LOCAL = "http://localhost:8000/v1"
_NO_KEY = "EMPTY"
_NAMES = {  # other names of arguments, as other chat models of LangChain have them
    "model": "model_name",
    "max_new_tokens": "max_tokens",
    "openai_api_key": "api_key",
    "request_timeout": "timeout",
    "stop_sequences": "stop",
}
_CALL = (
    *("tools", "tool_choice", "parallel_tool_calls", "continue_final_message", "response_format"),
    *("extra_body", "extra_headers", "timeout", "user", "stream", "stream_options"),
)
_OPTIONS = {*OPTIONS, *ALIASES} - {*_CALL}  # `timeout` is here that of the HTTP request


class ChatLlamaStopServer(
    ChatSerializationMixin, ParsedOptionsMixin, BindingMixin, RequestOptions, BaseChatModel
):
    r"""A chat model on a vLLM server, whose answers end and stop where the options say.

    Example:
        ```python
        chat = ChatLlamaStopServer(model="meta-llama/Llama-3.1-8B-Instruct", temperature=0)
        chat.invoke("What can I do in Paris?", max_tokens=128)
        chat.invoke([("system", "Be brief."), ("human", "Name a river.")], stop=["\n"])
        ```

    It takes the options of `ChatLlamaStop` that a request can carry. The others are refused; the
    error names the setting of the server to use instead. An answer is whole, or an error: one of
    LangChain's `ModelError`s, at once if the server refuses the request or sends what is no answer,
    after `max_retries` more tries if it is busy, breaks down or cannot be reached.
    """

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    model_name: str = Field(alias="model")
    """The name under which the server serves the model."""
    base_urls: tuple[str, ...] = ()
    """Where the servers listen, without "/v1": the argument is `base_url`, an address or a list of
    them. Each request goes to the one that answered last, and on to the next where that fails."""
    api_key: SecretStr | Callable[[], str] = SecretStr(_NO_KEY)
    """The server's key, or a function that returns it; without it that of the environment,
    `VLLM_API_KEY`."""
    timeout: float = 600.0
    """Seconds that a call may wait for its server in all: for a connection, in pauses between
    tries, and for each part of the answer."""
    max_retries: int = 2
    """More tries after a failure that may pass."""
    streaming: bool = False
    """Whether `invoke` streams inside, so that callbacks see the tokens."""
    max_tokens: int | None = None
    """Token budget of the answer, EOS included; 256 if None."""
    temperature: float | None = None
    """0 is greedy. None: what the server's generation config says."""
    top_p: float | None = None
    """Nucleus sampling: the share of probability to draw from, over 0 to 1."""
    seed: int | None = None
    """Makes sampling repeatable."""
    stop: list[str] | None = None
    """Stop strings: the answer is what precedes the one that completes first."""
    logprobs: bool | None = None
    """Whether the metadata holds the log-probability of each token."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens to give with each token; sets `logprobs`."""
    extra_body: dict[str, Any] | None = None
    """What is added to the body of each request, for vLLM."""
    default_headers: Mapping[str, str] | None = Field(default=None, repr=False)
    """Headers of each request."""
    default_query: Mapping[str, Any] | None = Field(default=None, repr=False)
    """What stands after "?" in the address of each request."""
    http_client: httpx2.Client | None = Field(default=None, exclude=True, repr=False)
    """A client of your own: for proxies, certificates, connections that are kept."""
    http_async_client: httpx2.AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """The same for asyncio."""
    _order: Order = PrivateAttr(default_factory=Order)
    if TYPE_CHECKING:  # type checkers see arguments of the constructor
        base_url: str | Sequence[str] | None = None
        max_new_tokens: int | None = None
    else:

        @property
        def max_new_tokens(self) -> int | None:
            """Another name of `max_tokens`."""
            return self.max_tokens

    @model_validator(mode="before")
    @classmethod
    def _known_arguments_only(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuses unknown arguments, resolves other names, and checks values as they are given."""
        values = resolve_aliases(refuse_server_options(values))
        for name, field in _NAMES.items():
            if name in values:
                values.setdefault(field, values.pop(name))
        refuse_unknown(values, {*cls.model_fields, *_NAMES, "base_url"}, "option")
        given = values.pop("base_url", None)
        given = values.get("base_urls", _LOCAL) if given is None else given
        given = [given] if isinstance(given, str) else given
        values["base_urls"] = tuple(server_root(url) for url in given)
        if not values["base_urls"]:
            raise ValueError("`base_url` has to hold at least one address, but is empty.")
        if values.get("api_key") is None:
            values["api_key"] = SecretStr(os.environ.get("VLLM_API_KEY") or _NO_KEY)
        for name in ("timeout", "max_retries"):
            if values.get(name) is None:
                values.pop(name, None)
        check_number("timeout", values.get("timeout"), 0, "over 0 seconds", above=True)
        check_integer("max_retries", values.get("max_retries"), 0)
        fields = {
            name: "max_tokens" if name == "max_new_tokens" else name for name in REQUEST_OPTIONS
        }
        options = {n: values[field] for n, field in fields.items() if values.get(field) is not None}
        request(GenerationOptions.parse(options), values.get("extra_body") or {})
        if isinstance(values.get("stop"), str):
            values["stop"] = [values["stop"]]
        return values

    @model_validator(mode="after")
    def _name_version(self) -> Self:
        self._add_version("langchain-llama-stop", __version__)
        return self

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The name under which `load` is given the key."""
        is_key = not callable(self.api_key) and self._key != _NO_KEY
        return {"api_key": "VLLM_API_KEY"} if is_key else {}

    @property
    def _key(self) -> str:
        key = self.api_key() if callable(self.api_key) else self.api_key
        return key.get_secret_value() if isinstance(key, SecretStr) else key

    def _constructor_arguments(self) -> dict[str, Any]:
        if self.http_client or self.http_async_client or self.default_headers or self.default_query:
            raise TypeError("Clients and what they send along have no form in JSON.")
        fields = explicit_fields(self, "model_name", "base_urls", "api_key", refused=())
        return {**fields, "model": self.model_name, "base_url": self.base_urls}

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

    def _call_options(self, stop: list[str] | None, call: Mapping[str, Any]) -> GenerationOptions:
        """The options of one call; the constructor's stops stay in force."""
        changed = refuse_server_options({k: v for k, v in call.items() if k in _OPTIONS})
        if call.get("response_format") is not None:
            changed["json_schema"] = format_response(call["response_format"])
        return self._asked(stop, changed)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """The request without call options: for traces and the cache's key."""
        options = self._options()
        body = request(options, self.extra_body or {})
        # LangChain overwrites "stop" with the call's stops.
        stops = {"constructor_stop": body.pop("stop", None)}
        other = {"answer_hint": options.answer_hint, "servers": self.base_urls}
        return {"model": self.model_name, **body, **stops, **other}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        options = self._call_options(stop, kwargs)
        params = LangSmithParams(
            ls_provider="llama_stop",
            ls_model_name=kwargs.get("model") or self.model_name,
            ls_model_type="chat",
            ls_max_tokens=options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS,
        )
        if options.temperature is not None:
            params["ls_temperature"] = options.temperature
        if options.stop:
            params["ls_stop"] = list(options.stop)
        return params

    def _call(
        self,
        messages: Sequence[BaseMessage],
        stop: list[str] | None,
        call: Mapping[str, Any],
        *,
        stream: bool,
    ) -> tuple[ServerCall, RequestInfo]:
        """Writes one call as a request, and what has to be known of it to judge its answer."""
        options = self._call_options(stop, call)
        rest = {k: v for k, v in call.items() if k not in _OPTIONS}
        rest.pop("ls_structured_output_format", None)
        refuse_unknown(rest, [*_CALL, *REQUEST_OPTIONS, *ALIASES], "call option")
        for name in ("response_format", "stream"):
            rest.pop(name, None)
        continues = rest.pop("continue_final_message", False)
        headers, seconds = rest.pop("extra_headers", None), rest.pop("timeout", None)
        body = {**(self.extra_body or {}), **(rest.pop("extra_body", None) or {})}
        body = request(options, body)
        if stream:
            rest["stream_options"] = {"include_usage": True, **(rest.get("stream_options") or {})}
        tools = format_tools(rest.pop("tools", None) or [])
        choice = format_choice(rest.pop("tool_choice", None), tools)
        if tools and choice != "none":
            if options.answer_grammar:
                raise ValueError(
                    "`json_schema` and `grammar` have to be None with `tools`, as a request holds "
                    "an answer to one or lets it call the others: give the schema as a tool "
                    "(`ToolStrategy`, `method='function_calling'`)."
                )
            body["tools"] = strict_tools(tools)
            if choice is not None:
                named = {"type": "function", "function": {"name": choice}}
                body["tool_choice"] = {"auto": "auto", "any": "required"}.get(choice, named)
        info = RequestInfo.of(options, body, self.base_urls)
        if continues:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        check_last(messages, continues)
        told = with_instructions(openai_messages(messages), options)
        body = {"model": self.model_name, "messages": told, "stream": stream, **body, **rest}
        budget = options.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        return self._server_call("/v1/chat/completions", body, budget, headers, seconds), info

    def _server_call(
        self,
        path: str,
        body: dict[str, Any],
        tokens: int = 0,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = None,
    ) -> ServerCall:
        check_number("timeout", seconds, 0, "over 0 seconds", above=True)
        given = {**(self.default_headers or {}), **(headers or {})}
        return ServerCall(
            roots=self.base_urls,
            path=path,
            body=body,
            headers={"Authorization": f"Bearer {self._key}", **given},
            query=self.default_query or {},
            wait=Wait.of(self.timeout if seconds is None else seconds, tokens),
            max_retries=self.max_retries,
            order=self._order,
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, info = self._call(messages, stop, kwargs, stream=False)
        return result_of(call.post(self.http_client), info)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call, info = self._call(messages, stop, kwargs, stream=False)
        return result_of(await call.apost(self.http_async_client), info)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call, info = self._call(messages, stop, kwargs, stream=True)
        answer = AnswerStream(info)
        with closing(call.stream(self.http_client)) as pieces:
            for piece in pieces:
                for chunk in answer.feed(piece):
                    if run_manager:
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        last = answer.last()
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
        call, info = self._call(messages, stop, kwargs, stream=True)
        answer = AnswerStream(info)
        async with aclosing(call.astream(self.http_async_client)) as pieces:
            async for piece in pieces:
                for chunk in answer.feed(piece):
                    if run_manager:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
        last = answer.last()
        if run_manager:
            await run_manager.on_llm_new_token("", chunk=last)
        yield last

    def get_token_ids(self, text: str) -> list[int]:
        """Lets the server encode a text, without the tokens that begin a prompt."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        return self._tokenize({"prompt": text, "add_special_tokens": False}).tokens

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
        told = with_instructions(openai_messages(messages), self._options())
        body: dict[str, Any] = {"messages": told}
        if tools:
            body["tools"] = strict_tools(format_tools(tools))
        return self._tokenize(body).count

    def _tokenize(self, body: dict[str, Any]) -> Tokens:
        """Calls the server's tokenizer, whose address is beside "/v1"."""
        call = self._server_call("/tokenize", {"model": self.model_name, **body})
        return read(Tokens, call.post(self.http_client), " or ".join(self.base_urls))
