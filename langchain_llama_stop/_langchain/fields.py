"""What both LangChain classes share: the options as fields, the cache key, the metadata."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import ref

from pydantic import model_validator

from langchain_llama_stop._weights import adapter_state
from langchain_llama_stop.loading.quantization import quantization_name
from langchain_llama_stop.options import OPTIONS, GenerationOptions, ModelOptions

if TYPE_CHECKING:
    from langchain_llama_stop.engine.sequence import GenerationResponse

OBJECTS = tuple(option.name for option in OPTIONS.values() if option.is_object)
"""Options that are objects of the user's, of which nothing can be written as JSON."""

_TOKENIZER = ("chat_template", "model_max_length", "truncation_side", "add_bos_token")
"""What users change of a tokenizer that was loaded."""

_OBJECT_KEYS: dict[int, tuple[Callable[[], Any], str]] = {}
"""Weak references to objects and their names, by id."""


_Last = tuple[Callable[[], Any], Any, GenerationOptions]  # whose, of what, the options
_CONSTRUCTOR: ContextVar[_Last | None] = ContextVar("constructor_options", default=None)
_CALL: ContextVar[_Last | None] = ContextVar("call_options", default=None)
"""What this thread or task has parsed last."""


class _Is:
    """An object that equals itself only."""

    def __init__(self, item: object) -> None:
        self.item = item

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Is) and other.item is self.item

    def __hash__(self) -> int:
        return id(self.item)


_DEEPEST = 100
"""Levels of lists and dicts that are compared; what is deeper is parsed anew, and refused."""


