"""Public names that are imported on their first use, and stand-ins where a package is missing."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple, NoReturn


class _Extra(NamedTuple):
    packages: frozenset[str]  # as they are imported
    install: str


_CLIENT = _Extra(
    frozenset({"httpx2", "langchain_core"}),  # a server's environment has none of LangChain
    "pip install 'langchain-llama-stop[vllm]' ('.[vllm]' in a clone)",
)
_SERVER = _Extra(frozenset({"vllm"}), "pip install vllm")
_EXTRAS = {
    "langchain_llama_stop.vllm.chat_model": _CLIENT,
    "langchain_llama_stop.vllm.processor": _SERVER,
}
"""The modules whose import needs packages that not everybody has."""


def lazy_names(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes a package's `__getattr__` and `__dir__`.

    Where the packages of an extra are missing, a name gives a stand-in: a class that raises
    ImportError when it is instantiated. So `import *`, `help` and `hasattr` work without the
    extra. Every other error of an import is raised as it is.

    Args:
        package: The package's `__name__`.
        modules: The full name of the module that holds each public name.

    Returns:
        Both functions.
    """

    def load(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = modules[name]
        try:
            value = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            extra, missing = _EXTRAS.get(module), (error.name or "").partition(".")[0]
            if extra is None or missing not in extra.packages or _is_installed(missing):
                raise
            # Not kept in the package: the extra may be installed while Python runs.
            return _stand_in(name, module, missing, extra.install)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted(sys.modules[package].__all__)

    return load, names


def _is_installed(package: str) -> bool:
    return sys.modules.get(package) is not None or find_spec(package) is not None


@functools.cache
def _stand_in(name: str, module: str, missing: str, install: str) -> type:
    """A class that says what to install when it is instantiated."""
    message = f"{name} needs the package {missing}. Install it: {install}"

    def refuse(cls: type, *args: Any, **kwargs: Any) -> NoReturn:
        raise ImportError(message, name=missing)

    return type(name, (), {"__new__": refuse, "__doc__": f"{message}.", "__module__": module})
