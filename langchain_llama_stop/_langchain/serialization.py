"""What LangChain's `dumpd` writes of a model: the arguments of its constructor."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

from langchain_core.language_models import BaseChatModel
from langchain_core.load.serializable import (
    Serializable,
    SerializedConstructor,
    SerializedNotImplemented,
    to_json_not_implemented,
    try_neq_default,
)
from pydantic import SecretStr

from langchain_llama_stop.ending.reward import EosReward
from langchain_llama_stop.options import OPTIONS

_KEYS = ("token", "api_key", "openai_api_key")


class SerializationMixin:
    """Lets `load` make a model again that `dumpd` has written, if it was given by name.

    What cannot be written as JSON (a ready pipeline, processors, a `BitsAndBytesConfig`) is not
    left out: a model that has some of it is "not implemented", and `load` refuses it.
    """

    def __init__(self, **given: Any) -> None:
        """Takes the fields as arguments, by their names or their aliases."""
        # Pydantic's errors hold what they were given.
        hidden = {k: SecretStr(v) for k, v in given.items() if k in _KEYS and isinstance(v, str)}
        super().__init__(**{**given, **hidden})

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain may write models of this class."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where `load` finds the class: in the package itself, whichever of its files holds it."""
        package, *path = cls.__module__.split(".")
        return [package] if package == __name__.partition(".")[0] else [package, *path]

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Writes the model as the arguments of its constructor.

        Returns:
            LangChain's form of it; secrets by name only.
        """
        written: dict[str, Any] = {}
        try:
            # What LangChain adds: whether the class may be written, secrets, the model's name.
            written = dict(super().to_json())  # type: ignore[misc]
            if written["type"] == "constructor":
                kwargs, names = written["kwargs"], _secrets(self)
                secrets = {name: kwargs[name] for name in names if name in kwargs}
                given = self._constructor_arguments()
                plain = {name: value for name, value in given.items() if name not in names}
                written["kwargs"] = {**_json_form(plain), **secrets}
        except Exception:  # a call is not to fail because of what is written into its trace
            name = {"name": written["name"]} if "name" in written else {}
            written = {**to_json_not_implemented(self), **name}
        return cast(SerializedConstructor, written)

    def _constructor_arguments(self) -> dict[str, Any]:
        """What was given to the constructor.

        Raises:
            TypeError: If that is not all, as the model was not given by name.
        """
        raise NotImplementedError

    def model_copy(self, **how: Any) -> Self:
        """Copies the model; see pydantic's `BaseModel.model_copy`."""
        copied: Self = super().model_copy(**how)  # type: ignore[misc]
        copied.__dict__.pop("_serialized", None)  # where LangChain keeps what it has written
        return copied


class ChatSerializationMixin(SerializationMixin):
    """The same for chat models, whose cache LangChain would key by what `dumpd` writes."""

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # An answer depends on more than that: on what the model's own configuration says.
        model = cast(BaseChatModel, self)
        asked = {**model._get_invocation_params(stop=stop, **kwargs), **kwargs}
        return str(sorted(asked.items()))


def given_fields(model: Serializable, *left_out: str, refused: tuple[str, ...]) -> dict[str, Any]:
    """Gives the fields of a model that were set.

    Args:
        model: The model.
        *left_out: Fields that are written otherwise.
        refused: Fields that no `dumpd` writes, but without which a model answers otherwise.

    Returns:
        Their values by name. Of options all that were given: one that says the default wins over
        `pipeline_kwargs`. Of other fields those that do not have their default.

    Raises:
        TypeError: If a refused one is set, or something that is no field.
    """
    fields, given = type(model).model_fields, {}
    for name in sorted(model.model_fields_set - {*left_out}):
        value = getattr(model, name)
        if name not in fields or (name in refused and value):
            raise TypeError(f"`{name}` cannot be written.")
        written = name in OPTIONS or try_neq_default(value, name, model)
        if not fields[name].exclude and written and value is not None:
            given[name] = value
    return given


def _secrets(model: Any) -> set[str]:
    """The arguments that are secrets, as all classes of a model say.

    Raises:
        TypeError: If one is a part of an argument.
    """
    names = {*model.lc_secrets}
    classes: list[Any] = [*type(model).__mro__]
    for cls in classes[: classes.index(Serializable)]:
        names |= {*super(cls, model).lc_secrets}
    if any("." in name for name in names):
        raise TypeError("Secrets within arguments cannot be told apart from the rest.")
    return names


def as_text(value: Any) -> Any:
    """Names a type of torch ("bfloat16") or a path ("a/b") by text; returns others as they are."""
    is_dtype = type(value).__name__ == "dtype" and str(value).startswith("torch.")
    return str(value).removeprefix("torch.") if is_dtype or isinstance(value, Path) else value


def _json_form(value: Any) -> Any:
    """A value as JSON has it; the options that have another form are written in that.

    Raises:
        TypeError: If it has no such form.
    """
    if isinstance(value, EosReward):
        return asdict(value)
    value = as_text(value)
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json_form(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_form(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} has no form in JSON.")
