"""What a model computes with: tensors and adapters, told apart in a few milliseconds."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from operator import is_
from typing import Any
from weakref import ref

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from langchain_llama_stop.engine.rope import follows_length

_WHOLE = 2**19
"""Numbers of a model that is compared whole: half a millisecond. Chosen, not tuned."""

_SAMPLE = 8
"""Numbers that are compared of each tensor of a larger model. Chosen, not tuned."""

_PLAIN = {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}

_SETTINGS = ("scaling", "_active_adapter", "_disable_adapters", "merged_adapters")
"""Attributes of modules with children that change what they compute: users and PEFT set them."""


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """What a model computes with at one moment.

    Attributes:
        tensors: Weak references to its parameters.
        numbers: Their versions, which writing in place raises, and their addresses.
        settings: The settings of its modules, and their hooks.
        samples: Numbers out of its tensors, bytes by dtype and device. Writing through `.data` or
            numpy raises no version.
    """

    tensors: list[ref[torch.Tensor]]
    numbers: list[int]
    settings: list[Any]
    samples: dict[tuple[torch.dtype, torch.device], torch.Tensor]

    def same_as(self, other: Fingerprint) -> bool:
        """Whether nothing has changed, as far as the samples tell."""
        return (
            len(self.tensors) == len(other.tensors)
            and all(map(is_, self.tensors, other.tensors))
            and self.numbers == other.numbers
            and self.settings == other.settings
            and self.samples.keys() == other.samples.keys()
            and all(torch.equal(x, other.samples[key]) for key, x in self.samples.items())
        )


def fingerprint(model: torch.nn.Module) -> Fingerprint:
    """Takes the fingerprint of a model, wrapped or not."""
    parameters: list[Any] = []
    buffers: list[Any] = []
    settings: list[Any] = [model.training]
    stack: list[Any] = [model]
    while stack:  # several times as fast as `modules()`
        module = stack.pop()
        if module is None:
            continue
        own = module.__dict__
        parameters.extend(own["_parameters"].values())
        if own["_buffers"] and not follows_length(module):
            buffers.extend(own["_buffers"].values())
        if own["_forward_hooks"] or own["_forward_pre_hooks"]:
            settings.append([*own["_forward_hooks"], *own["_forward_pre_hooks"]])
        if children := own["_modules"]:
            stack.extend(children.values())
            for name in _SETTINGS:
                if name in own:
                    settings.append(repr(own[name]))
    parameters = [p for p in parameters if p is not None]
    plain = [tensor for p in parameters for tensor in _plain(p)]
    numbers = [n for p in plain for n in (0 if p.is_inference() else p._version, p.data_ptr())]
    buffers = [tensor for b in buffers if b is not None for tensor in _plain(b)]
    return Fingerprint([ref(p) for p in parameters], numbers, settings, _samples(plain + buffers))


def _plain(tensor: Any) -> Iterator[torch.Tensor]:
    """The tensors that a tensor consists of: itself, or those that a subclass wraps."""
    if type(tensor) not in _PLAIN and is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from _plain(getattr(tensor, name))
    elif not tensor.is_meta:  # its numbers are fetched from a disk for one pass
        yield tensor


def _samples(
    tensors: list[torch.Tensor],
) -> dict[tuple[torch.dtype, torch.device], torch.Tensor]:
    """Numbers out of all tensors: all of a small model's, else some of each tensor."""
    whole = sum(tensor.numel() for tensor in tensors) <= _WHOLE
    groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        count, step = _places(tensor.shape, tensor.stride(), whole)
        if count:
            sample = tensor.as_strided((count,), (step,))
            groups.setdefault((tensor.dtype, tensor.device), []).append(sample)
    return {key: torch.cat(group).view(torch.uint8) for key, group in groups.items()}


@functools.lru_cache(maxsize=4096)
def _places(shape: torch.Size, strides: tuple[int, ...], whole: bool) -> tuple[int, int]:
    """How many numbers of a tensor are compared, and how far they lie apart in memory."""
    if 0 in shape:
        return 0, 1
    extent = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))  # in any layout
    # The step is no multiple of a row, so that it leads through all columns of a matrix.
    step = 1 if whole else max(1, int(extent / (_SAMPLE + 0.382)))
    return (extent - 1) // step + 1, step
