"""What LangChain's `dumpd` writes of a model: the arguments of its constructor."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.load.serializable import (
    Serializable,
    SerializedConstructor,
    SerializedNotImplemented,
)

from langchain_llama_stop.eos_reward import EosReward

_NOT_WRITTEN = {
    name
    for base in (BaseChatModel, BaseLLM)
    for name, field in base.model_fields.items()
    if field.exclude
}
"""Fields that LangChain writes of no model: the cache, callbacks, tags, and the like."""


class SerializationMixin:
    """Lets `load` make a model again that `dumpd` has written, if it was given by name.

    What cannot be written as JSON (a ready pipeline, processors, a `BitsAndBytesConfig`) is not
    left out: a model that has some of it is "not implemented", and `load` refuses it.
    """

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain may write models of this class."""
        return True

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Writes the model as the arguments of its constructor.

        Returns:
            LangChain's form of it; secrets by name only.
        """
        model = cast(Serializable, self)
        try:
            arguments = _json_form(self._constructor_arguments())
        except TypeError:
            return model.to_json_not_implemented()
        for name, secret in model.lc_secrets.items():
            arguments[name] = {"lc": 1, "type": "secret", "id": [secret]}
        return {"lc": 1, "type": "constructor", "id": model.lc_id(), "kwargs": arguments}

    def _constructor_arguments(self) -> dict[str, Any]:
        """What was given to the constructor, secrets left out.

        Raises:
            TypeError: If that is not all, as the model was not given by name.
        """
        raise NotImplementedError


class ChatSerializationMixin(SerializationMixin):
    """The same for chat models, whose cache LangChain would key by what `dumpd` writes."""

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # An answer depends on more than that: on what the model's own configuration says.
        model = cast(BaseChatModel, self)
        asked = {**model._get_invocation_params(stop=stop, **kwargs), **kwargs}
        return str(sorted(asked.items()))


def given_fields(model: Serializable, *left_out: str) -> dict[str, Any]:
    """Gives the fields of a model that were set to something else than their default.

    Args:
        model: The model.
        *left_out: Fields that are written otherwise.

    Returns:
        Their values by name, without those that LangChain never writes.
    """
    given = {}
    for name in sorted(model.model_fields_set - _NOT_WRITTEN - set(left_out)):
        value = getattr(model, name)
        if value != type(model).model_fields[name].get_default():
            given[name] = value
    return given


def _json_form(value: Any) -> Any:
    """A value as JSON has it; the options that have another form are written in that.

    Raises:
        TypeError: If it has no such form.
    """
    if isinstance(value, EosReward):
        return asdict(value)
    if str(value).startswith("torch.") and type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json_form(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_form(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON.")