def _snapshot(value: Any, level: int = 0) -> Any:
    """What `value` holds now, to be compared later: lists and dicts by content, objects by `is`."""
    if level > _DEEPEST:
        return object()
    if isinstance(value, (list, tuple)):
        return type(value), [_snapshot(item, level + 1) for item in value]
    if isinstance(value, dict):
        return dict, [(key, _snapshot(item, level + 1)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return set, [*value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    return _Is(value)


class ParsedOptionsMixin:
    """Parses the options of a model and of its calls, once each: LangChain asks several times.

    A call needs its options for its trace, for the cache's key and for itself. What a thread or
    task has parsed last is used again for the same model while what was given is the same.
    """

    def _given(self) -> dict[str, Any]:
        """The options that were given to the constructor."""
        raise NotImplementedError

    def _options(self) -> GenerationOptions:
        """The constructor's options."""
        return self._asked(None, {})

    def _asked(self, stop: list[str] | None, call: Mapping[str, Any]) -> GenerationOptions:
        """The options of one call; stops of the constructor stay in force."""
        given = self._given()
        asked = {**call, "stop": stop} if stop is not None else dict(call)
        memo, snapshot = _CALL if asked else _CONSTRUCTOR, _snapshot([given, asked])
        last = memo.get()
        if last is not None and last[0]() is self and last[1] == snapshot:
            return last[2]
        options = self._options().updated(asked) if asked else GenerationOptions.parse(given)
        memo.set((ref(self), snapshot, options))
        return options

    def _remember(self, options: GenerationOptions) -> None:
        """Keeps the options that the fields of a copy were made from."""
        _CONSTRUCTOR.set((ref(self), _snapshot([self._given(), {}]), options))


class OptionFields(ParsedOptionsMixin, ModelOptions):
    """The options of a generation, for the constructor of a LangChain model."""

    if TYPE_CHECKING:  # type checkers see arguments of the constructor; there are no such fields
        max_tokens: int | None = None
    else:

        @property
        def max_tokens(self) -> int | None:
            """Another name of `max_new_tokens`."""
            return self.max_new_tokens

    @property
    def model_name(self) -> str:
        """The model's name, as it stands in metadata and traces."""
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _check_as_written(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Checks the options before Pydantic makes 1 of True, or a string of bytes."""
        GenerationOptions.parse({k: values[k] for k in OPTIONS if values.get(k) is not None})
        if isinstance(values.get("stop"), str):
            values = {**values, "stop": [values["stop"]]}
        return values

    def __repr_args__(self) -> Any:
        """What `str` and traces show: not what LangChain notes for itself."""
        own = ("profile", "metadata")
        return [(name, value) for name, value in super().__repr_args__() if name not in own]

    def _given(self) -> dict[str, Any]:
        """The options that were given; None is "not given", so that `pipeline_kwargs` may say it.

        Defaults of a user's own subclass count as given.
        """
        own, table = self.model_fields_set, ModelOptions.model_fields
        values = ((name, getattr(self, name)) for name in OPTIONS)
        return {
            name: value
            for name, value in values
            if value is not None and (name in own or value != table[name].default)
        }

    def _model_params(self, pipeline: Any) -> dict[str, Any]:
        """What LangChain's cache takes as its key, and traces show: short, but for each answer.

        `settings` is a hash of everything that changes an answer.
        """
        everything = self._everything(pipeline)
        options: dict[str, Any] = {
            name: value
            for name, value in self._given().items()
            if isinstance(value, (bool, int, float, str)) and not OPTIONS[name].same_answer
        }
        if stop := everything["constructor_stop"]:
            options["constructor_stop"] = stop  # LangChain puts the call's stops under "stop"
        digest = hashlib.sha256(repr(sorted(everything.items())).encode()).hexdigest()
        return {
            "model": everything["model"],
            "quantization": everything["quantization"],
            **options,
            "settings": digest[:32],
        }

    def _everything(self, pipeline: Any) -> dict[str, Any]:
        """Everything that changes an answer."""
        model, tokenizer = pipeline.model, pipeline.tokenizer
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
            "tokenizer": [
                tokenizer.name_or_path or _object_key(tokenizer),
                *(getattr(tokenizer, name, None) for name in _TOKENIZER),
            ],
            "pipeline": [
                {k: _argument_key(v) for k, v in sorted(arguments.items()) if k != "tokenizer"}
                for arguments in (
                    *(pipeline._preprocess_params, pipeline._forward_params),
                    *(pipeline._postprocess_params, pipeline._generate_kwargs),
                )
            ],
            # LangChain puts the call's stops under "stop", over whatever stands there.
            **{
                "constructor_stop" if name == "stop" else name: getattr(options, name)
                for name, option in OPTIONS.items()
                if not option.same_answer
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


def _argument_key(value: Any) -> Any:
    """Describes an argument of a pipeline: plain values by content, others by `_object_key`."""
    if isinstance(value, (list, tuple)):
        return [_argument_key(item) for item in value]
    if hasattr(value, "to_dict"):  # such as a `GenerationConfig`
        value = value.to_dict()
    if isinstance(value, dict):
        return {str(key): _argument_key(item) for key, item in value.items()}
    plain = value is None or isinstance(value, (bool, int, float, str, Enum))
    return str(value) if plain else _object_key(value)


def _object_key(item: Any) -> str:
    """Names an object, as no other object is named in this process or another."""
    number = id(item)  # used again once the object is gone
    known = _OBJECT_KEYS.get(number)
    if known is not None and known[0]() is item:
        return known[1]
    try:
        reference = ref(item, lambda _: _OBJECT_KEYS.pop(number, None))
    except TypeError:
        return _kept_object_key(_Is(item))
    key = _new_key(item)
    _OBJECT_KEYS[number] = (reference, key)
    return key


@lru_cache(maxsize=32)
def _kept_object_key(same: _Is) -> str:
    """The same for one that allows no weak reference: it is kept, as long as it is among these."""
    return _new_key(same.item)


def _new_key(item: Any) -> str:
    return f"{type(item).__name__} {uuid.uuid4().hex}"


def model_profile(name: str, pipeline: Any) -> dict[str, Any]:
    """Says what a chat model can do, as the fields of a LangChain `ModelProfile`.

    Args:
        name: The model's name; "" for the pipeline's.
        pipeline: None if it is not loaded yet; once it is, the profile has the context length.
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
    """Raises ValueError for what is not a text-generation pipeline.

    Args:
        pipeline: What was given as one.
        instead: What else the user can do, for the message.
    """
    task = getattr(pipeline, "task", None)
    if task != "text-generation":
        raise ValueError(
            f"`pipeline` has to be a transformers pipeline for 'text-generation', but is "
            f"{f'one for {task!r}' if task else repr(pipeline)}: use `load_pipeline(...)`, or "
            f"{instead}."
        )
