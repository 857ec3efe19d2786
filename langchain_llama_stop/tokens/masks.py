"""Tokens in rows of ids: prompt and answer, padded on the left."""

from __future__ import annotations

import torch

from langchain_llama_stop.tokens.detokenizer import Detokenizer

_END = 16  # tokens of a prompt that are read first: a long one would take a while at each step


def last_position(input_ids: torch.Tensor, token: int) -> torch.Tensor:
    """Last position of a token in each row, counted from 1; 0 if the row lacks it, (batch,)."""
    positions = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
    return ((input_ids == token) * positions).amax(dim=1)


def after_prompt(
    detokenizer: Detokenizer, input_ids: torch.Tensor, prompt_length: int
) -> Detokenizer:
    """What decodes a row's answer, as the text after its prompt.

    Args:
        detokenizer: The tokenizer's.
        input_ids: Prompt and answer, (prompt_length + generated,).
        prompt_length: Width of the (left-padded) prompt, in tokens.
    """
    after = detokenizer.after(input_ids[max(0, prompt_length - _END) : prompt_length].tolist())
    if after.follows_text or prompt_length <= _END:
        return after
    return detokenizer.after(input_ids[:prompt_length].tolist())
