"""Quantizations by name, and the type of weights that are not quantized.

To add a quantization, add one entry to `QUANTIZATIONS`: `load_pipeline`, the command line, training
and reports read that table.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._optional import INSTALL_QUANTIZATION, require

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

_LOGGER = logging.getLogger("langchain_llama_stop")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """One way to quantize weights while they are loaded.

    Attributes:
        name: The name that `quantization=` takes and that reports show.
        help: What it is, for `--help`.
        settings: Keyword arguments of the `BitsAndBytesConfig`; types of torch by their names.
        recognized_by: Names of those settings by which a loaded config is known to be this one.
        dtype: Type of the other weights if `dtype` is "auto". "auto": the type they were saved in.
        training_dtype: The same for a fine-tuning.
    """

    name: str
    help: str
    settings: Mapping[str, Any]
    recognized_by: tuple[str, ...]
    dtype: str = "auto"
    training_dtype: str = "auto"

    def matches(self, settings: Mapping[str, Any]) -> bool:
        """Whether the settings of a loaded config are those of this quantization."""
        return all(settings.get(name) == self.settings[name] for name in self.recognized_by)


QUANTIZATIONS = {
    entry.name: entry
    for entry in (
        Quantization(
            name="nf4",
            help="4-bit NormalFloat with double quantization, computes in bfloat16 where it can",
            settings={
                "load_in_4bit": True,
                "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": True,
                "bnb_4bit_compute_dtype": "bfloat16",
            },
            recognized_by=("load_in_4bit", "bnb_4bit_quant_type"),
            # The type that the rest is computed in: training in float16 may overflow.
            training_dtype="bfloat16",
        ),
        Quantization(
            name="int8",
            help="LLM.int8(), computes in float16",
            settings={"load_in_8bit": True},
            recognized_by=("load_in_8bit",),
            # In any other type bitsandbytes converts at each step, and logs a line each time.
            dtype="float16",
        ),
    )
}
"""Every quantization that has a name."""


def quantization_config(quantization: Any, device_map: Any) -> BitsAndBytesConfig | None:
    """Reads the argument `quantization` of `load_pipeline`.

    Args:
        quantization: None, a name in `QUANTIZATIONS`, or a config, which is used as it is.
        device_map: Where the model goes; None for the first GPU, else the CPU.

    Returns:
        The config. One of a name computes in float16 on a GPU, in float32 on a CPU, that does not
        compute in bfloat16.

    Raises:
        ValueError: If it is not None, a name in `QUANTIZATIONS` or a `BitsAndBytesConfig`.
        ImportError: If bitsandbytes or accelerate is missing.
    """
    if quantization is None:
        return None
    from transformers import BitsAndBytesConfig

    entry = QUANTIZATIONS.get(quantization) if isinstance(quantization, str) else None
    if entry is None and not isinstance(quantization, BitsAndBytesConfig):
        names = ", ".join(repr(name) for name in QUANTIZATIONS)
        raise ValueError(
            f"`quantization` has to be None, {names} or a BitsAndBytesConfig, "
            f"but is {quantization!r}."
        )
    for package in ("bitsandbytes", "accelerate"):
        require(package, "`quantization`", INSTALL_QUANTIZATION)
    if entry is None:
        config: BitsAndBytesConfig = quantization
        return config
    settings = dict(entry.settings)
    if settings.get("bnb_4bit_compute_dtype") == "bfloat16":
        dtype = settings["bnb_4bit_compute_dtype"] = usable_dtype("bfloat16", device_map)
        if dtype == "float16":
            _LOGGER.info("This GPU does not compute in bfloat16: NF4 computes in float16.")
    return BitsAndBytesConfig(**settings)  # type: ignore[no-untyped-call]


def quantization_name(config: Any) -> str | None:
    """Names the quantization that a model's config holds.

    Args:
        config: `model.config`. Its `quantization_config` may be an object or a dict.

    Returns:
        A name in `QUANTIZATIONS`; another 4-bit type of bitsandbytes ("fp4"); the method's name
        ("gptq") of others; None for a model that is not quantized.
    """
    saved = getattr(config, "quantization_config", None)
    if saved is None:
        return None
    settings: dict[str, Any] = saved if isinstance(saved, dict) else saved.to_dict()
    for entry in QUANTIZATIONS.values():
        if entry.matches(settings):
            return entry.name
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type", "fp4"))
    method = settings.get("quant_method")
    return str(getattr(method, "value", method))


def parse_dtype(dtype: Any, config: BitsAndBytesConfig | None) -> Any:
    """Reads the argument `dtype` of `load_pipeline`.

    Args:
        dtype: "auto", a type of torch, or its name.
        config: How the weights will be quantized.

    Returns:
        A floating-point type of torch, or "auto".

    Raises:
        ValueError: If it is neither.
    """
    import torch

    if dtype == "auto" and config is not None:
        settings = config.to_dict()
        matching = (entry for entry in QUANTIZATIONS.values() if entry.matches(settings))
        dtype = next((entry.dtype for entry in matching), "auto")
    parsed = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype != "auto" and not (isinstance(parsed, torch.dtype) and parsed.is_floating_point):
        raise ValueError(
            "`dtype` has to be 'auto' or a floating-point type of torch, such as 'bfloat16', "
            f"but is {dtype!r}."
        )
    return dtype if dtype == "auto" else parsed


def best_dtype(saved: torch.dtype | None, device_map: Any) -> Any:
    """Chooses the type of weights that are not quantized.

    Args:
        saved: The type they were saved in, if the config names it.
        device_map: Where the model goes; None for the first GPU, else the CPU.

    Returns:
        "auto", which is the type they were saved in; on a CPU bfloat16 or float32 instead of a
        16-bit type that it does not compute in.
    """
    import torch

    if saved not in (torch.float16, torch.bfloat16) or not _is_on_cpu(device_map):
        return "auto"
    best = getattr(torch, usable_dtype("bfloat16", device_map))
    if best != saved:
        saved_name, best_name = (str(dtype).removeprefix("torch.") for dtype in (saved, best))
        level = logging.INFO if best == torch.float32 else logging.DEBUG
        message = "On this CPU, weights saved in %s are loaded in %s, in which it computes."
        _LOGGER.log(level, message, saved_name, best_name)
    return best


def usable_dtype(dtype: str, device_map: Any, on_gpu: str = "float16") -> str:
    """Names `dtype`, or what to take where bfloat16 is not computed in: "float32" on a CPU."""
    on_cpu = _is_on_cpu(device_map)
    if dtype != "bfloat16" or (_cpu_has_bfloat16() if on_cpu else _gpus_have_bfloat16()):
        return dtype
    return "float32" if on_cpu else on_gpu


def _is_on_cpu(device_map: Any) -> bool:
    """Whether all of the model goes to the CPU."""
    import torch

    devices = device_map.values() if isinstance(device_map, dict) else [device_map]
    on_cpu = {str(device) for device in devices} == {"cpu"}
    return on_cpu or (device_map is None and not torch.accelerator.is_available())


def _cpu_has_bfloat16() -> bool:
    """Whether the CPU computes in bfloat16 itself; assumed where torch cannot tell."""
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):  # before torch 2.11
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(value for name, value in capabilities.items() if "bf16" in name)


def _gpus_have_bfloat16() -> bool:
    """Whether all NVIDIA GPUs compute in bfloat16: from Ampere on, not T4 or V100."""
    import torch

    if torch.version.cuda is None:  # GPUs of others
        return True
    properties = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return all(gpu.major >= 8 for gpu in properties)
