"""The text of an answer with its special tokens: tags of calls and thoughts may be some."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_llama_stop.chat.thoughts import TAGS
from langchain_llama_stop.chat.tool_formats import call_tags
from langchain_llama_stop.tokens.detokenizer import TextBuilder, detokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def hides_tags(tokenizer: PreTrainedTokenizerBase, *, calls: bool) -> bool:
    """Whether tags of thoughts, or of calls, are special tokens, which texts leave out."""
    return not {*_special_tokens(tokenizer)}.isdisjoint(_tags(calls=calls))


def _tags(*, calls: bool) -> set[str]:
    tags = {tag.removesuffix("thought") for pair in TAGS for tag in pair}
    return tags | {*call_tags()} if calls else tags


def with_special_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], ids: Sequence[int], text: str
) -> str:
    """The text of an answer with its special tokens.

    Args:
        tokenizer: The model's tokenizer.
        prompt: The prompt's ids.
        ids: The answer's ids.
        text: The answer's text without special tokens, maybe cut.

    Returns:
        The text, cut at the same place.
    """
    decode = detokenizer(tokenizer).after(prompt).decode
    count = bisect_left(range(len(ids) + 1), len(text), key=lambda n: len(decode(ids[:n])))
    tags = _tags(calls=True)
    while count < len(ids) and tokenizer.convert_ids_to_tokens(ids[count]) in tags:
        count += 1  # tags after the last character
    surplus = len(decode(ids[:count])) - len(text)
    whole = decode(ids[:count], special=True)
    return whole[: len(whole) - surplus]


def without_special_tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """A text without what special tokens write."""
    special = sorted(_special_tokens(tokenizer), key=len, reverse=True)
    return re.sub("|".join(map(re.escape, special)), "", text) if special else text


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [t.content for t in tokenizer.added_tokens_decoder.values() if t.special and t.content]


class FullText:
    """The text of a streamed answer with its special tokens, piece by piece."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        """Starts an empty answer after a prompt, which is given by its ids."""
        self._tokenizer = tokenizer
        self._detokenizer = detokenizer(tokenizer).after(prompt)
        self._builder = TextBuilder(self._detokenizer)
        self._tags: list[tuple[int, str]] = []  # special tokens, each with its offset in the text
        self._given = 0  # characters of the text without them

    def feed(self, text: str, ids: Sequence[int]) -> str:
        """Takes the next piece of text without special tokens, and the answer's ids so far.

        Returns:
            The piece, with the special tokens that stand before and in it.
        """
        for token in ids[len(self._builder.ids) :]:
            if token in self._detokenizer.special_ids:
                name = str(self._tokenizer.convert_ids_to_tokens(token))
                self._tags.append((len(self._builder.text), name))
            self._builder.push(token)
        pieces, start = list[str](), self._given
        self._given += len(text)
        while self._tags and self._tags[0][0] < self._given:
            offset, name = self._tags.pop(0)
            pieces += [text[: offset - start], name]
            text, start = text[offset - start :], offset
        return "".join([*pieces, text])
