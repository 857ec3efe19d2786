"""Token ids of texts, and of their parts."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.tokens.weak_cache import cached_per_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@cached_per_object
def tokenizer_lock(tokenizer: PreTrainedTokenizerBase) -> threading.RLock:
    """Returns the lock of a tokenizer: fast ones may not be used by two threads.

    Args:
        tokenizer: The tokenizer.

    Returns:
        Its lock; the same for each call.
    """
    return threading.RLock()


def ids_after(
    tokenizer: PreTrainedTokenizerBase, before: str, text: str, **settings: Any
) -> list[int] | None:
    """Encodes a text as it is encoded behind another, where no space or marker goes before it.

    Args:
        tokenizer: The model's tokenizer.
        before: What stands before it: a word, a line.
        text: The text.
        **settings: For the tokenizer.

    Returns:
        Its ids; None if it merges with what stands before.
    """
    first: list[int] = tokenizer(before, add_special_tokens=False, **settings)["input_ids"]
    both: list[int] = tokenizer(before + text, add_special_tokens=False, **settings)["input_ids"]
    return both[len(first) :] if both[: len(first)] == first else None


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, inside: bool = False) -> list[int]:
    """Encodes text in which nothing is read as a special token.

    Args:
        tokenizer: The model's tokenizer.
        text: Any text.
        inside: Whether it stands behind another: a space that the encoder puts before a text
            belongs to the first one only.

    Returns:
        Its ids.
    """
    if not text:
        return []
    behind = ids_after(tokenizer, "\n", text, split_special_tokens=True) if inside else None
    if behind is not None:
        return behind
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    return ids


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two sequences of ids."""
    length = min(len(a), len(b))
    if tuple(a[:length]) == tuple(b[:length]):
        return length
    return next(i for i in range(length) if a[i] != b[i])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, **settings: Any) -> list[int]:
    """Encodes a prompt as the model gets it: with one BOS, also where the text has one already.

    Args:
        tokenizer: The model's tokenizer.
        text: The prompt.
        **settings: For the tokenizer.
    """
    ids: list[int] = tokenizer(text, **settings)["input_ids"]
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        return ids[1:]
    return ids
