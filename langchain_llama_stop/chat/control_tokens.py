"""Keeps control tokens out of the texts of others.

A template sees the real texts, except where one holds a control token or a piece of one. There it
sees the text with stand-ins: characters that nobody wrote, in place of the first and last
characters of control tokens. What looks like a control token in the rendered text is then the
template's own; when the real characters are put back, all others are known to be text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.chat.thoughts import removed_tags, thought_pieces
from langchain_llama_stop.tokens.encoding import encode, ids_after, plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMED = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{2,20}\]|<</?[A-Z]{2,9}>>|</?[a-z_]{1,12}>")
_WORD_AND_SIGN = re.compile(r"(?=.*[^\W\d_])(?=.*[^\w\s])", re.DOTALL)
_WHOLE = 5
"""Pieces of an answer that begins with a whole thought: both tags, and what is around them."""
_PRIVATE = range(0xF0000, 0xFFFFE)
"""Code points that no standard gives a character."""


def control_texts(tokenizer: PreTrainedTokenizerBase, template: str) -> list[str]:
    """Lists the control tokens, the longest first.

    These are the tokenizer's special tokens, and what a template writes like them. Other added
    tokens are plain text, unless the template writes them: the newline, tags of HTML, words.

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja).

    Returns:
        Their texts.
    """
    controls = {
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special or (token.content in template and _WORD_AND_SIGN.match(token.content))
    }
    controls.update(_NAMED.findall(template))
    return sorted(controls - {""}, key=lambda token: (-len(token), token))


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> re.Pattern[str]:
    """Builds a pattern that matches any of the `control_texts`; nothing if there are none."""
    return _any_of(control_texts(tokenizer, template))


def control_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """The ids of the tokenizer's control tokens, the special ones first."""
    control = {*control_texts(tokenizer, template)}
    added = sorted(tokenizer.added_tokens_decoder.items(), key=lambda item: not item[1].special)
    return [token_id for token_id, token in added if token.content in control]


class Guard:
    """Puts stand-ins into the texts of others, and takes them out of what was rendered."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, texts: Any) -> None:
        """Chooses stand-ins that occur nowhere.

        Args:
            tokenizer: The model's tokenizer.
            template: The chat template (Jinja).
            texts: A JSON value of all texts of others.
        """
        tokens = control_texts(tokenizer, template)
        self._tokenizer, self._control = tokenizer, _any_of(tokens)
        self._tags = removed_tags(template)
        written = {c for text in _strings(texts) if not text.isascii() for c in text}
        ends = sorted({c for token in tokens for c in (token[0], token[-1])})
        free = (chr(code) for code in _PRIVATE if chr(code) not in written)
        self._stand_ins = {ord(c): next(free) for c in ends}
        self._real = {ord(stand_in): chr(c) for c, stand_in in self._stand_ins.items()}
        self._beginnings = {token[:i] for token in tokens for i in range(1, len(token))}
        self._endings = {token[i:] for token in tokens for i in range(1, len(token))}
        self._longest = max(map(len, tokens), default=0)

    def text(self, text: str) -> str:
        """A text as it may stand in a template: as it is, or with stand-ins."""
        return text.translate(self._stand_ins) if self._is_risky(text) else text

    def value(self, value: Any) -> Any:
        """A copy of a JSON value with `text` of each string in it, keys too."""
        return _map_strings(value, self.text)

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a message that may be rendered; its role is a word of ours."""
        guarded: dict[str, Any] = self.value({**message, "role": ""}) | {"role": message["role"]}
        if message["role"] == "assistant":
            # A template may take out what stands in its tags; a whole thought is the model's own.
            pieces = thought_pieces(message["content"], self._tags)
            if len(pieces) == 1 and len(whole := thought_pieces(message["content"])) == _WHOLE:
                pieces = whole
            guarded["content"] = "".join(
                piece if number % 2 else self.text(piece) for number, piece in enumerate(pieces)
            )
        return guarded

    def encode(self, rendered: str) -> list[int]:
        """Encodes a rendered text; what others wrote never becomes a control token."""
        text = self.real(rendered)
        own = [match.span() for match in self._control.finditer(rendered)]
        if own == [match.span() for match in self._control.finditer(text)]:
            return encode(self._tokenizer, text, add_special_tokens=False)
        ids, start, end = list[int](), 0, 0
        for cut in (*self._cuts(text, own), len(text)):
            start, end = end, cut
            ids += self._piece_ids(text[start:end], inside=start > 0)
        return ids

    def real(self, rendered: str) -> str:
        """A rendered text with the real characters in place of stand-ins."""
        return rendered.translate(self._real)

    def _is_risky(self, text: str) -> bool:
        """Whether a text holds a control token, or begins or ends with a piece of one."""
        if self._control.search(text):
            return True
        bare = text.strip()
        lengths = range(1, min(self._longest, len(bare) + 1))
        return any(
            bare[-length:] in self._beginnings or bare[:length] in self._endings
            for length in lengths
        )

    def _cuts(self, text: str, own: list[tuple[int, int]]) -> Iterator[int]:
        """Where to cut a text so that no piece holds a control token that is not its `own`."""
        position = 0
        for start, end in (*own, (len(text), len(text))):
            while match := self._control.search(text, position, start):
                yield from self._cuts_in(match)
                position = max(match.end() - len(match[0]) // 2, match.start() + 1)
            position = end

    def _cuts_in(self, match: re.Match[str]) -> Iterator[int]:
        """Where to cut one control token, and those within its first half."""
        if len(match[0]) == 1:
            yield from (cut for cut in (match.start(), match.end()) if cut)
            return
        middle = match.end() - len(match[0]) // 2
        inner = self._control.search(match.string, match.start(), middle)
        if inner:
            yield from self._cuts_in(inner)
        yield middle

    def _piece_ids(self, piece: str, *, inside: bool) -> list[int]:
        """Encodes a piece, which comes after another one if `inside`."""
        if len(piece) == 1 and self._control.fullmatch(piece):
            return plain_ids(self._tokenizer, piece, inside=inside)
        for before in ("\n", ".") if inside else ():
            if (ids := ids_after(self._tokenizer, before, piece)) is not None:
                return ids
        return encode(self._tokenizer, piece, add_special_tokens=False)


def _any_of(texts: list[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def _strings(value: Any) -> Iterator[str]:
    """All strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.items():
            yield from _strings(list(item))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)


def _map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each string in it changed, keys too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {_map_strings(key, change): _map_strings(v, change) for key, v in value.items()}
    return [_map_strings(item, change) for item in value] if isinstance(value, list) else value
