"""The type of a model's weights: what was asked for, what is fastest, how they are quantized."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel


def asked_dtype(dtype: Any, quantization_config: BitsAndBytesConfig | None) -> Any:
    """Reads the argument `dtype`.

    Args:
        dtype: "auto", a type of torch, or its name.
        quantization_config: How the weights are to be quantized.

    Returns:
        A floating-point type of torch, or "auto".

    Raises:
        ValueError: If it is neither.
    """
    import torch

    if dtype == "auto" and quantization_config is not None and quantization_config.load_in_8bit:
        # In any other type bitsandbytes converts at each step, and logs a line each time.
        return torch.float16
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype != "auto" and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(
            "`dtype` has to be 'auto' or a floating-point type of torch, such as 'bfloat16', "
            f"but is {dtype!r}."
        )
    return dtype if dtype == "auto" else found


def best_dtype(saved: torch.dtype | None, device_map: Any) -> Any:
    """Chooses the type of weights that are not quantized.

    Args:
        saved: The type they were saved in, if the config says so.
        device_map: Where the model goes; None for the first GPU, else the CPU.

    Returns:
        "auto", which is the type they were saved in; on a CPU bfloat16 or float32 instead of a
        16-bit type that it does not compute in.
    """
    import torch

    places = device_map.values() if isinstance(device_map, dict) else [device_map]
    on_cpu = {str(place) for place in places} == {"cpu"}
    on_cpu = on_cpu or (device_map is None and not torch.accelerator.is_available())
    if not on_cpu or saved not in (torch.float16, torch.bfloat16):
        return "auto"
    return torch.bfloat16 if _has_bfloat16() else torch.float32


def _has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16 itself; what torch cannot say is taken for a yes."""
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return True
    known = torch.cpu.get_capabilities()
    return any(value for name, value in known.items() if "bf16" in name)


def quantization_of(model: PreTrainedModel) -> str | None:
    """Name a loaded model's quantization.

    Args:
        model: A transformers model, or anything with its `config`.

    Returns:
        "nf4", "fp4" or "int8" for bitsandbytes, the method's name ("gptq") for others, None for
        a model that is not quantized.
    """
    return quantization_name(model.config)


def quantization_name(config: Any) -> str | None:
    """Name the quantization that a model's config holds.

    Args:
        config: The config; its quantization is an object, or as read from JSON.

    Returns:
        As `quantization_of`.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return None
    marks: dict[str, Any] = found if isinstance(found, dict) else found.to_dict()
    method = marks.get("quant_method")
    if marks.get("load_in_8bit"):
        return "int8"
    if marks.get("load_in_4bit"):
        return str(marks.get("bnb_4bit_quant_type", "fp4"))
    return str(getattr(method, "value", method))


def as_text(value: Any) -> Any:
    """Gives a type of torch or a path as the text that names it too.

    Args:
        value: An argument of `load_pipeline`.

    Returns:
        "bfloat16" for `torch.bfloat16`, "a/b" for `Path("a/b")`; anything else as it is.
    """
    is_dtype = type(value).__name__ == "dtype" and str(value).startswith("torch.")
    return str(value).removeprefix("torch.") if is_dtype or isinstance(value, Path) else value
