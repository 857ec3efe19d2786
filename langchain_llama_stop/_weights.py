"""State of weights and adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def adapter_state(model: PreTrainedModel) -> str:
    """A text that changes with the active adapters of a model; "" if it has none."""
    if not getattr(model, "peft_config", None):
        return ""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = next((m for m in model.modules() if isinstance(m, BaseTunerLayer)), None)
    return f"{layer.active_adapters} {layer.disable_adapters}" if layer else ""
