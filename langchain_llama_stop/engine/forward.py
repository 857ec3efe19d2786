"""How a model is called, whatever wraps it, and which requests may share its passes."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from langchain_llama_stop.engine.few_rows import few_rows
from langchain_llama_stop.engine.kv_cache import CACHE_NAME, RowsCache, can_share
from langchain_llama_stop.engine.rope import forget_length, steady_length
from langchain_llama_stop.tokens.weak_cache import cached_per_object

_POSITIONS_BY_MASK = {"bloom"}
"""Models that take no positions, but count them by the attention mask."""


class Logits(NamedTuple):
    """The logits of one forward pass.

    Attributes:
        values: The model's own, (rows, positions, vocab), float32.
        highest: The id and the value of the highest, of each row and position.
    """

    values: torch.Tensor
    highest: list[list[tuple[int, float]]]

    @classmethod
    def of(cls, values: torch.Tensor) -> Logits:
        """Finds the highest of logits in any dtype, (rows, positions, vocab), for all at once."""
        values = values.float()
        best, tokens = values.max(dim=-1)
        pairs = zip(tokens.tolist(), best.tolist(), strict=True)
        return cls(values, [list(zip(ids, top, strict=True)) for ids, top in pairs])


def can_batch(model: Any, length: int) -> bool:
    """Whether a request may share passes and cached prefixes with others.

    Its state has to be keys and values only, the model has to be told the positions of its tokens,
    and RoPE's frequencies may not depend on the length of the pass. Any other request runs as
    transformers' own loop runs it.

    Args:
        model: The model, wrapped (`PeftModel`, `torch.compile`) or not.
        length: Tokens of the prompt and the longest answer.
    """
    config = model.config.get_text_config(decoder=True)
    return (
        can_share(model.config)
        and (_takes_positions(model) or config.model_type in _POSITIONS_BY_MASK)
        and length <= steady_length(config)
    )


def run_model(model: Any, inputs: dict[str, Any]) -> Any:
    """One forward pass that no earlier pass has an effect on; returns the model's outputs.

    Of `torch.compile(model)` the original runs, as in `generate`: compiled code would be compiled
    anew at each length.
    """
    model = getattr(model, "_orig_mod", model)
    forget_length(model)
    try:
        with few_rows(model) if inputs["input_ids"].numel() > 1 else nullcontext():
            return model(**inputs, return_dict=True)
    finally:
        forget_length(model)


def forward(
    model: Any,
    tokens: torch.Tensor,
    cache: RowsCache,
    positions: torch.Tensor,
    mask: torch.Tensor | None,
    keep: int,
) -> Logits:
    """Runs a model over the new tokens of some rows.

    Args:
        model: The model.
        tokens: The new tokens, (rows, new).
        cache: Keys and values of the tokens before; grows by the new ones.
        positions: Of the new tokens, (rows, new).
        mask: 1 for tokens that count, (rows, columns of the cache + new); None if all count, which
            is faster than all ones.
        keep: For how many of the new tokens to return logits, counted from the last one.

    Returns:
        The logits, (rows, keep, vocab).
    """
    inputs: dict[str, Any] = {"use_cache": True}
    if _takes_positions(model):
        inputs["position_ids"] = positions
    if _takes_logits_to_keep(model):
        inputs["logits_to_keep"] = keep
    inputs = model.prepare_inputs_for_generation(
        tokens,
        next_sequence_length=tokens.shape[1],
        attention_mask=mask,
        **inputs,
        **{CACHE_NAME: cache},
    )
    inputs[CACHE_NAME] = cache  # Phi-3 drops it where it would read a long text anew
    return Logits.of(run_model(model, inputs).logits[:, -keep:])


@cached_per_object
def keeps_state(model: Any) -> bool:
    """Whether a model keeps the state of a text in its own modules, as RecurrentGemma does."""
    return any(hasattr(module, "_setup_cache") for module in model.modules())


@cached_per_object
def _takes_positions(model: Any) -> bool:
    """Whether `position_ids` reach the forward pass of the transformers model inside a wrapper."""
    inside: Any = next((m for m in model.modules() if isinstance(m, PreTrainedModel)), model)
    classes: tuple[Any, ...] = type(inside).__mro__
    for cls in classes:  # a subclass may hand all keywords on
        parameters = inspect.signature(cls.forward).parameters
        if "position_ids" in parameters:
            return True
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            return False
    return False


@cached_per_object
def _takes_logits_to_keep(model: Any) -> bool:
    """Whether the forward pass takes `logits_to_keep`; a wrapped model answers for itself."""
    return bool(model._supports_logits_to_keep())
