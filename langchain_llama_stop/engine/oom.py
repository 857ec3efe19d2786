"""What happens when memory runs out: how it is recognised, and what is freed first.

If that is not enough, `scheduler.py` lets requests wait and prefills them again. A single answer
that does not fit gets the error made here.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from langchain_llama_stop.engine.prefix_cache import prefix_cache_of

logger = logging.getLogger("langchain_llama_stop")

_SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")
"""What PyTorch says on CUDA and MPS, and on CPUs, where it raises a plain RuntimeError."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out: then a smaller batch may still fit."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _SIGNS)


def without_frames(error: BaseException) -> BaseException:
    """Drops the traceback of an out-of-memory error: its frames hold all tensors of the pass."""
    if out_of_memory(error):
        error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


def free_caches(model: Any) -> bool:
    """Frees what is kept for speed alone; True if that was anything, so that a retry may fit."""
    tokens = prefix_cache_of(model).clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if tokens:
        logger.info("Memory ran out: the prefix cache is dropped (%d tokens).", tokens)
    return tokens > 0


def one_answer_oom(prompt_tokens: int, max_new_tokens: int) -> torch.OutOfMemoryError:
    """The error to raise where not even one answer fits into memory."""
    return torch.OutOfMemoryError(
        f"Memory has run out with one answer alone (a prompt of {prompt_tokens} tokens and a "
        f"budget of {max_new_tokens}): shorten the prompt, lower `max_new_tokens`, load the model "
        "with `quantization='nf4'`, or free memory that something else holds."
    )
