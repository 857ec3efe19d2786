"""Text out of token ids, exactly as `tokenizer.decode` gives it, token by token.

The text of the first n ids is not always a prefix of the text of n + 1 ids: a character may be
spread over several tokens, and byte-fallback tokenizers decode a run of bytes as one. What is
known here is how far back the next token can reach, so that a growing answer costs a short decode
per token and a stream never emits a character that it would have to take back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast
from weakref import ref

from langchain_llama_stop.tokens.weak_cache import cached_per_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"
_WINDOW = 16  # tokens decoded again for each new one; short decodes cost the same up to here


@cached_per_object
def detokenizer(tokenizer: PreTrainedTokenizerBase) -> Detokenizer:
    """Returns the `Detokenizer` of a tokenizer, built once for each."""
    return Detokenizer(tokenizer)


class Detokenizer:
    """Decodes ids, and knows where a decoded text is settled.

    Attributes:
        special_ids: Ids that `skip_special_tokens` leaves out.
        byte_ids: Ids of byte-fallback tokens (`<0x0A>`), empty for byte-level vocabularies.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Reads what depends on the vocabulary alone.

        Args:
            tokenizer: The model's tokenizer.
        """
        # A strong reference would keep the entry of the table above alive for ever.
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

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer itself."""
        tokenizer = self._tokenizer()
        assert tokenizer is not None, "the tokenizer outlives its use"
        return tokenizer

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """Decodes ids to text, without the clean-up of spaces that some tokenizers ask for.

        Args:
            ids: Token ids.
            special: Whether special tokens appear in the text.

        Returns:
            The text.
        """
        if not ids:
            return ""
        text = self.tokenizer.decode(
            list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False
        )
        return str(text)

    def settled(self, ids: Sequence[int], text: str, *, special: bool = False) -> int:
        """Length of the part of `text` that no further token can change.

        Args:
            ids: All ids of the answer.
            text: Their text.
            special: Whether special tokens appear in the text.

        Returns:
            A length, at most `len(text)`.
        """
        # A run of byte tokens is decoded as a whole: one more byte may change all of it. Special
        # tokens that are left out of the text do not interrupt a run.
        passed = self.byte_ids if special else self.byte_ids | self.special_ids
        first = len(ids)
        while self.byte_ids and first and ids[first - 1] in passed:
            first -= 1
        if first < len(ids):
            before = ids[max(0, first - 1) : first]  # in front of it no leading space is stripped
            run = len(self.decode([*before, *ids[first:]], special=special))
            return max(0, len(text) - run + len(self.decode(before, special=special)))
        return len(text) - text.endswith(_REPLACEMENT)

    def naming_special_tokens(self, stops: Sequence[str]) -> tuple[str, ...]:
        """Picks the stop strings that name a special token.

        Args:
            stops: Stop strings.

        Returns:
            Those that can only be found in the text with special tokens.
        """
        return tuple(s for s in stops if any(token in s for token in self._special_tokens))

    def tail(self, ids: Sequence[int], length: int, *, special: bool = False) -> str:
        """Decodes an end of the answer, exact in its last characters.

        Args:
            ids: All ids of the answer.
            length: Characters wanted.
            special: Whether special tokens appear in the text.

        Returns:
            The last characters of the text, at least `length` of them where there are so many.
        """
        passed = self.byte_ids if special else self.byte_ids | self.special_ids
        size = length + 4
        while size < len(ids):
            first = len(ids) - size
            while first and ids[first - 1] in passed:
                first -= 1
            # The first characters of a window may lack their beginning: a space that the
            # decoder strips, or the bytes of a character that began earlier.
            text = self.decode(ids[first:], special=special)
            if len(text) >= length + 4:
                return text
            size *= 2
        return self.decode(ids, special=special)


class TextBuilder:
    """The text of one answer, growing by tokens.

    Attributes:
        ids: The ids so far.
        text: Their whole text, special tokens left out.
    """

    def __init__(self, detokenizer: Detokenizer) -> None:
        """Begins an empty answer.

        Args:
            detokenizer: Of the model's tokenizer.
        """
        self._detokenizer = detokenizer
        self.ids: list[int] = []
        self.text = ""
        self._fixed = ""  # text of ids[: self._seam]
        self._seam = 0
        self._context = 0  # decoding starts here, before the seam, so that spaces come out right
        self._overlap = 0  # length of the text of ids[self._context : self._seam]

    def push(self, token_id: int) -> None:
        """Adds one token.

        Args:
            token_id: Its id.
        """
        self.ids.append(token_id)
        window = self._detokenizer.decode(self.ids[self._context :])
        self.text = self._fixed + window[self._overlap :]
        if len(self.ids) - self._seam >= _WINDOW and self.settled == len(self.text):
            overlap = len(self._detokenizer.decode(self.ids[self._seam :]))
            if overlap:  # an empty context would not show the decoder that a word went before
                self._context, self._seam, self._overlap = self._seam, len(self.ids), overlap
                self._fixed = self.text

    @property
    def settled(self) -> int:
        """Length of the part of `text` that no further token can change."""
        return self._detokenizer.settled(self.ids, self.text)
