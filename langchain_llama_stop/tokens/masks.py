"""Positions of tokens in rows of ids."""

from __future__ import annotations

import torch


def last_position(input_ids: torch.Tensor, token: int) -> torch.Tensor:
    """Last position of a token in each row, counted from 1; 0 if the row lacks it, (batch,)."""
    positions = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    return ((input_ids == token) * positions).amax(dim=1)
