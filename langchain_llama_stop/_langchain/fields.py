"""What both LangChain classes share: the options as fields, and what tells two models apart."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from weakref import ref

from langchain_core.runnables.config import run_in_executor
from pydantic import BaseModel, ConfigDict, Field, model_validator

from langchain_llama_stop._weights import adapter_state
from langchain_llama_stop.ending.reward import EosReward
from langchain_llama_stop.engine.admission import Cancellation, cancelled_by
from langchain_llama_stop.grammar.schema import Grammar
from langchain_llama_stop.loading.quantization import quantization_name
from langchain_llama_stop.options import OPTION_NAMES, GenerationOptions, OnLength, OnTimeout

if TYPE_CHECKING:
    from langchain_llama_stop.engine.sequence import GenerationResponse

_NO_KEY = (
    *("logits_processor", "stopping_criteria"),  # in the key by other names
    *("batch_size", "prefix_cache", "prompt_lookup_num_tokens", "assistant_model"),  # speed alone
    "max_calls",
)
"""Options that are left out where the key of LangChain's cache lists all of them."""

OBJECTS = ("logits_processor", "stopping_criteria", "assistant_model")
"""Options that are objects of the user's, of which nothing can be written."""

_WAITING = ThreadPoolExecutor(max_workers=1100, thread_name_prefix="llama-stop")
"""Threads of awaited calls, made as they are needed: all but the one that leads wait for their
answers. More than `max_calls`, so that one call too many is refused and does not wait here."""

_OBJECT_KEYS: dict[int, tuple[Callable[[], Any], str]] = {}


