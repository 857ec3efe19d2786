"""How both LangChain classes load a model by name, once for all of their copies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from langchain_core.load.serializable import Serializable
from pydantic import BaseModel, Field, SecretStr, model_validator

from langchain_llama_stop._langchain.fields import OBJECTS, OptionFields
from langchain_llama_stop._langchain.serialization import as_text, explicit_fields
from langchain_llama_stop._locks import ForkSafeLock
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.loading.devices import check_device
from langchain_llama_stop.loading.pipeline import copied, place_model_kwargs
from langchain_llama_stop.options import ALIASES, OPTIONS

_LOADING = ForkSafeLock()
_LOADER_FIELDS = (
    *("quantization", "adapter", "dtype", "device_map", "revision", "token"),
    *("trust_remote_code", "model_kwargs"),
)
_GENERATION = {*OPTIONS, *ALIASES, "max_length", "do_sample"}
"""What LangChain's documentation puts into `model_kwargs`, though it says nothing of loading."""
COPIED = ("shared_pipelines", "given_pipeline")
"""Fields that users do not give, but LangChain does when it copies a model by its fields."""


@dataclass(slots=True)
class SharedPipelines:
    """The pipelines that a model and its copies have loaded, with the arguments that did it."""

    loaded: list[tuple[dict[str, Any], Any]] = field(default_factory=list, repr=False)


