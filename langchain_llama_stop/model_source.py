"""Where both LangChain classes get a pipeline from that is given by name."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, SecretStr

from langchain_llama_stop.loading import load_pipeline

_LOADING = threading.Lock()
_SOURCE = (
    *("quantization", "adapter", "dtype", "device_map", "revision", "token"),
    *("trust_remote_code", "model_kwargs"),
)


@dataclass(slots=True)
class SharedPipeline:
    """A pipeline that a model and its copies load once, and the arguments that loaded it."""

    arguments: dict[str, Any] | None = None
    pipeline: Any = None


class ModelSource(BaseModel):
    """How a model that is given by name is loaded, as fields."""

    quantization: Any = None
    """None, "nf4", "int8", or a `BitsAndBytesConfig`."""
    adapter: str | None = None
    """A PEFT adapter to load onto the model: folder or hub id."""
    dtype: Any = "auto"
    """"auto", a name such as "bfloat16", or a `torch.dtype`."""
    device_map: Any = None
    """Where the model goes, as transformers takes it. None: the first GPU, else the CPU."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    token: SecretStr | bool | None = Field(default=None, exclude=True, repr=False)
    """Access token for gated models; False for none, not even the one you logged in with."""
    trust_remote_code: bool = False
    """Whether code from the hub may run."""
    model_kwargs: dict[str, Any] | None = None
    """Further arguments of `from_pretrained`."""
    shared_pipeline: SharedPipeline = Field(
        default_factory=SharedPipeline, exclude=True, repr=False
    )
    """Where a model's copies find what is loaded: `configurable_fields` makes one per call."""

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Under which name `load` is given the token."""
        return {"token": "HF_TOKEN"} if isinstance(self.token, SecretStr) else {}

    def _loaded(self, model: str | None) -> Any:
        """The pipeline of this name and these fields; None before it is loaded."""
        shared = self.shared_pipeline
        return shared.pipeline if shared.arguments == self._arguments(model) else None

    def _load(self, model: str) -> Any:
        """The same, loaded on first use."""
        with _LOADING:
            found = self._loaded(model)
            if found is None:
                arguments = self._arguments(model)
                token = arguments["token"]
                plain = token.get_secret_value() if isinstance(token, SecretStr) else token
                found = load_pipeline(**{**arguments, "token": plain})
                if self.shared_pipeline.pipeline is not None:  # that of a copy, from elsewhere
                    self.shared_pipeline = SharedPipeline()
                self.shared_pipeline.pipeline = found
                self.shared_pipeline.arguments = arguments  # last: whoever reads holds no lock
            return found

    def _arguments(self, model: str | None) -> dict[str, Any]:
        return {"model": model, **{name: getattr(self, name) for name in _SOURCE}}


def check_source(values: Mapping[str, Any]) -> None:
    """Refuses to be told how to load what is loaded already.

    Args:
        values: The arguments of a constructor.

    Raises:
        ValueError: If one of them loads a model, and a pipeline is given too.
    """
    pipeline, shared = values.get("pipeline"), values.get("shared_pipeline")
    if pipeline is None or (shared is not None and shared.pipeline is pipeline):
        return
    for name in _SOURCE:
        # `HuggingFacePipeline` takes `model_kwargs` beside a pipeline, and does nothing with them.
        if name != "model_kwargs":
            default = ModelSource.model_fields[name].default
            if values.get(name, default) not in (default, None):
                raise ValueError(
                    f"`{name}` has to be left out with `pipeline`, which is loaded already: give "
                    f"it to `load_pipeline`, or give the model's name instead of a pipeline."
                )
