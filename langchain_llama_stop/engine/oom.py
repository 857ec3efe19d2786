"""What happens when memory runs out: how it is recognised, and what is freed first.

If that is not enough, `scheduler.py` lets requests wait and prefills them again. A single answer
that does not fit gets the error made here.
"""

from __future__ import annotations

import copy
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


def own_copy(error: BaseException) -> BaseException:
    """A copy of an error that several callers get: to raise it changes its traceback and context.

    It has the type, the attributes and the traceback of the original.
    """
    try:
        copied = copy.copy(error)
    except Exception:  # its class takes other arguments than it stores
        copied = type(error).__new__(type(error), *error.args)
        copied.__dict__.update(error.__dict__)
    copied.__cause__, copied.__context__ = error.__cause__, error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    return copied.with_traceback(error.__traceback__)


def free_caches(model: Any) -> bool:
    """Frees what is kept for speed alone; True if that was anything, so that a retry may fit."""
    tokens = prefix_cache_of(model).clear()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if tokens:
        logger.info("Memory ran out: the prefix cache is dropped (%d tokens).", tokens)
    return tokens > 0


def answer_oom(prompt_tokens: int, max_new_tokens: int, others: int) -> torch.OutOfMemoryError:
    """The error to raise where an answer does not fit into memory, with so many others running."""
    beside, fewer = (f"beside {others} others", "lower `batch_size`, ") if others else ("alone", "")
    return torch.OutOfMemoryError(
        f"Memory has run out with one answer {beside} (a prompt of {prompt_tokens} tokens and a "
        f"budget of {max_new_tokens}): {fewer}shorten the prompt, lower `max_new_tokens`, load the "
        "model with `quantization='nf4'`, or free memory that something else holds."
    )