class ModelSource(BaseModel):
    """The fields that say how to load a model by name."""

    _name_field: ClassVar[str] = "model"

    quantization: Any = None
    """None, "nf4", "int8", or a `BitsAndBytesConfig`."""
    adapter: str | Path | None = None
    """A PEFT adapter to load onto the model: folder or hub id."""
    dtype: Any = "auto"
    """"auto", a name such as "bfloat16", or a `torch.dtype`."""
    device_map: Any = None
    """Where to put the model, in transformers' form. None: the first GPU, else the CPU."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    if TYPE_CHECKING:  # a string is allowed too, and becomes a secret
        token: SecretStr | str | bool | None = None
    else:
        token: SecretStr | bool | None = Field(default=None, exclude=True, repr=False)
        """Access token for gated models. False: none, not even the one you logged in with."""
    trust_remote_code: bool = False
    """Whether code from the hub may run."""
    model_kwargs: dict[str, Any] | None = Field(default=None, repr=False)
    """Further arguments of `from_pretrained`. Those that are fields here (`quantization_config` is
    `quantization`) go where they belong, and so do generation settings."""
    shared_pipelines: SharedPipelines = Field(
        default_factory=SharedPipelines, exclude=True, repr=False
    )
    """Shared with the model's copies: `configurable_fields` copies the model for each call."""

    if not TYPE_CHECKING:  # type checkers see the fields as arguments

        def __init__(self, **values: Any) -> None:
            """Takes the fields as arguments, some of them in `model_kwargs`."""
            super().__init__(**_placed(values))

    @classmethod
    def from_model_id(
        cls,
        model_id: str | Path,
        task: str | None = "text-generation",
        backend: str = "default",
        device: int | str | None = None,
        device_map: Any = None,
        model_kwargs: dict[str, Any] | None = None,
        pipeline_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Makes a model by its name, with the arguments of LangChain's classes for Hugging Face.

        Args:
            model_id: Hub id, local folder, `.gguf` file, or "demo".
            task: Has to be "text-generation".
            backend: Has to be "default" or, as `ChatHuggingFace` calls it, "pipeline".
            device: A GPU's number, -1 for the CPU, or a name ("cuda:1"); short for `device_map`.
            device_map: As in transformers ("auto", …).
            model_kwargs: More arguments for the model's `from_pretrained`.
            pipeline_kwargs: Generation settings, as `HuggingFacePipeline` takes them.
            **kwargs: The fields of the class: `quantization`, `adapter`, `dtype`, `revision`,
                `token`, `trust_remote_code`, and the options of a generation.

        Returns:
            The model.

        Raises:
            ValueError: If an argument or option is unknown or out of its range, or the model
                cannot be loaded.
        """
        if task not in ("text-generation", None):
            raise ValueError(f"`task` has to be 'text-generation', but is {task!r}.")
        if backend not in ("default", "pipeline"):
            raise ValueError(f"`backend` has to be 'default', but is {backend!r}.")
        if device is not None:
            if device_map is not None:
                raise ValueError("`device` and `device_map` say the same: give one of them.")
            device = "cpu" if device == -1 else device
            check_device({"": device}, "device")
            device_map = {"": device}
        if "pipeline" in kwargs:
            raise ValueError(
                f"`pipeline` has to be left out here: give it to `{cls.__name__}(...)`."
            )
        arguments: dict[str, Any] = {
            cls._name_field: str(model_id) if isinstance(model_id, Path) else model_id,
            "device_map": device_map,
            "model_kwargs": model_kwargs,
            "pipeline_kwargs": pipeline_kwargs,
        }
        return cls(**arguments, **kwargs)

    @model_validator(mode="after")
    def _unset_copied_defaults(self) -> Self:
        """Marks options with default values as not set in a copy, so that `pipeline_kwargs` wins.

        `configurable_fields` copies a model with all of its fields, set or not.
        """
        if "shared_pipelines" in self.model_fields_set:
            for name in self.model_fields_set & set(OPTIONS):
                if getattr(self, name) == type(self).model_fields[name].default:
                    self.model_fields_set.discard(name)
        return self

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The name under which `load` looks up the token."""
        return {"token": "HF_TOKEN"} if isinstance(self.token, (SecretStr, str)) else {}

    def _loaded(self, model: Any) -> Any:
        """The pipeline of this name and these fields; None if it is not loaded yet."""
        arguments = _comparable(self._loader_arguments(model))
        for key, pipeline in self.shared_pipelines.loaded:
            if key == arguments:
                return pipeline
        return None

    def _load(self, model: Any) -> Any:
        """The same, loaded on first use."""
        with _LOADING():
            pipeline = self._loaded(model)
            if pipeline is None:
                arguments = self._loader_arguments(model)
                token = arguments["token"]
                plain = token.get_secret_value() if isinstance(token, SecretStr) else token
                key = _comparable(arguments)  # before loading, which may change dicts in place
                pipeline = load_pipeline(**{**arguments, "token": plain})
                self.shared_pipelines.loaded.append((key, pipeline))
            return pipeline

    def _was_loaded_here(self, pipeline: Any) -> bool:
        """Whether this model or one of its copies has loaded a pipeline."""
        return any(loaded is pipeline for _, loaded in self.shared_pipelines.loaded)

    def _loader_arguments(self, model: Any) -> dict[str, Any]:
        return {"model": model, **{name: getattr(self, name) for name in _LOADER_FIELDS}}

    def _arguments_by_name(self, model: Any, pipeline: Any) -> dict[str, Any]:
        """The constructor's arguments of a model that is loaded by name, for `dumpd`.

        Args:
            model: The name; None if there is none.
            pipeline: The pipeline in use; None if none is loaded yet.

        Returns:
            Values by field name. Of the token only False: a real one is written as a secret.

        Raises:
            TypeError: If the pipeline was not loaded by that name, or adapters were added to it
                after loading.
        """
        if pipeline is not self._loaded(model):
            raise TypeError("A pipeline has no form in JSON.")
        if self.adapter is None and getattr(getattr(pipeline, "model", None), "peft_config", None):
            raise TypeError("An adapter that was put on later has no form in JSON.")
        fields = explicit_fields(
            cast(Serializable, self), "pipeline", "shared_pipelines", refused=OBJECTS
        )
        return {**fields, "token": False} if self.token is False else fields


def _placed(values: dict[str, Any]) -> dict[str, Any]:
    """Moves what `model_kwargs` holds to the fields that it is about."""
    kwargs, given = values.get("model_kwargs"), ("pipeline", "given_pipeline")
    if not isinstance(kwargs, dict) or any(values.get(name) is not None for name in given):
        return values
    options = {name: value for name, value in kwargs.items() if name in _GENERATION}
    rest = {name: value for name, value in kwargs.items() if name not in _GENERATION}
    placed = place_model_kwargs({**values, "model_kwargs": rest})
    if isinstance(placed.get("token"), str):
        placed["token"] = SecretStr(placed["token"])  # before an error can quote it
    if options:
        placed["pipeline_kwargs"] = {**options, **(placed.get("pipeline_kwargs") or {})}
    return placed


def from_llm(values: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a chat model with the pipeline and the options of `llm` in place of it."""
    rest = dict(values)
    llm = rest.pop("llm")
    options = llm._given() if isinstance(llm, OptionFields) else {}
    options.pop("return_full_text", None)  # a chat gives answers
    return {"pipeline": llm.pipeline, **options, **rest}


def _comparable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments in forms that `==` compares by content; lists and dicts are copied."""

    def comparable(value: Any) -> Any:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        if hasattr(value, "to_dict"):  # such as a `BitsAndBytesConfig`, compared by its settings
            return value.to_dict()
        return as_text(copied(value))

    return {name: comparable(value) for name, value in arguments.items()}


def check_source(values: Mapping[str, Any]) -> None:
    """Refuses constructor arguments that say how to load a model beside a loaded `pipeline`."""
    is_copy = "shared_pipelines" in values
    if values.get("pipeline") is None or is_copy:
        return
    for name in _LOADER_FIELDS:
        # `HuggingFacePipeline` allows `model_kwargs` beside a pipeline, and ignores them.
        default = ModelSource.model_fields[name].default
        if name != "model_kwargs" and values.get(name, default) not in (default, None):
            raise ValueError(
                f"`{name}` has to be left out with `pipeline`, which is loaded already: give it to "
                "`load_pipeline`, or give the model's name instead of a pipeline."
            )
