"""Where tokens stand in rows of ids."""

from __future__ import annotations

import torch


def last_position(input_ids: torch.Tensor, token: int) -> torch.Tensor:
    """Where a token stands last in each row, counted from 1; 0 where it does not, (batch,)."""
    places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    return ((input_ids == token) * places).amax(dim=1)
