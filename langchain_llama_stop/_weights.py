"""Adapters of a model: which are active, and which kinds can be run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OWN_STATE = {"ADAPTION_PROMPT", "LILY", "POLY", "SHADOW", "XLORA"}
"""Kinds of PEFT that do more in a pass than to change weights."""


def adapter_state(model: PreTrainedModel) -> str:
    """A text that changes with the active adapters of a model; "" if it has none."""
    if not getattr(model, "peft_config", None):
        return ""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = next((m for m in model.modules() if isinstance(m, BaseTunerLayer)), None)
    if layer is None:
        return ""
    scaling = vars(layer).get("scaling", "")
    return f"{layer.active_adapters} {layer.disable_adapters} {scaling}"


def check_adapters(model: Any) -> None:
    """Checks that a model's adapters change weights only, as LoRA and IA3 do.

    Raises:
        ValueError: If one of them adds tokens or keeps a state of its own (prompt learning).
    """
    for name, config in (getattr(model, "peft_config", None) or {}).items():
        kind = getattr(config.peft_type, "value", config.peft_type)
        activated = getattr(config, "alora_invocation_tokens", None) is not None
        if config.is_prompt_learning or kind in _OWN_STATE or activated:
            raise ValueError(
                "A model's adapters have to change weights only, as LoRA and IA3 do, but the "
                f"adapter {name!r} is {'an activated LoRA' if activated else kind}: adapters that "
                "add tokens or keep a state of their own (prompt learning and the like) are not "
                "taken. Use `model.generate` for it, or train a LoRA instead."
            )
