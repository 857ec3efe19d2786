"""PEFT adapters: find one, put it onto a model, merge it into the model's weights."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._files import require_empty, whole_folder
from langchain_llama_stop._optional import INSTALL_QUANTIZATION, Progress, require
from langchain_llama_stop.loading.hub import hub_error
from langchain_llama_stop.loading.paths import local_path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def find_adapter(adapter: Any, token: str | bool | None) -> Path:
    """Finds the folder of an adapter; downloads it if it is not on this machine.

    Args and errors are those of `load_pipeline`.
    """
    require("peft", "`adapter`", INSTALL_QUANTIZATION)
    files = [_CONFIG, _WEIGHTS]
    folder = local_path(adapter, "adapter")
    if folder is None:
        from huggingface_hub import snapshot_download

        try:
            # Only these two files: transformers would also take pickled weights.
            folder = Path(snapshot_download(str(adapter), allow_patterns=files, token=token))
        except Exception as error:
            raise hub_error(error, "adapter", adapter, None) from error
    for file in files:
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"`adapter` has to be a folder that PEFT saved, but {folder} has no {file}."
            )
    return folder


def apply_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Puts an adapter onto a model with transformers' own means, which keep the model's class."""
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
        saved = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        base = saved.get("base_model_name_or_path")
        raise ValueError(
            f"The adapter {folder} is damaged or does not fit the model: {min(problems)}. It was "
            f"trained on {base}: load that model, or another adapter."
        ) from cause


def merge_adapter(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "bfloat16",
    progress: Progress | None = None,
) -> Path:
    """Writes a copy of a model with an adapter merged into its weights, for other servers.

    The weights are not quantized. An adapter that was trained on NF4 weights meets slightly
    different weights here; what it has learned stays.

    Args:
        model: The model that the adapter was trained on, as for `load_pipeline`.
        adapter: Folder or hub id of the adapter.
        output_dir: The folder for the copy; it has to be new or empty.
        dtype: Type of its weights: a torch dtype or its name. Default: "bfloat16".
        progress: Called with a short sentence before each slow stage. None: silent.

    Returns:
        The folder: safetensors and tokenizer.

    Raises:
        ValueError: If the adapter does not fit the model.
        FileExistsError: If the folder is not empty.
        FileNotFoundError: If model or adapter do not exist.
    """
    # Imported here, because loading a pipeline needs the functions above.
    from langchain_llama_stop.loading.pipeline import load_pipeline

    target = require_empty(Path(output_dir))
    source = find_adapter(adapter, token=None)
    pipeline = load_pipeline(model, dtype=dtype, progress=progress)
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    base: Any = pipeline.model
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(base, str(source))
        with safe_open(source / _WEIGHTS, framework="pt") as file:
            loaded = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            if surplus := set(file.keys()) - set(loaded):
                raise ValueError(f"the model has no place for {min(surplus)}")
        merged = adapted.merge_and_unload(safe_merge=True)
    except (RuntimeError, ValueError, UserWarning, SafetensorError) as error:
        raise ValueError(
            f"The adapter {source} is damaged or does not fit the model {model}: "
            f"{' '.join(str(error).split())[:200]}. Give the model that it was trained on."
        ) from error
    with whole_folder(target) as folder:
        merged.save_pretrained(folder)
        assert pipeline.tokenizer is not None
        pipeline.tokenizer.save_pretrained(folder)
    return target
