"""Rotary positions: how far a model's config says that they reach, and where its length matters."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import PreTrainedConfig

_WIDENING = {"linear", "dynamic", "yarn"}
"""The kinds that widen the window by their `factor`. Configs of all others name the wide one."""

_TWO_SETS = {"longrope", "su"}
"""The kinds that take other frequencies where a pass is longer than the original window."""


def context_window(config: PreTrainedConfig) -> int | None:
    """The tokens that a model can attend to; None if its config does not say.

    `max_position_embeddings` counts, and RoPE scaling that widens it (linear, dynamic, yarn): its
    `factor` times the original window, if that is more. Configs of Gemma 3 are scaled already.
    """
    stated: int | None = getattr(config, "max_position_embeddings", None)
    if stated is None or "gemma3" in config.model_type:
        return stated
    windows = [stated]
    for rope in _parameters(config):
        if _kind(rope) in _WIDENING:
            original = rope.get("original_max_position_embeddings") or stated
            windows.append(int(original * (rope.get("factor") or 1)))
    return max(windows)


def steady_length(config: PreTrainedConfig) -> float:
    """The tokens up to which RoPE's frequencies do not depend on the length of a pass.

    LongRoPE and dynamic NTK scaling take other ones for longer passes, for all of their tokens.
    """
    limits = [math.inf]
    for rope in _parameters(config):
        if _kind(rope) in _TWO_SETS:
            name = "original_max_position_embeddings"
            limits.append(rope.get(name) or getattr(config, name, None) or 0)
        elif "dynamic" in _kind(rope):
            limits.append(getattr(config, "max_position_embeddings", None) or 0)
    return min(limits)


def forget_length(model: Any) -> None:
    """Lets dynamic NTK scaling forget how long earlier passes were: it keeps their frequencies.

    A pass over one position does that, by transformers' own rule.
    """
    config = model.config.get_text_config(decoder=True)
    if not any("dynamic" in _kind(rope) for rope in _parameters(config)):
        return
    first = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    for module in model.modules():
        kinds = getattr(module, "rope_type", "")
        if isinstance(kinds, dict):
            for layer_type, kind in kinds.items():
                if "dynamic" in kind:
                    module(first, first, layer_type)
        elif "dynamic" in str(kinds):
            module(first, first)


def follows_length(module: torch.nn.Module) -> bool:
    """Whether a module changes its own frequencies with the length of a pass."""
    kinds = getattr(module, "rope_type", "")
    each = kinds.values() if isinstance(kinds, dict) else [str(kinds)]
    return any(kind in _TWO_SETS or "dynamic" in kind for kind in each)


def _parameters(config: PreTrainedConfig) -> list[dict[str, Any]]:
    """The RoPE parameters of a config, of each type of layer if they differ."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = [value for value in given.values() if isinstance(value, dict)]
    return nested or [given]


def _kind(rope: dict[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")
