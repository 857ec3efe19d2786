"""Products of float32 weights with a few rows, in the layout in which AMD's CPUs are fast."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from weakref import WeakSet

import torch
from torch.nn import Linear, Parameter

from langchain_llama_stop.tokens.weak_cache import cached_per_object

_MOST_ROWS = 8
"""Measured for layers of 576 to 11,008: with small ones more rows do not pay."""


class _FewRows(Linear):
    """A `Linear` that computes (W Xᵀ)ᵀ for 2 to 8 rows instead of X Wᵀ.

    MKL, torch's library for such products, is slow on AMD's CPUs where its result is narrow.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Equal to `Linear`'s but for the rounding of float32."""
        rows, weight = input.numel() // max(self.in_features, 1), self.weight
        usual = input.dtype is torch.float32 and input.device.type == "cpu"
        if not (1 < rows <= _MOST_ROWS and usual and type(weight) is Parameter):
            return super().forward(input)
        product = torch.mm(weight, input.reshape(rows, -1).t()).t().contiguous()
        product = product.view(*input.shape[:-1], -1)
        return product if self.bias is None else product + self.bias


@contextmanager
def few_rows(model: Any) -> Iterator[None]:
    """Lets a model's plain `Linear` layers compute a few rows fast, for the length of a pass."""
    layers = list(_linears(model)) if _pays() else []
    for layer in layers:
        object.__setattr__(layer, "__class__", _FewRows)
    try:
        yield
    finally:
        for layer in layers:
            object.__setattr__(layer, "__class__", Linear)


@cached_per_object
def _linears(model: Any) -> WeakSet[Linear]:
    """The plain `Linear` layers; a layer that is exchanged later is not kept alive."""
    return WeakSet(m for m in model.modules() if type(m) in (Linear, _FewRows))


@cache
def _pays() -> bool:
    """Whether this is a CPU of AMD, and torch computes with MKL."""
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:  # no Linux
        return "AuthenticAMD" in platform.processor()
