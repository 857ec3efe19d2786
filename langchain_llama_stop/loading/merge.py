"""A model and its adapter made one, for serving where adapters are not known."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from langchain_llama_stop._files import require_empty, whole_folder
from langchain_llama_stop._optional import Progress
from langchain_llama_stop.loading.pipeline import find_adapter, load_pipeline

if TYPE_CHECKING:
    import torch


def merge_adapter(
    model: str | os.PathLike[str],
    adapter: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "bfloat16",
    progress: Progress | None = None,
) -> Path:
    """Writes a copy of a model with an adapter merged into its weights, for serving elsewhere.

    The weights are not quantized. An adapter that was trained on NF4 weights meets slightly other
    ones here; what it has learned stays.

    Args:
        model: The model that the adapter was trained on, as for `load_pipeline`.
        adapter: The adapter.
        output_dir: The folder for the copy; it may not exist yet, or be empty.
        dtype: Type of its weights.
        progress: As for `load_pipeline`.

    Returns:
        The folder: safetensors and tokenizer.

    Raises:
        ValueError: If the adapter does not fit the model.
        FileExistsError: If the folder holds something.
        FileNotFoundError: If model or adapter do not exist.
    """
    target = require_empty(Path(output_dir))
    source = find_adapter(adapter, token=None)
    pipeline = load_pipeline(model, dtype=dtype, progress=progress)
    from peft import PeftModel, get_peft_model_state_dict

    base: Any = pipeline.model
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            adapted = PeftModel.from_pretrained(base, str(source))
        with safe_open(source / "adapter_model.safetensors", framework="pt") as file:
            taken = get_peft_model_state_dict(adapted, save_embedding_layers=False)
            if surplus := set(file.keys()) - set(taken):
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
