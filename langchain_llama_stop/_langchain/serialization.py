"""How LangChain's `dumpd` writes a model: as the arguments of its constructor, by its name.

How the model is loaded is a part of them: see `ModelSource` in `source.py`.
"""

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

_SECRETS = ("token", "api_key", "openai_api_key")


class SerializationMixin:
    """Lets `dumpd` write a model that is loaded by name, and `load` create it again.

    Nothing is left out silently: a model with a part that JSON cannot hold (a ready pipeline,
    processors, a `BitsAndBytesConfig`) is written as "not implemented", which `load` refuses.
    """

    def __init__(self, **values: Any) -> None:
        """Takes the fields as arguments, by their names or their aliases."""
        # Pydantic's errors quote the values, so secrets are hidden before it sees them.
        secrets = {
            k: SecretStr(v) for k, v in values.items() if k in _SECRETS and isinstance(v, str)
        }
        super().__init__(**{**values, **secrets})

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """Whether LangChain may write models of this class."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """Where `load` finds the class: in the package, so that the class may change its file."""
        package, *path = cls.__module__.split(".")
        return [package] if package == __name__.partition(".")[0] else [package, *path]

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """Writes the model as the arguments of its constructor, secrets by name only."""
        written: dict[str, Any] = {}
        try:
            # LangChain decides whether the class may be written, and adds secrets and the name.
            written = dict(super().to_json())  # type: ignore[misc]
            if written["type"] == "constructor":
                kwargs, names = written["kwargs"], _secret_names(self)
                secrets = {name: kwargs[name] for name in names if name in kwargs}
                arguments = self._constructor_arguments()
                plain = {name: value for name, value in arguments.items() if name not in names}
                written["kwargs"] = {**_json_form(plain), **secrets}
        except Exception:  # LangChain traces every call: an error here must not fail the call
            name = {"name": written["name"]} if "name" in written else {}
            written = {**to_json_not_implemented(self), **name}
        return cast(SerializedConstructor, written)

    def _constructor_arguments(self) -> dict[str, Any]:
        """The arguments that make this model again; TypeError if no arguments can."""
        raise NotImplementedError

    def model_copy(self, **kwargs: Any) -> Self:
        """Copies the model; see pydantic's `BaseModel.model_copy`."""
        copied: Self = super().model_copy(**kwargs)  # type: ignore[misc]
        copied.__dict__.pop("_serialized", None)  # LangChain's cache of the original's `dumpd`
        return copied


class ChatSerializationMixin(SerializationMixin):
    """The same for chat models, with a cache key of their own."""

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # LangChain's key is what `dumpd` writes; answers depend on the model's configuration too.
        model = cast(BaseChatModel, self)
        parameters = {**model._get_invocation_params(stop=stop, **kwargs), **kwargs}
        return str(sorted(parameters.items()))


def explicit_fields(
    model: Serializable, *excluded: str, refused: tuple[str, ...]
) -> dict[str, Any]:
    """Collects the fields of a model that were set explicitly.

    Args:
        model: The model.
        *excluded: Fields to leave out, as the caller writes them in another form.
        refused: Fields that cannot be written, but that change the answers.

    Returns:
        Values by field name. Options are included even with their default value, since that wins
        over `pipeline_kwargs`; other fields only if they differ from their default.

    Raises:
        TypeError: If a refused field is set, or an attribute that is not a field.
    """
    fields, explicit = type(model).model_fields, {}
    for name in sorted(model.model_fields_set - {*excluded}):
        value = getattr(model, name)
        if name not in fields or (name in refused and value):
            raise TypeError(f"`{name}` cannot be written.")
        counts = name in OPTIONS or try_neq_default(value, name, model)
        if not fields[name].exclude and counts and value is not None:
            explicit[name] = value
    return explicit


def _secret_names(model: Any) -> set[str]:
    """The secret arguments that any class of a model declares; TypeError for parts of arguments."""
    names = {*model.lc_secrets}
    classes: list[Any] = [*type(model).__mro__]
    for cls in classes[: classes.index(Serializable)]:
        names |= {*super(cls, model).lc_secrets}
    if any("." in name for name in names):
        raise TypeError("A secret within an argument cannot be separated from the rest of it.")
    return names


def as_text(value: Any) -> Any:
    """Names a type of torch ("bfloat16") or a path ("a/b") by text; returns others as they are."""
    is_dtype = type(value).__name__ == "dtype" and str(value).startswith("torch.")
    return str(value).removeprefix("torch.") if is_dtype or isinstance(value, Path) else value


def _json_form(value: Any) -> Any:
    """A value in the types of JSON: an `EosReward` as a dict, a dtype or path as text."""
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
