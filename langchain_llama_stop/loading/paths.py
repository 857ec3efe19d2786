"""Where a model or an adapter lies: in a folder or file on this machine, or on the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from langchain_llama_stop.loading.gguf import demo_file


def is_gguf(source: str | Path) -> bool:
    """Whether this is a `.gguf` file on this machine."""
    return isinstance(source, Path) and source.suffix.lower() == ".gguf"


def find_model(model: Any) -> str | Path:
    """Returns a hub id as str, a folder or file as Path; checks the latter."""
    if model == "demo":
        return demo_file()
    path = local_path(model, "model")
    if path is None:
        return str(model)
    if path.is_file() and not is_gguf(path):
        raise ValueError(f"`model` has to be a folder or a `.gguf` file, but {path} is neither.")
    if path.is_file():
        return path
    if not (path / "config.json").is_file():
        hint = "Give the folder that `save_pretrained` wrote, or a `.gguf` file in it."
        if (path / "adapter_config.json").is_file():
            hint = "It is an adapter: give it as `adapter`, and the model it was trained on here."
        raise FileNotFoundError(f"`model` is the folder {path}, which has no config.json. {hint}")
    if not any(path.glob("*.safetensors")):
        raise FileNotFoundError(
            f"`model` is the folder {path}, which has no .safetensors file. Pickle files (.bin) "
            "are not read, because they can run code: save the model again with `save_pretrained`."
        )
    return path


def local_path(name: Any, argument: str) -> Path | None:
    """Returns the existing path that a name means, or None for a hub id.

    Raises:
        FileNotFoundError: If the name looks like a path and nothing is there.
    """
    if not isinstance(name, str | os.PathLike) or not os.fspath(name):
        raise ValueError(
            f"`{argument}` has to be a hub id, a folder or a file, as str or Path, but is {name!r}."
        )
    text = os.fspath(name)
    path = Path(text).expanduser()
    if path.exists():
        return path.absolute()
    looks_like_path = (
        not isinstance(name, str)
        or text.startswith((".", "~"))
        or path.is_absolute()
        or text.count("/") + text.count(os.sep) * (os.sep != "/") > 1
        or text.lower().endswith(".gguf")
    )
    if looks_like_path:
        raise FileNotFoundError(
            f"`{argument}` is '{text}', and {path.absolute()} does not exist. Check the path; what "
            "lies on the hub is named 'owner/name'."
        )
    return None
