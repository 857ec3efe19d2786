"""What a model computes with: its modules, what they hold, and numbers out of its tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
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

_SETTINGS = ("scaling", "_active_adapter", "merged_adapters")
"""Attributes of modules with children that PEFT writes to in place."""

_LIBRARIES = {"torch", "transformers", "peft", "accelerate"}
"""Packages whose hooks and `forward` functions keep no state of their own that changes answers."""

_ATOMS = (int, float, str)


class Parts:
    """The objects that a model consists of: known by their ids, so that to compare them is quick.

    Attributes:
        ids: Their ids.
        atoms: The numbers and texts among them, None for all others.
        tensors: Where the tensors among them are that no module has registered.
        gone: Filled once any of them is gone: its id may be another's now.
    """

    def __init__(self, objects: list[Any], ids: list[int]) -> None:
        """Keeps numbers and texts, and weak references to others; dicts end with their modules."""
        self.ids, self.gone = ids, list[Any]()
        self.atoms = [x if isinstance(x, _ATOMS) else None for x in objects]
        self.tensors = [i for i, x in enumerate(objects) if type(x) is torch.Tensor]
        # Not to tensors: torch swaps none with references. Their addresses are compared.
        held = (x for x in objects if not isinstance(x, (dict, torch.Tensor)))
        self._references = [ref(x, self.gone.append) for x in held if type(x).__weakrefoffset__]

    def same_as(self, other: Parts) -> bool:
        """Whether they are the same objects, or equal numbers and texts."""
        return self is other or (
            not self.gone
            and not other.gone
            and len(self.ids) == len(other.ids)
            and all(
                i == j or (a is not None and type(a) is type(b) and a == b)
                for i, j, a, b in zip(self.ids, other.ids, self.atoms, other.atoms, strict=True)
            )
        )


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """What a model computes with at one moment.

    Attributes:
        parts: Its modules, their classes and attributes, its parameters, buffers and hooks.
        numbers: The versions of its tensors, which writing in place raises, and their addresses.
        settings: The settings of its adapters.
        samples: Numbers out of its tensors, bytes by dtype and device. Writing through `.data` or
            numpy raises no version.
        unknown: Whether a module has somebody's own hook or `forward`, which may keep a state.
    """

    parts: Parts
    numbers: list[int]
    settings: list[str]
    samples: dict[tuple[torch.dtype, torch.device], torch.Tensor]
    unknown: bool

    def same_as(self, other: Fingerprint) -> bool:
        """Whether nothing has changed, as far as it can be told."""
        return (
            not self.unknown
            and self.parts.same_as(other.parts)
            and self.numbers == other.numbers
            and self.settings == other.settings
            and self.samples.keys() == other.samples.keys()
            and all(torch.equal(x, other.samples[key]) for key, x in self.samples.items())
        )


def fingerprint(model: torch.nn.Module, before: Fingerprint | None = None) -> Fingerprint:
    """Takes the fingerprint of a model, wrapped or not.

    Args:
        model: The model.
        before: The last one: what has not changed since is not looked at again in detail.
    """
    objects: list[Any] = [getattr(getattr(model, "config", None), "_attn_implementation", None)]
    parameters: list[Any] = []
    buffers: list[Any] = []
    calls: list[Any] = []
    settings: list[str] = []
    stack: list[Any] = [model]
    while stack:  # several times as fast as `modules()`
        module = stack.pop()
        if module is None:
            continue
        own = module.__dict__
        objects += module, type(module)
        if own["_buffers"]:
            if follows_length(module):
                continue
            buffers += own["_buffers"].values()
        objects += own.values()
        parameters += own["_parameters"].values()
        if own["_forward_hooks"] or own["_forward_pre_hooks"]:
            hooks = *own["_forward_hooks"].values(), *own["_forward_pre_hooks"].values()
            objects += hooks
            if module is not model:  # those of the model as a whole look on
                calls += hooks
        if "forward" in own:
            calls.append(own["forward"])
        if children := own["_modules"]:
            stack += children.values()
            for name in _SETTINGS:
                if name in own:
                    settings.append(repr(own[name]))
    unknown = any(
        (getattr(call, "__module__", None) or "").split(".")[0] not in _LIBRARIES for call in calls
    )
    objects += parameters + buffers
    ids = list(map(id, objects))
    parts = before.parts if before else None
    if parts is None or parts.gone or parts.ids != ids:
        parts = Parts(objects, ids)
    parameters += [objects[i] for i in parts.tensors]
    plain = [tensor for p in parameters if p is not None for tensor in _plain(p)]
    numbers = [n for p in plain for n in (0 if p.is_inference() else p._version, p.data_ptr())]
    buffers = [tensor for b in buffers if b is not None for tensor in _plain(b)]
    return Fingerprint(parts, numbers, settings, _samples(plain + buffers), unknown)


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