class ModelOptions(BaseModel):
    """The options of a generation as fields, for the constructor of a LangChain model."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a token may be among it

    max_new_tokens: int | None = None
    """Token budget of an answer, EOS included. None: the pipeline's setting, else 256."""
    temperature: float | None = None
    """0 is greedy. None: what the model's generation config says."""
    top_p: float | None = None
    """Nucleus sampling: the share of probability to draw from, over 0 to 1."""
    top_k: int | None = None
    """Draw from the k best tokens; 0 is off."""
    repetition_penalty: float | None = None
    """Over 1 discourages repetition; 1 is off."""
    seed: int | None = None
    """Makes sampling repeatable, whatever else is in the batch."""
    stop: list[str] | None = None
    """Stop strings: the answer is what precedes the one that completes first."""
    stop_token_ids: list[int] | list[list[int]] | None = None
    """Stop ids, or stop sequences of ids."""
    eos_reward: EosReward | bool = True
    """Rewards EOS where the answer may end as the budget runs out; False leaves the model alone."""
    on_length: OnLength = "keep"
    """What becomes of an answer that its budget cuts (with the reward, none is): "keep" it, "trim"
    it to its last true end, or "continue" it for up to three more budgets."""
    thinking_tokens: int = 0
    """Tokens that a reasoning model may think before the answer; `</think>` is rewarded then."""
    json_schema: dict[str, Any] | None = None
    """A JSON schema that the answer has to fit: decoding is constrained to it."""
    grammar: str | Grammar | None = None
    """The same as a grammar in llguidance's Lark form."""
    return_full_text: bool = False
    """Whether the prompt stands before the answer."""
    split_special_tokens: bool | None = None
    """Whether control tokens (`</s>`) in a text are read as plain text. None: in the messages of a
    chat they are, in a prompt, which brings its own template, not."""
    logprobs: bool = False
    """Whether metadata holds the log-probability of each token under the model, before any
    processor and without temperature."""
    top_logprobs: int | None = None
    """How many of the likeliest tokens to give with each token; sets `logprobs`."""
    answer_hint: str | None = None
    """A sentence put into the prompt ("Answer in {sentences} sentences or fewer."); the number is
    filled in from the budget."""
    logits_processor: list[Any] | None = Field(default=None, exclude=True)
    """Your own transformers logits processors; they run before the EOS reward."""
    stopping_criteria: list[Any] | None = Field(default=None, exclude=True)
    """Your own transformers stopping criteria."""
    batch_size: int = 16
    """Prompts per left-padded batch."""
    prefix_cache: int = 4096
    """Tokens whose keys and values the model keeps for prompts that begin the same way (2 GB for
    Llama 2 7B in bfloat16, 0.5 GB for Llama 3 8B); 0 is off."""
    prompt_lookup_num_tokens: int | None = None
    """Tokens guessed ahead from the text (greedy, one prompt at a time); 0 is off. None: up to 32
    for prompts of 128 tokens or more, else off."""
    assistant_model: Any = Field(default=None, exclude=True)
    """A small transformers model of the same vocabulary that guesses ahead instead; a wrong guess
    changes no token."""
    timeout: float | None = None
    """Seconds that a call may take, waiting for others included. None: any time."""
    on_timeout: OnTimeout = "cut"
    """What then becomes of its answers: "cut" gives what is there of each (`finish_reason` is
    "length"), "raise" raises `TimeoutError`."""
    max_calls: int = 1024
    """Calls that may be at one model at once, those that wait included; one more is refused with
    `ModelBusyError`."""
    pipeline_kwargs: dict[str, Any] | None = None
    """Further settings of transformers' `GenerationConfig`."""

    @model_validator(mode="before")
    @classmethod
    def _check_as_written(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Checks the options before Pydantic makes 1 of True, or a string of bytes."""
        given = {k: v for k, v in values.items() if k in OPTION_NAMES and v is not None}
        GenerationOptions.parse(given)
        return values

    @property
    def max_tokens(self) -> int | None:
        """Another name of `max_new_tokens`."""
        return self.max_new_tokens

    @property
    def model_name(self) -> str:
        """The model's name, as it stands in metadata and traces."""
        raise NotImplementedError

    async def _agenerate(self, *args: Any, run_manager: Any = None, **kwargs: Any) -> Any:
        """`_generate` in a thread of a pool of its own.

        asyncio's own pool has only a few threads more than there are cores; calls that wait for
        one of them cannot share their passes with the others. A call that is cancelled leaves the
        model within one step.
        """
        callbacks = run_manager.get_sync() if run_manager else None
        cancellation = Cancellation()

        def generate() -> Any:
            with cancelled_by(cancellation):
                return self._generate(*args, run_manager=callbacks, **kwargs)  # type: ignore[attr-defined]

        try:
            return await run_in_executor(_WAITING, generate)
        except asyncio.CancelledError:
            cancellation.cancel()
            raise

    async def _astream(
        self, *args: Any, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """`_stream` in threads of the same pool; leaving it ends the model's work in a step."""
        callbacks = run_manager.get_sync() if run_manager else None
        stream = self._stream(*args, run_manager=callbacks, **kwargs)  # type: ignore[attr-defined]
        cancellation = Cancellation()

        def pull() -> Any:
            with cancelled_by(cancellation):
                return next(stream, None)

        try:
            while (chunk := await run_in_executor(_WAITING, pull)) is not None:
                yield chunk
        finally:
            cancellation.cancel()
            with suppress(ValueError):  # a thread is at it, and will be done with it at once
                stream.close()

    def _options(self) -> GenerationOptions:
        values = {name: getattr(self, name) for name in OPTION_NAMES}
        # None is "not given" everywhere, so that `pipeline_kwargs` may say it instead. A class of
        # the user's own may have other defaults.
        own, known = self.model_fields_set, ModelOptions.model_fields
        given = {k: v for k, v in values.items() if k in own or v != known[k].default}
        return GenerationOptions.parse({k: v for k, v in given.items() if v is not None})

    def _asked(self, stop: list[str] | None, call: dict[str, Any]) -> GenerationOptions:
        """The options of one call; stops of the constructor stay in force."""
        return self._options().updated({**call, "stop": stop} if stop is not None else call)

    def _model_params(self, pipeline: Any) -> dict[str, Any]:
        """Everything that changes an answer: this is the key of LangChain's cache."""
        model = pipeline.model
        options = self._options()
        return {
            # A model that came from no file is known by itself alone.
            "model": model.name_or_path or _object_key(model),
            "revision": getattr(model.config, "_commit_hash", None),
            "quantization": quantization_name(model.config),
            "config": model.config.to_json_string(),
            "dtype": str(model.dtype),
            "generation_config": model.generation_config.to_json_string(),
            "adapters": {
                name: _object_key(config)
                for name, config in getattr(model, "peft_config", {}).items()
            },
            "active_adapters": adapter_state(model),
            "pipeline": str(sorted(pipeline._generate_kwargs.items(), key=str)),
            "pipeline_processors": [
                _object_key(item)
                for name in ("logits_processor", "stopping_criteria")
                for item in pipeline._forward_params.get(name) or ()
            ],
            # LangChain puts the call's stops under "stop", over whatever stands there.
            **{
                "constructor_stop" if name == "stop" else name: getattr(options, name)
                for name in OPTION_NAMES
                if name not in _NO_KEY
            },
            "eos_reward": asdict(options.eos_reward) if options.eos_reward else None,
            "logits_processor": [_object_key(item) for item in options.logits_processor],
            "stopping_criteria": [_object_key(item) for item in options.stopping_criteria],
        }

    def _info(self, response: GenerationResponse) -> dict[str, Any]:
        output_tokens = len(response.token_ids)
        logprobs = {} if response.logprobs is None else {"logprobs": {"content": response.logprobs}}
        return {
            **logprobs,
            "finish_reason": response.finish_reason,
            "stop_reason": response.stop_reason,
            "eos_source": response.eos_source,
            "model_name": self.model_name,
            "usage_metadata": {
                "input_tokens": response.prompt_tokens,
                "output_tokens": output_tokens,
                "total_tokens": response.prompt_tokens + output_tokens,
            },
        }


def _object_key(item: Any) -> str:
    """A name for an object that no other object has had, in this process or another."""
    known, key = _OBJECT_KEYS.get(id(item), (None, ""))
    if known is None or known() is not item:  # an id is used again once its object is gone
        key = f"{type(item).__name__} {uuid.uuid4().hex}"
        try:
            _OBJECT_KEYS[id(item)] = (ref(item), key)
        except TypeError:  # no weak references to it: keep it, so that its id stays its own
            _OBJECT_KEYS[id(item)] = (lambda: item, key)
    return key


def model_profile(name: str, pipeline: Any) -> dict[str, Any]:
    """What a chat model can do, in LangChain's terms.

    Args:
        name: Its name; "" for the pipeline's.
        pipeline: Its pipeline; None if it is not loaded yet.

    Returns:
        The fields of a `ModelProfile`; the context length from the model's config, once loaded.
    """
    profile: dict[str, Any] = {"name": name, "open_weights": True, "temperature": True}
    for kind in ("text", "image", "audio", "video"):
        profile |= {f"{kind}_inputs": kind == "text", f"{kind}_outputs": kind == "text"}
    profile |= {"tool_calling": True, "tool_choice": True, "structured_output": True}
    if pipeline is not None:
        from langchain_llama_stop.engine.config import context_window

        profile["name"] = name or pipeline.model.name_or_path
        if window := context_window(pipeline.model):
            profile["max_input_tokens"] = window
    return profile


def check_task(pipeline: Any, instead: str) -> None:
    """Refuses what is no pipeline for text generation.

    Args:
        pipeline: What was given as one.
        instead: Where else a model comes from, for the message.

    Raises:
        ValueError: If it is none.
    """
    task = getattr(pipeline, "task", None)
    if task != "text-generation":
        raise ValueError(
            f"`pipeline` has to be a transformers pipeline for 'text-generation', but is "
            f"{f'one for {task!r}' if task else repr(pipeline)}: use `load_pipeline(...)`, or "
            f"{instead}."
        )
