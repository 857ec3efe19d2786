"""Where both LangChain classes get a pipeline from that is given by name."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, Field, SecretStr, model_validator

from langchain_llama_stop._langchain.serialization import as_text
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.loading.pipeline import copied
from langchain_llama_stop.options import OPTIONS

_LOADING = threading.Lock()
_SOURCE = (
    *("quantization", "adapter", "dtype", "device_map", "revision", "token"),
    *("trust_remote_code", "model_kwargs"),
)
COPIED = ("shared_pipelines", "given_pipeline")
"""Fields that only copies are given."""


@dataclass(slots=True)
class SharedPipelines:
    """The pipelines that a model and its copies have loaded, each with what loaded it."""

    loaded: list[tuple[dict[str, Any], Any]] = field(default_factory=list, repr=False)


class ModelSource(BaseModel):
    """How a model that is given by name is loaded, as fields."""

    quantization: Any = None
    """None, "nf4", "int8", or a `BitsAndBytesConfig`."""
    adapter: str | Path | None = None
    """A PEFT adapter to load onto the model: folder or hub id."""
    dtype: Any = "auto"
    """"auto", a name such as "bfloat16", or a `torch.dtype`."""
    device_map: Any = None
    """Where the model goes, as transformers takes it. None: the first GPU, else the CPU."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    if TYPE_CHECKING:  # a plain text is taken too, and becomes a secret
        token: SecretStr | str | bool | None = None
    else:
        token: SecretStr | bool | None = Field(default=None, exclude=True, repr=False)
        """Access token for gated models; False for none, not even the one you logged in with."""
    trust_remote_code: bool = False
    """Whether code from the hub may run."""
    model_kwargs: dict[str, Any] | None = Field(default=None, repr=False)
    """Further arguments of `from_pretrained`."""
    shared_pipelines: SharedPipelines = Field(
        default_factory=SharedPipelines, exclude=True, repr=False
    )
    """Where a model's copies find what is loaded: `configurable_fields` makes one per call."""

    @model_validator(mode="after")
    def _given_as_to_the_original(self) -> Self:
        """Leaves it to `pipeline_kwargs` to say what was not given to the model copied.

        Copies by all fields, which `configurable_fields` makes, are given defaults too.
        """
        if "shared_pipelines" in self.model_fields_set:
            for name in self.model_fields_set & set(OPTIONS):
                if getattr(self, name) == type(self).model_fields[name].default:
                    self.model_fields_set.discard(name)
        return self

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Under which name `load` is given the token."""
        return {"token": "HF_TOKEN"} if isinstance(self.token, (SecretStr, str)) else {}

    def _loaded(self, model: Any) -> Any:
        """The pipeline of this name and these fields; None before it is loaded."""
        asked = _comparable(self._arguments(model))
        known = (pipeline for given, pipeline in self.shared_pipelines.loaded if given == asked)
        return next(known, None)

    def _load(self, model: Any) -> Any:
        """The same, loaded on first use."""
        with _LOADING:
            found = self._loaded(model)
            if found is None:
                arguments = self._arguments(model)
                token = arguments["token"]
                plain = token.get_secret_value() if isinstance(token, SecretStr) else token
                given = _comparable(arguments)
                found = load_pipeline(**{**arguments, "token": plain})
                self.shared_pipelines.loaded.append((given, found))
            return found

    def _was_loaded_here(self, pipeline: Any) -> bool:
        """Whether a pipeline is one of those that this model or its copies have loaded."""
        return any(known is pipeline for _, known in self.shared_pipelines.loaded)

    def _arguments(self, model: Any) -> dict[str, Any]:
        return {"model": model, **{name: getattr(self, name) for name in _SOURCE}}

    def _check_written(self, pipeline: Any) -> dict[str, Any]:
        """What is written of the token: that there is to be none; else it is a secret.

        Raises:
            TypeError: If a loaded model has adapters, but was loaded with none.
        """
        if pipeline is not None and self.adapter is None:
            if getattr(pipeline.model, "peft_config", None):
                raise TypeError("An adapter that was put on later has no form in JSON.")
        return {"token": False} if self.token is False else {}


def _comparable(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same in one form each: by its settings, its text, its name; lists and dicts copied."""

    def form(value: Any) -> Any:
        if isinstance(value, SecretStr):
            return value.get_secret_value()
        if hasattr(value, "to_dict"):  # configurations of one kind are equal as objects
            return value.to_dict()
        return as_text(copied(value))

    return {name: form(value) for name, value in arguments.items()}


def check_source(values: Mapping[str, Any]) -> None:
    """Refuses to be told how to load what is loaded already.

    Args:
        values: The arguments of a constructor.

    Raises:
        ValueError: If one of them loads a model, and a pipeline is given too.
    """
    if values.get("pipeline") is None or "shared_pipelines" in values:  # which copies are given
        return
    for name in _SOURCE:
        # `HuggingFacePipeline` takes `model_kwargs` beside a pipeline, and does nothing with them.
        default = ModelSource.model_fields[name].default
        if name != "model_kwargs" and values.get(name, default) not in (default, None):
            raise ValueError(
                f"`{name}` has to be left out with `pipeline`, which is loaded already: give it to "
                "`load_pipeline`, or give the model's name instead of a pipeline."
            )
