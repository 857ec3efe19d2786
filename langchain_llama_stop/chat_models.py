"""ChatLlamaStop: a LangChain chat model over a local pipeline, whose answers end."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, cast

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import (
    BaseChatModel,
    LangSmithParams,
    ModelProfile,
)
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from langchain_llama_stop._checks import refuse_unknown, truth
from langchain_llama_stop._langchain.async_calls import AsyncCallsMixin
from langchain_llama_stop._langchain.fields import OptionFields, check_task, model_profile
from langchain_llama_stop._langchain.messages import answer_fields
from langchain_llama_stop._langchain.serialization import ChatSerializationMixin
from langchain_llama_stop._langchain.source import COPIED, ModelSource, check_source, from_llm
from langchain_llama_stop._langchain.structured_output import BindingMixin
from langchain_llama_stop._langchain.tools import (
    format_choice,
    format_tools,
    tool_call_chunks,
    without_response_format,
)
from langchain_llama_stop._version import __version__
from langchain_llama_stop.chat.answer_text import (
    FullText,
    hides_tags,
    with_special_tokens,
    without_special_tokens,
)
from langchain_llama_stop.chat.template import (
    chat_template,
    knows_tools,
    own_template,
    turn_end_ids,
)
from langchain_llama_stop.chat.thoughts import ThoughtSplitter
from langchain_llama_stop.chat.tool_formats import UNKNOWN, call_begins, is_known_format
from langchain_llama_stop.options import ALIASES, OPTIONS, GenerationOptions, resolve_aliases
from langchain_llama_stop.tokens.encoding import plain_ids

if TYPE_CHECKING:
    from langchain_llama_stop._langchain.request import ChatRequest
    from langchain_llama_stop.engine.sequence import GenerationResponse


_log = logging.getLogger("langchain_llama_stop")


class ChatLlamaStop(
    ChatSerializationMixin, AsyncCallsMixin, OptionFields, ModelSource, BindingMixin, BaseChatModel
):
    r"""A chat model for local Llama-family models whose answers end and stop where they are told.

    Example:
        ```python
        chat = ChatLlamaStop(model="meta-llama/Llama-2-7b-chat-hf", quantization="nf4")
        chat.invoke("What can I do in Paris?", max_tokens=128)
        chat.invoke([("system", "Be brief."), ("human", "Name a river.")], stop=["\n"])
        ```

    The model is loaded when it is first used. Every option of a generation can be given to the
    constructor, per call, and by `.bind()`, as with `LlamaStopLLM`. What a message contains is
    encoded as plain text: it cannot end or open a turn.
    """

    model_config = ConfigDict(populate_by_name=True)

    model: str | None = None
    """Hub id, local folder, `.gguf` file, or "demo"; loaded on first use."""
    given_pipeline: Any = Field(default=None, alias="pipeline", exclude=True)
    """A ready transformers pipeline instead."""
    streaming: bool = False
    """Whether `invoke` streams inside, so that callbacks see the tokens."""
    max_retries: int | None = None
    """As in LangChain's chat models; it has no effect, as nothing here uses the network."""

    _profiled_pipeline: Any = PrivateAttr(default=None)
    _warned_of_tools: bool = PrivateAttr(default=False)
    _computed_profile: dict[str, Any] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _known_arguments_only(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuses what is not an argument, resolves aliases."""
        known = {*cls.model_fields, "pipeline", "llm", "model_name", "api_key", *ALIASES}
        refuse_unknown({*values} - {*COPIED}, known - {*COPIED}, "option")
        if values.get("llm") is not None:  # as `ChatHuggingFace` takes it
            values = from_llm(values)
        values = resolve_aliases(values)
        if values.get("given_pipeline") is not None:  # as copies are given it
            values.setdefault("pipeline", values.pop("given_pipeline"))
        if "model_name" in values:
            values.setdefault("model", values.pop("model_name"))
        if "api_key" in values:  # what LangChain's chat models call it
            values.setdefault("token", values.pop("api_key"))
        pipeline, model = values.get("pipeline"), values.get("model")
        if (pipeline is None) == (model is None):
            raise ValueError(
                "Either `model` (a hub id, folder, .gguf file, or 'demo') or `pipeline` has to be "
                f"given, but {'neither is' if model is None else 'both are'}."
            )
        if pipeline is not None:
            check_task(pipeline, "give `model`")
            check_source(values)
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Checks the options; against the model too, if it is there already."""
        self._add_version("langchain-llama-stop", __version__)
        self._options()
        if self.given_pipeline is not None:
            self._call_options(None, {})
        return self

    @property
    def pipeline(self) -> Any:
        """The loaded pipeline; loads it on first use."""
        if self.given_pipeline is not None:
            return self.given_pipeline
        pipeline = self._loaded(self.model) or self._load(self.model)
        # Until now the profile was that of another pipeline, or of none.
        if self._profiled_pipeline is not pipeline:
            computed, profile = self._computed_profile, self.profile or {}
            own = {k: v for k, v in profile.items() if computed.get(k) != v}
            self.profile = cast(ModelProfile, {**self._resolve_model_profile(), **own})
            self._profiled_pipeline = pipeline
        return pipeline

    def _constructor_arguments(self) -> dict[str, Any]:
        return self._arguments_by_name(self.model, self.given_pipeline or self._loaded(self.model))

    def _resolve_model_profile(self) -> ModelProfile:
        pipeline = self.given_pipeline or self._loaded(self.model)
        self._computed_profile = model_profile(self.model or "", pipeline)
        return cast(ModelProfile, self._computed_profile)

    if TYPE_CHECKING:  # type checkers see arguments of the constructor
        model_name: str = ""
        api_key: SecretStr | str | bool | None = None
    else:

        @property
        def model_name(self) -> str:
            """The model's name, as it stands in metadata and traces."""
            return self.model or str(self.given_pipeline.model.name_or_path or "unknown")

    @property
    def _llm_type(self) -> str:
        return "chat_llama_stop"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"model": self.model, **self._model_params(self.pipeline)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        known = (*ALIASES, *OPTIONS)
        options = self._asked(stop, {k: v for k, v in kwargs.items() if k in known})
        params = LangSmithParams(
            ls_provider="llama_stop",
            ls_model_name=kwargs.get("model") or self.model_name,
            ls_model_type="chat",
        )
        if options.temperature is not None:
            params["ls_temperature"] = options.temperature
        if options.max_new_tokens is not None:
            params["ls_max_tokens"] = options.max_new_tokens
        if options.stop:
            params["ls_stop"] = list(options.stop)
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Encodes a text as plain text, as inside a message."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        from langchain_llama_stop.tokens.encoding import tokenizer_lock

        with tokenizer_lock(self.pipeline.tokenizer):
            return plain_ids(self.pipeline.tokenizer, text)

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Counts the tokens of a prompt, those of the chat template included.

        Args:
            messages: The messages; without any the count is 0.
            tools: Tools that go into the prompt.
        """
        if not messages:
            return 0
        from langchain_llama_stop._langchain.request import conversation_ids

        template = chat_template(self.pipeline.tokenizer, self.model_name)
        given: dict[str, Any] = {"template": template, "tools": format_tools(tools or ())}
        return len(conversation_ids(self.pipeline, messages, self._options(), **given))

    def _call_options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> GenerationOptions:
        """The options of one call; tokens that end a turn of the template are EOS ids too."""
        from langchain_llama_stop.engine.config import check_options, eos_token_ids

        options = self._asked(stop, kwargs)
        tokenizer = self.pipeline.tokenizer
        template = chat_template(tokenizer, self.model_name)
        eos = eos_token_ids(self.pipeline, options)
        ends = [i for i in turn_end_ids(tokenizer, template) if i not in eos]
        if ends:
            settings = {**options.pipeline_kwargs, "eos_token_id": [*eos, *ends]}
            options = options.replaced(pipeline_kwargs=settings)
        check_options(self.pipeline, options)
        return options

    def _request(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, kwargs: dict[str, Any]
    ) -> ChatRequest:
        """The request of one call."""
        from langchain_llama_stop._langchain.request import build_request

        kwargs = without_response_format(kwargs)
        kwargs.pop("ls_structured_output_format", None)
        self._check_model(kwargs.pop("model", None))
        parallel = kwargs.pop("parallel_tool_calls", None)
        truth(optional=True)("parallel_tool_calls", parallel)
        tools = format_tools(kwargs.pop("tools", None) or [])
        if tools:
            self._tools_are_bound()
        choice = format_choice(kwargs.pop("tool_choice", None), tools)
        prefill = kwargs.pop("continue_final_message", False)
        return build_request(
            self.pipeline,
            messages,
            self._call_options(stop, kwargs),
            template=chat_template(self.pipeline.tokenizer, self.model_name),
            tools=[] if choice == "none" else tools,
            choice=choice,
            parallel=parallel is not False,
            continue_final_message=prefill,
        )

    def _tools_are_bound(self) -> None:
        """Warns, once the model is loaded, of a form of calls that is not known here."""
        pipeline = self.given_pipeline or self._loaded(self.model)
        if pipeline is None or self._warned_of_tools:
            return
        template = own_template(pipeline.tokenizer)
        if knows_tools(template) and not is_known_format(template):
            self._warned_of_tools = True
            _log.warning(
                "The form in which %s writes tool calls is not known here: calls in it are text. "
                "Where the model has to call a tool, it is held to %s",
                self.model_name,
                UNKNOWN.write([("name", {"key": "value"})]),
            )

    def _check_model(self, name: str | None) -> None:
        """Refuses the name of another model in a call: this one is loaded already."""
        own = {self.model_name, str(self.pipeline.model.name_or_path)}
        if name is not None and name not in own:
            raise ValueError(
                f"`model` of a call has to be the name of this model, {self.model_name!r}, but is "
                f"{name!r}: make a ChatLlamaStop of that model."
            )

    def _message_parts(
        self, response: GenerationResponse, request: ChatRequest
    ) -> tuple[str, dict[str, Any]]:
        """The content of an answer, and the other fields of its message."""
        text, tokenizer = response.text, self.pipeline.tokenizer
        closing = request.thought
        hidden = closing is not None and hides_tags(tokenizer, calls=bool(request.tools))
        if hidden:
            text = with_special_tokens(tokenizer, request.prompt_ids, response.token_ids, text)
        content, fields = answer_fields(
            text, self._info(response), request.tools, closing, parallel=request.parallel
        )
        if hidden:
            content = without_special_tokens(tokenizer, content)
        return content, fields

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        from langchain_llama_stop.engine.generate import generate

        request = self._request(messages, stop, kwargs)
        response = generate(self.pipeline, [request.prompt_ids], request.options)[0]
        content, fields = self._message_parts(response, request)
        info = fields["response_metadata"]
        return ChatResult(
            generations=[
                ChatGeneration(message=AIMessage(content=content, **fields), generation_info=info)
            ],
            llm_output={"model_name": self.model_name},
        )

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        from langchain_llama_stop.engine.generate import stream_generate

        request = self._request(messages, stop, kwargs)
        closing, tokenizer = request.thought, self.pipeline.tokenizer
        splitter = None if closing is None else ThoughtSplitter(closing)
        hidden = closing is not None and hides_tags(tokenizer, calls=bool(request.tools))
        full = FullText(tokenizer, request.prompt_ids) if hidden else None
        text, emitted, told, thought = "", 0, 0, 0  # `emitted` of the text, `told` of the content
        for piece in stream_generate(self.pipeline, request.prompt_ids, request.options):
            fields: dict[str, Any] = {}
            if piece.response:
                content, fields = self._message_parts(piece.response, request)
                fields["tool_call_chunks"] = tool_call_chunks(
                    fields.pop("tool_calls", ()), fields.pop("invalid_tool_calls", ())
                )
                thoughts = fields.pop("additional_kwargs", {}).get("reasoning_content", "")
                thoughts, new = thoughts[thought:], content[told:]
                fields["chunk_position"] = "last"
            else:
                more = full.feed(piece.text, piece.ids) if full else piece.text
                thoughts, more = splitter.feed(more) if splitter else ("", more)
                text += more
                # What may become a call is held back.
                end = max(emitted, call_begins(text) if request.tools else len(text))
                new, emitted = text[emitted:end], end
                new = without_special_tokens(tokenizer, new) if full else new
                told, thought = told + len(new), thought + len(thoughts)
            if thoughts:
                fields["additional_kwargs"] = {"reasoning_content": thoughts}
            if new or fields:
                chunk = ChatGenerationChunk(
                    message=AIMessageChunk(content=new, **fields),
                    generation_info=fields.get("response_metadata"),
                )
                if run_manager:
                    run_manager.on_llm_new_token(new, chunk=chunk)
                yield chunk
