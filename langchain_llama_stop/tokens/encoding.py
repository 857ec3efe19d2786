"""Text into token ids, and the lock that this takes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._checks import check_text
from langchain_llama_stop.tokens.weak_cache import cached_per_process

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@cached_per_process
def tokenizer_lock(tokenizer: PreTrainedTokenizerBase) -> threading.RLock:
    """Returns the lock of a tokenizer: two threads may not use a fast one at the same time."""
    return threading.RLock()


def encode(tokenizer: PreTrainedTokenizerBase, text: str, **settings: Any) -> list[int]:
    """Encodes a text; all texts of users pass through here.

    Args:
        tokenizer: The model's tokenizer.
        text: Any text.
        **settings: Further arguments of the tokenizer's call.

    Raises:
        ValueError: If the text holds half of a surrogate pair.
    """
    check_text("The text", text)
    with tokenizer_lock(tokenizer):
        ids: list[int] = tokenizer(text, **settings)["input_ids"]
    return ids


def ids_after(
    tokenizer: PreTrainedTokenizerBase, before: str, text: str, **settings: Any
) -> list[int] | None:
    """Encodes a text as it is encoded after another one: without a leading space or marker.

    Args:
        tokenizer: The model's tokenizer.
        before: The text before it: a word, a line.
        text: The text to encode.
        **settings: Further arguments of the tokenizer's call.

    Returns:
        The ids of `text`; None if its start merges with `before`.
    """
    first = encode(tokenizer, before, add_special_tokens=False, **settings)
    both = encode(tokenizer, before + text, add_special_tokens=False, **settings)
    return both[len(first) :] if both[: len(first)] == first else None


def plain_ids(tokenizer: PreTrainedTokenizerBase, text: str, *, inside: bool = False) -> list[int]:
    """Encodes a text so that no part of it becomes a special token.

    Args:
        tokenizer: The model's tokenizer.
        text: Any text.
        inside: Whether the text comes after another one. Then it gets no leading space, which
            some encoders add to the start of a text.
    """
    if not text:
        return []
    after = ids_after(tokenizer, "\n", text, split_special_tokens=True) if inside else None
    if after is not None:
        return after
    return encode(tokenizer, text, add_special_tokens=False, split_special_tokens=True)


def common_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two sequences of ids."""
    length = min(len(a), len(b))
    if tuple(a[:length]) == tuple(b[:length]):
        return length
    return next(i for i in range(length) if a[i] != b[i])


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str, **settings: Any) -> list[int]:
    """Encodes a prompt as the model gets it: with one BOS, also where the text has one already.

    An empty prompt becomes the BOS alone; without any, no ids.

    Args:
        tokenizer: The model's tokenizer.
        text: The prompt.
        **settings: For the tokenizer.

    Raises:
        ValueError: If the text holds half of a surrogate pair.
    """
    ids, bos = encode(tokenizer, text, **settings), tokenizer.bos_token_id
    if not ids and isinstance(bos, int):
        return [bos]
    return ids[1:] if len(ids) > 1 and ids[0] == ids[1] == bos else ids
