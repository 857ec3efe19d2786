"""Where a model goes: what is named has to be on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_STRATEGIES = (None, "auto", "balanced", "balanced_low_0", "sequential")
"""Values of `device_map` that leave the choice to accelerate."""


def check_device(device_map: Any, argument: str) -> None:
    """Refuses devices that are not on this machine.

    Args:
        device_map: What transformers takes: a device, a strategy, a dict of devices, or None.
        argument: What the user has set, for the message.

    Raises:
        ValueError: With the device, and what is there.
    """
    if isinstance(device_map, str | None) and device_map in _STRATEGIES:
        return
    devices = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    for device in devices:
        if device != "disk" and not _is_here(device):
            raise ValueError(
                f"`{argument}` has to name a device of this machine, which has {_devices()}, but "
                f"is {device!r}. Leave it out: the model goes to the first GPU, else to the CPU."
            )


def _is_here(device: Any) -> bool:
    import torch

    found = torch.accelerator.current_accelerator()
    if type(device) is int:  # that of an accelerator
        return found is not None and 0 <= device < torch.accelerator.device_count()
    if isinstance(device, bool):
        return False
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):  # such as "gpu", or a float
        return False
    if wanted.type == "cpu":
        return True
    same = found is not None and found.type == wanted.type
    return same and (wanted.index or 0) < torch.accelerator.device_count()


def _devices() -> str:
    """Names what is there: "'cpu' and no GPU", "'cpu', 'cuda:0'"."""
    import torch

    found = torch.accelerator.current_accelerator()
    if found is None:
        return "'cpu' and no GPU"
    names = [repr(f"{found.type}:{n}") for n in range(torch.accelerator.device_count())]
    return ", ".join(["'cpu'", *names])
