"""Memory that has run out: how it shows, what can be given back, what is left to say."""

from __future__ import annotations

from typing import Any

import torch

from langchain_llama_stop.engine.prefix_cache import PrefixCache

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
"""How PyTorch says it on CUDA and MPS, and on CPUs, where it is a plain RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out.

    Args:
        error: What a forward pass has raised.

    Returns:
        True if smaller batches may pass where this one failed.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def without_frames(error: Exception) -> Exception:
    """Lets go of what an error of memory holds: the frames of the pass, with all of its tensors.

    Args:
        error: What a forward pass has raised.

    Returns:
        It; an error of another kind keeps its traceback.
    """
    if out_of_memory(error):
        error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def free_caches(model: Any) -> bool:
    """Frees what is kept for speed alone: the known prefixes, and blocks that CUDA holds.

    Args:
        model: The model.

    Returns:
        Whether there were any prefixes: then it is worth another try.
    """
    kept = PrefixCache.forget(model)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return kept > 0


def one_answer_oom(prompt_tokens: int, budget: int) -> torch.OutOfMemoryError:
    """Says that not even one answer has room.

    Args:
        prompt_tokens: Tokens of its prompt.
        budget: Its token budget.

    Returns:
        The error to raise.
    """
    return torch.OutOfMemoryError(
        f"Memory has run out with one answer alone (a prompt of {prompt_tokens} tokens and a "
        f"budget of {budget}): shorten the prompt, lower `max_new_tokens`, load the model with "
        "`quantization='nf4'`, or free memory that something else holds."
    )
