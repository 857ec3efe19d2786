"""ChatLlamaStop: a LangChain chat model over a local pipeline, whose answers end."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import ConfigDict, Field, PrivateAttr, model_validator

from langchain_llama_stop._version import __version__
from langchain_llama_stop.chat_templates import Message, chat_ids, chat_template, turn_end_ids
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.model_options import ModelOptions
from langchain_llama_stop.options import (
    ALIASES,
    GenerationOptions,
    refuse_unknown,
    resolve_aliases,
)

_LOADING = threading.Lock()


class ChatLlamaStop(ModelOptions, BaseChatModel):
    r"""A chat model for local Llama-family models whose answers end and stop where they are told.

    Example:
        ```python
        chat = ChatLlamaStop(model="meta-llama/Llama-2-7b-chat-hf", quantization="nf4")
        chat.invoke("What can I do in Paris?", max_tokens=128)
        chat.invoke([("system", "Be brief."), ("human", "Name a river.")], stop=["\n"])
        ```

    The model is loaded when it is first used. Every option of a generation can be given to the
    constructor, per call, and by `.bind()`, as with `LlamaStopLLM`. What stands in a message is
    encoded as plain text: it can end no turn and open none.
    """

    model_config = ConfigDict(populate_by_name=True)

    model: str | None = None
    """Hub id, local folder, `.gguf` file, or "demo"; loaded on first use."""
    given_pipeline: Any = Field(default=None, alias="pipeline", exclude=True)
    """A ready transformers pipeline instead."""
    quantization: Any = None
    """None, "nf4", "int8", or a `BitsAndBytesConfig`."""
    adapter: str | None = None
    """A PEFT adapter to load onto the model: folder or hub id."""
    dtype: Any = "auto"
    """"auto", a name such as "bfloat16", or a `torch.dtype`."""
    device_map: Any = None
    """Where the model goes, as transformers takes it."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    token: str | bool | None = Field(default=None, exclude=True, repr=False)
    """Access token for gated models."""
    trust_remote_code: bool = False
    """Whether code from the hub may run."""
    model_kwargs: dict[str, Any] | None = None
    """Further arguments of `from_pretrained`."""
    timeout: float | None = None
    """Seconds after which an answer is cut; its `finish_reason` is "length" then. None: never."""
    max_retries: int | None = None
    """Taken because LangChain's chat models take it; a model in this process has no network."""

    _pipeline: Any = PrivateAttr(default=None)
    _checked: bool = PrivateAttr(default=False)

    @model_validator(mode="before")
    @classmethod
    def _known_arguments_only(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuses what is not an argument, resolves aliases."""
        known = [*cls.model_fields, "pipeline", "model_name", *ALIASES]
        refuse_unknown(values, known, "option")
        values = resolve_aliases(values)
        if "model_name" in values:
            values.setdefault("model", values.pop("model_name"))
        pipeline, model = values.get("pipeline"), values.get("model")
        if (pipeline is None) == (model is None):
            raise ValueError(
                "Either `model` (a hub id, folder, .gguf file, or 'demo') or `pipeline` has to be "
                f"given, but {'neither is' if model is None else 'both are'}."
            )
        task = getattr(pipeline, "task", None)
        if pipeline is not None and task != "text-generation":
            raise ValueError(
                f"`pipeline` has to be a transformers pipeline for 'text-generation', but is "
                f"{f'one for {task!r}' if task else repr(pipeline)}: use `load_pipeline(...)`, or "
                "give `model`."
            )
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Checks the options; against the model too, if it is there already."""
        self._add_version("langchain-llama-stop", __version__)
        self._options()
        if self.timeout is not None and not self.timeout > 0:
            raise ValueError(f"`timeout` has to be over 0 seconds, but is {self.timeout!r}.")
        if self.given_pipeline is not None:
            self._pipeline = self.given_pipeline
            self._call_options(None, {})
        return self

    @property
    def pipeline(self) -> Any:
        """The loaded pipeline; loads it on first use."""
        if self._pipeline is None:
            with _LOADING:
                if self._pipeline is None:
                    self._pipeline = load_pipeline(
                        str(self.model),
                        self.quantization,
                        self.adapter,
                        dtype=self.dtype,
                        device_map=self.device_map,
                        revision=self.revision,
                        token=self.token,
                        trust_remote_code=self.trust_remote_code,
                        model_kwargs=self.model_kwargs,
                    )
        return self._pipeline

    @property
    def model_name(self) -> str:
        """The model's name, as it stands in metadata and traces."""
        return self.model or str(self._pipeline.model.name_or_path or "unknown")

    @property
    def _llm_type(self) -> str:
        return "chat_llama_stop"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        own = {"model": self.model, "timeout": self.timeout}
        return {**own, **self._model_params(self.pipeline)}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        options = self._options().updated(
            {k: v for k, v in kwargs.items() if k in (*ALIASES, *ModelOptions.model_fields)}
        )
        params = LangSmithParams(
            ls_provider="llama_stop", ls_model_name=self.model_name, ls_model_type="chat"
        )
        if options.temperature is not None:
            params["ls_temperature"] = options.temperature
        if options.max_new_tokens is not None:
            params["ls_max_tokens"] = options.max_new_tokens
        if stops := [*options.stop, *(stop or ())]:
            params["ls_stop"] = stops
        return params

    def get_token_ids(self, text: str) -> list[int]:
        """Encodes a text as plain text, as it is encoded inside of a message.

        Args:
            text: Any text.

        Returns:
            Token ids.
        """
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        from langchain_llama_stop.decoding import model_lock

        with model_lock(self.pipeline.model):
            ids: list[int] = self.pipeline.tokenizer(
                text, add_special_tokens=False, split_special_tokens=True
            )["input_ids"]
        return ids

    def get_num_tokens_from_messages(
        self, messages: list[BaseMessage], tools: Sequence[Any] | None = None
    ) -> int:
        """Counts the tokens of the prompt that these messages make, the template's included.

        Args:
            messages: The messages.
            tools: Tools that go with them.

        Returns:
            The number of tokens.
        """
        return len(self._prompt(messages, self._options()))

    def _call_options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> GenerationOptions:
        """The options of one call, with the EOS ids of the template among the model's."""
        from langchain_llama_stop.settings import check_options, eos_token_ids

        options = self._options().updated({**kwargs, "stop": stop} if stop is not None else kwargs)
        tokenizer = self.pipeline.tokenizer
        template = chat_template(tokenizer, self.model_name)
        eos = eos_token_ids(self.pipeline, options)
        ends = [i for i in turn_end_ids(tokenizer, template) if i not in eos]
        settings: dict[str, Any] = {"eos_token_id": [*eos, *ends]} if ends else {}
        if self.timeout is not None:
            settings["max_time"] = self.timeout
        options = options.updated({"pipeline_kwargs": settings}) if settings else options
        check_options(self.pipeline, options)
        return options

    def _prompt(self, messages: Sequence[BaseMessage], options: GenerationOptions) -> list[int]:
        """The ids of a conversation."""
        from langchain_llama_stop.decoding import model_lock
        from langchain_llama_stop.rows import sentences
        from langchain_llama_stop.settings import token_budget

        pipeline = self.pipeline
        if not messages:
            raise ValueError("`messages` has to hold at least one message, but is empty.")
        spoken = [_message(message) for message in messages]
        if spoken[-1]["role"] == "assistant":
            raise ValueError(
                "The last of `messages` has to be a human's or a tool's, but is an AI message: "
                "there is nothing to answer."
            )
        template = chat_template(pipeline.tokenizer, self.model_name)
        with model_lock(pipeline.model):
            ids = chat_ids(pipeline.tokenizer, spoken, template=template)
            if options.answer_hint and spoken[-1]["role"] == "user":
                budget = token_budget(pipeline, options, len(ids), first=True)
                hint = options.answer_hint.format(sentences=sentences(budget))
                spoken[-1] = {**spoken[-1], "content": f"{spoken[-1]['content']}\n\n{hint}"}
                ids = chat_ids(pipeline.tokenizer, spoken, template=template)
        return ids

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        from langchain_llama_stop.generation import generate

        options = self._call_options(stop, kwargs)
        response = generate(self.pipeline, [self._prompt(messages, options)], options)[0]
        info = self._info(response)
        message = AIMessage(
            content=response.text,
            usage_metadata=info.pop("usage_metadata"),
            response_metadata=info,
        )
        return ChatResult(
            generations=[ChatGeneration(message=message, generation_info=info)],
            llm_output={"model_name": self.model_name},
        )

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        from langchain_llama_stop.generation import stream_generate

        options = self._call_options(stop, kwargs)
        for piece in stream_generate(self.pipeline, self._prompt(messages, options), options):
            message = AIMessageChunk(content=piece.text)
            info: dict[str, Any] = {}
            if piece.response:
                info = self._info(piece.response)
                message.usage_metadata = info.pop("usage_metadata")
                message.response_metadata = info
                message.chunk_position = "last"
            chunk = ChatGenerationChunk(message=message, generation_info=info or None)
            if run_manager:
                run_manager.on_llm_new_token(piece.text, chunk=chunk)
            yield chunk


def _message(message: BaseMessage) -> Message:
    """One LangChain message as the template takes it."""
    content = _text(message.content)
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": content}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": content}
    if isinstance(message, ToolMessage):
        return {
            "role": "tool",
            "content": content,
            "name": message.name or "",
            "tool_call_id": message.tool_call_id,
        }
    if isinstance(message, AIMessage):
        spoken: Message = {"role": "assistant", "content": content}
        if message.tool_calls:
            spoken["tool_calls"] = [
                {
                    "type": "function",
                    "id": call["id"],
                    "function": {"name": call["name"], "arguments": call["args"]},
                }
                for call in message.tool_calls
            ]
        return spoken
    if isinstance(message, ChatMessage) and message.role in ("system", "user", "assistant"):
        return {"role": message.role, "content": content}
    raise ValueError(
        f"`messages` has to hold system, human, AI and tool messages, but holds a "
        f"{type(message).__name__}."
    )


def _text(content: str | Sequence[str | Mapping[str, Any]]) -> str:
    """The text of a message's content."""
    if isinstance(content, str):
        return content
    texts = []
    for block in content:
        if isinstance(block, str):
            texts.append(block)
        elif block.get("type") == "text":
            texts.append(str(block["text"]))
        elif block.get("type") == "json":
            texts.append(json.dumps(block.get("json"), ensure_ascii=False))
        elif block.get("type") not in ("tool_use", "tool_call"):  # these stand in `tool_calls` too
            raise ValueError(
                f"A message's content has to be text, but holds a block of type "
                f"{block.get('type')!r}: this model reads text only."
            )
    return "\n".join(texts)
