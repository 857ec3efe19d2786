"""LlamaStopLLM: a LangChain LLM over a local text-generation pipeline, whose answers end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from langchain_core.callbacks import CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models.llms import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_huggingface.llms import HuggingFacePipeline
from pydantic import model_validator

from langchain_llama_stop._checks import refuse_unknown
from langchain_llama_stop._langchain.async_calls import AsyncCallsMixin
from langchain_llama_stop._langchain.fields import OptionFields, check_task
from langchain_llama_stop._langchain.hints import hint_at_template
from langchain_llama_stop._langchain.serialization import SerializationMixin
from langchain_llama_stop._langchain.source import COPIED, ModelSource, check_source
from langchain_llama_stop._version import __version__
from langchain_llama_stop.options import ALIASES, OPTIONS, GenerationOptions, resolve_aliases


class LlamaStopLLM(  # type: ignore[misc]  # `from_model_id` is ours
    SerializationMixin, AsyncCallsMixin, OptionFields, ModelSource, HuggingFacePipeline
):
    r"""A drop-in for `HuggingFacePipeline` whose answers end by EOS and stop where they are told.

    Example:
        ```python
        from langchain_llama_stop import LlamaStopLLM

        llm = LlamaStopLLM.from_model_id(
            "meta-llama/Llama-2-7b-chat-hf", quantization="nf4", max_new_tokens=128
        )
        llm.invoke("What can I do in Paris?")
        llm.invoke("Thought: I need a map.\nAction:", stop=["\nObservation:"], temperature=0)
        ```

    Every option below can be given to the constructor, per call, and by `.bind()`. Per-call stops
    (and processors, and criteria) are added to the constructor's; other options replace them.
    """

    @model_validator(mode="before")
    @classmethod
    def pre_init_validator(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Refuses what is not an option, resolves aliases, finds the model's name."""
        refuse_unknown({*values} - {*COPIED}, {*cls.model_fields, *ALIASES} - {*COPIED}, "option")
        values = resolve_aliases(values)
        _refuse_chat_options(values)
        pipeline: Any = values.get("pipeline")
        if pipeline is not None:
            check_task(pipeline, "give `model_id`")
            check_source(values)
            values.setdefault("model_id", pipeline.model.name_or_path)
        elif values.get("model_id") is None:
            raise ValueError(
                "Either `model_id` (a hub id, folder, .gguf file, or 'demo') or `pipeline` has to "
                "be given, but neither is."
            )
        return values

    _name_field: ClassVar[str] = "model_id"

    if not TYPE_CHECKING:  # type checkers see the fields as arguments

        def __init__(self, **given: Any) -> None:
            """Takes the fields as arguments; loads the model, if it is given by name."""
            super().__init__(**given)
            from langchain_llama_stop.engine.config import check_options, check_settings

            check_settings(self._options())  # wrong ones are refused before minutes of loading
            check_options(self._ready(), self._options())

    def _ready(self) -> Any:
        """Returns the pipeline; loads it first where the model is given by name."""
        pipeline = self.pipeline
        if pipeline is None or self._was_loaded_here(pipeline):
            pipeline = self.pipeline = self._loaded(self.model_id) or self._load(self.model_id)
        return pipeline

    @model_validator(mode="after")
    def _set_langchain_llama_stop_version(self) -> Self:
        """Records the package version for tracing."""
        self._add_version("langchain-llama-stop", __version__)
        return self

    def generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answers prompts; see `BaseLLM.generate`. Call options are part of the cache key."""
        llm, kwargs = self._with_call_options(kwargs)
        return BaseLLM.generate(llm, prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        callbacks: Callbacks | list[Callbacks] | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        """Answers prompts; see `BaseLLM.agenerate`. Call options are part of the cache key."""
        llm, kwargs = self._with_call_options(kwargs)
        return await BaseLLM.agenerate(llm, prompts, stop, callbacks, **kwargs)

    def get_token_ids(self, text: str) -> list[int]:
        """Encodes a text as the model gets it, BOS included where the tokenizer adds one."""
        if self.custom_get_token_ids is not None:
            return self.custom_get_token_ids(text)
        from langchain_llama_stop.engine.refusals import encode_settings
        from langchain_llama_stop.tokens.encoding import prompt_ids, tokenizer_lock

        with tokenizer_lock(self._ready().tokenizer):
            return prompt_ids(self.pipeline.tokenizer, text, **encode_settings(self.pipeline))

    def _constructor_arguments(self) -> dict[str, Any]:
        return self._arguments_by_name(self.model_id, self.pipeline)

    @property
    def model_name(self) -> str:
        """The model's name, as it stands in metadata and traces."""
        return self.model_id or "unknown"

    @property
    def _llm_type(self) -> str:
        return "llama_stop"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        """Everything that changes an answer: this is the key of LangChain's cache."""
        own = {"model_id": self.model_id, "model_kwargs": self.model_kwargs}
        return {**own, **self._model_params(self._ready())}

    def _with_call_options(self, kwargs: dict[str, Any]) -> tuple[LlamaStopLLM, dict[str, Any]]:
        """Moves call options into a copy; what remains belongs to LangChain.

        LangChain's cache key is made of the fields of a model and knows no call options.
        """
        own = ("tags", "metadata", "run_name", "run_id")
        rest = {k: kwargs[k] for k in own if k in kwargs}
        call = {k: v for k, v in kwargs.items() if k not in own}
        if not call:
            return self, rest
        options = self._call_options(None, call)
        fields = {n: getattr(options, n) for n in OPTIONS}
        fields["eos_reward"] = options.eos_reward or False  # None would be the default
        copied = self.model_copy(update=fields)
        copied._remember(options)
        return copied, rest

    def _call_options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> GenerationOptions:
        from langchain_llama_stop.engine.config import check_options

        call = dict(kwargs)
        if "skip_prompt" in call:  # what HuggingFacePipeline calls it
            call.setdefault("return_full_text", not call.pop("skip_prompt"))
        _refuse_chat_options(call)
        options = self._asked(stop, call)
        check_options(self._ready(), options)
        return options

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        from langchain_llama_stop.engine.generate import generate

        options = self._call_options(stop, kwargs)
        hint_at_template(self._ready().tokenizer, prompts, options)
        responses = generate(self._ready(), prompts, options)
        return LLMResult(
            generations=[
                [Generation(text=r.text, generation_info=self._info(r))] for r in responses
            ],
            llm_output={"model_name": self.model_name},
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        from langchain_llama_stop.engine.generate import stream_generate

        options = self._call_options(stop, kwargs)
        hint_at_template(self._ready().tokenizer, [prompt], options)
        for piece in stream_generate(self._ready(), prompt, options):
            chunk = GenerationChunk(
                text=piece.text,
                generation_info=self._info(piece.response) if piece.response else None,
            )
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def _refuse_chat_options(given: Mapping[str, Any]) -> None:
    """Refuses what concerns messages: here, a prompt is a text."""
    for name in ("chat_template_kwargs", "tools", "tool_choice"):
        if given.get(name):
            raise ValueError(
                f"`{name}` has to be left out of LlamaStopLLM, which renders no chat template and "
                f"reads no calls, but is {given[name]!r}: give it to "
                "`ChatLlamaStop(pipeline=llm.pipeline)`."
            )
