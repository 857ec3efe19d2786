"""Token ids into text, token by token, exactly as `tokenizer.decode` does it.

An answer is decoded as what follows its prompt: `decode(prompt + answer)` without the text of
`decode(prompt)`. Llama-2-like decoders strip the first space of a text, and of an answer alone
they would strip one that belongs to it.

The text of the first n ids is not always a prefix of the text of n + 1 ids: one character may take
several tokens, and byte-fallback tokenizers decode a run of bytes as one. This module knows how far
back the next token can change the text. So a growing answer costs one short decode per token, and a
stream never emits a character that it would have to take back.

Another family of tokenizers is supported here; how it encodes parts of a text is in `encoding.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, cast
from weakref import ref

from langchain_llama_stop.tokens.encoding import tokenizer_lock
from langchain_llama_stop.tokens.weak_cache import cached_per_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPLACEMENT = "\ufffd"
"""What decoders write for bytes that are no character, or not yet one."""
_WINDOW = 16  # tokens decoded for each new one: shorter decodes are not faster
_BOUND = 1024  # last tokens of prompts whose `after` is kept: prompts mostly end alike
_SLACK = 4  # characters at the start of a window that may be wrong: a UTF-8 character has 4 bytes


@cached_per_object
def detokenizer(tokenizer: PreTrainedTokenizerBase) -> Detokenizer:
    """Returns the `Detokenizer` of a tokenizer, built once for each; for answers: `after`."""
    return Detokenizer(tokenizer)


class Detokenizer:
    """Decodes ids, and knows which part of a text later tokens can still change.

    Attributes:
        special_ids: Ids that `skip_special_tokens` leaves out.
        byte_ids: Ids of byte-fallback tokens (`<0x0A>`), empty for byte-level vocabularies.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reads what depends on the vocabulary alone."""
        # `detokenizer` caches this object as long as the tokenizer lives: a strong reference here
        # would keep both alive for ever.
        self._tokenizer = ref(tokenizer)
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.special_ids = frozenset(special | set(tokenizer.all_special_ids))
        self._special_tokens = tuple(
            token
            for token in map(tokenizer.convert_ids_to_tokens, sorted(self.special_ids))
            if isinstance(token, str) and token
        )
        names = [f"<0x{byte:02X}>" for byte in range(256)]
        # An unknown name gives the id of <unk>, or None.
        ids = cast("list[int | None]", tokenizer.convert_tokens_to_ids(names))
        self.byte_ids = frozenset(
            i
            for i, name in zip(ids, names, strict=True)
            if i is not None and tokenizer.convert_ids_to_tokens(i) == name
        )
        # Special tokens that are left out of the text do not interrupt a run of bytes.
        self._byte_or_special_ids = self.byte_ids | self.special_ids
        self._newline = [i for i in ids[10:11] if i in self.byte_ids]
        self._before, self._before_length = list[int](), 0
        self._bound: dict[tuple[int, ...], Detokenizer] = {}

    def after(self, prompt: Sequence[int]) -> Detokenizer:
        """Returns the same for texts that follow a prompt.

        One token tells a decoder that text comes before: the prompt's last one that is neither
        special nor a byte, for bytes would be decoded together with those of the answer.

        Args:
            prompt: The prompt's ids; its end will do, if it holds such a token.
        """
        before: list[int] = []
        if end := self._run_start(prompt, len(prompt), special=False):
            before = list(prompt[end - 1 : end])
        elif not self.byte_ids.isdisjoint(prompt):  # a whole character stands for the bytes
            before = self._newline
        if (bound := self._bound.get(tuple(before))) is None:
            bound = copy(self)
            bound._before, bound._before_length = before, len(self._decode(before))
            if len(self._bound) >= _BOUND:
                self._bound.clear()
            self._bound[tuple(before)] = bound
        return bound

    @property
    def follows_text(self) -> bool:
        """Whether texts follow a prompt that can be seen: one that holds more than BOS."""
        return bool(self._before)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer itself."""
        tokenizer = self._tokenizer()
        assert tokenizer is not None, "the tokenizer outlives its use"
        return tokenizer

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Decodes ids, without the clean-up of spaces that some tokenizers are configured for.

        Args:
            ids: Token ids.
            special: Whether special tokens appear in the text.
        """
        if not ids:
            return ""
        return self._decode([*self._before, *ids], special=special)[self._before_length :]

    def _decode(self, ids: list[int], *, special: bool = False) -> str:
        """What the tokenizer makes of some ids."""
        if not ids:
            return ""
        tokenizer = self.tokenizer
        with tokenizer_lock(tokenizer):
            text = tokenizer.decode(
                ids, skip_special_tokens=not special, clean_up_tokenization_spaces=False
            )
        return str(text)

    def settled(self, ids: Sequence[int], text: str, *, special: bool = False) -> int:
        """Length of the part of `text` that no later token can change.

        Args:
            ids: All ids of the answer.
            text: Their text.
            special: Whether special tokens appear in the text.
        """
        # A run of byte tokens is decoded as a whole: one more byte may change all of it.
        run = self._run_start(ids, len(ids), special) if self.byte_ids else len(ids)
        if run == len(ids):
            return len(text) - text.endswith(REPLACEMENT)
        before = ids[max(0, run - 1) : run]  # keeps the decoder from stripping a leading space
        length = len(self.decode([*before, *ids[run:]], special=special))
        return max(0, len(text) - length + len(self.decode(before, special=special)))

    def naming_special_tokens(self, stops: Sequence[str]) -> tuple[str, ...]:
        """The stop strings that name a special token: only text with special tokens holds them."""
        return tuple(s for s in stops if any(token in s for token in self._special_tokens))

    def tail(self, ids: Sequence[int], length: int, *, special: bool = False) -> str:
        """Decodes the end of an answer, at the cost of a short decode.

        Args:
            ids: All ids of the answer.
            length: Number of characters at the end that have to be exact.
            special: Whether special tokens appear in the text.

        Returns:
            An end of the text: `length` characters or more, or the whole text if it is shorter.
        """
        size = length + _SLACK
        while size < len(ids):
            start = self._run_start(ids, len(ids) - size, special)
            # The first characters of a window may be incomplete: the decoder strips a leading
            # space, and a character may have begun in an earlier token.
            text = self.decode(ids[start:], special=special)
            if len(text) >= length + _SLACK:
                return text
            size *= 2
        return self.decode(ids, special=special)

    def _run_start(self, ids: Sequence[int], end: int, special: bool) -> int:
        """Where the run of byte tokens that ends at `ids[:end]` begins; `end` if there is none."""
        run_ids = self.byte_ids if special else self._byte_or_special_ids
        while end and ids[end - 1] in run_ids:
            end -= 1
        return end


class TextBuilder:
    """The text of one answer, which grows token by token.

    Attributes:
        ids: The ids so far.
        text: Their whole text, without special tokens.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        """Starts an empty answer."""
        self._detokenizer = detokenizer
        self.ids: list[int] = []
        self.text = ""
        # ids: [... | context | window]; the context is decoded again with the window, because a
        # decoder treats spaces at the start of a text differently.
        self._context = 0  # index at which decoding starts
        self._seam = 0  # index at which the window starts
        self._fixed = ""  # text of ids[:seam]
        self._overlap = 0  # length of the text of ids[context:seam]

    def push(self, *token_ids: int) -> None:
        """Adds one token, or several at the cost of one."""
        self.ids += token_ids
        window = self._detokenizer.decode(self.ids[self._context :])
        self.text = self._fixed + window[self._overlap :]
        if len(self.ids) - self._seam >= _WINDOW and self.settled == len(self.text):
            overlap = len(self._detokenizer.decode(self.ids[self._seam :]))
            if overlap:  # an empty context would not tell the decoder that text came before
                self._context, self._seam, self._overlap = self._seam, len(self.ids), overlap
                self._fixed = self.text

    @property
    def settled(self) -> int:
        """Length of the part of `text` that no later token can change."""
        return self._detokenizer.settled(self.ids, self.text)
