"""Renders chat templates so that the texts of others can never become control tokens.

A template is rendered with placeholders in place of these texts. What the template writes around
them is its own text and is encoded as usual. The texts are encoded as plain text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.tokens.encoding import encode, plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Segments = Sequence[tuple[int | None, str]]
"""A rendered text in pieces: (None, the template's own text) or (number, the text of others)."""

_PLACEHOLDER = re.compile("(\u2003?)\ue000(\\d+)\ue001(\u2003?)")
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{2,20}\]|<</?[A-Z]{2,9}>>|</?[a-z_]{1,12}>")


class Placeholders:
    """The placeholders of one rendering; they show where the template puts each text.

    Attributes:
        texts: The texts that they stand for, by number.
        required: The numbers of the texts that the template has to write exactly once: the
            contents of messages and the arguments of calls.
    """

    def __init__(self, control: re.Pattern[str]) -> None:
        """Starts without placeholders; `control` matches what may not come out of a text."""
        self._control = control
        self.texts: list[str] = []
        self.required: list[int] = []

    def replace_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of a message with placeholders for its content and its calls' arguments."""
        others = {k: v for k, v in message.items() if k != "tool_calls"}
        new: dict[str, Any] = self.replace_hostile(others)
        new["content"] = self._replace_required(message["content"])
        if calls := message.get("tool_calls"):
            new["tool_calls"] = [self.replace_hostile(call) for call in calls]
            for call, new_call in zip(calls, new["tool_calls"], strict=True):
                arguments = self._replace_required(call["function"]["arguments"])
                new_call["function"]["arguments"] = arguments
        return new

    def replace_hostile(self, value: Any) -> Any:
        """A copy of a JSON value with placeholders for the strings that hold a control token.

        Other strings stay, because templates may look at names.
        """
        if isinstance(value, str):
            hostile = self._control.search(value) or "\ue000" in value
            return self._add(value) if hostile else value
        return _map_strings(value, self.replace_hostile)

    def segments(self, rendered: str) -> Iterator[tuple[int | None, str]]:
        """Puts the texts back into a rendered template; yields it as `Segments`."""
        end = 0
        for match in _PLACEHOLDER.finditer(rendered):
            if match.start() > end:
                yield None, rendered[end : match.start()]
            number = int(match[2])
            text = self.texts[number] if number < len(self.texts) else ""
            # Where the template has stripped the placeholder, it would have stripped the text.
            text = text if match[1] else text.lstrip()
            text = text if match[3] else text.rstrip()
            if rendered[match.start() - 1 : match.start()] == rendered[match.end() :][:1] == '"':
                text = json.dumps(text, ensure_ascii=False)[1:-1]  # rendered by `tojson`
            yield number, text
            end = match.end()
        if end < len(rendered):
            yield None, rendered[end:]

    def _replace_required(self, value: Any) -> Any:
        """A copy of a JSON value with placeholders for all strings, and each of them required."""
        if isinstance(value, str):
            if not value:  # templates ask whether there is a text
                return value
            self.required.append(len(self.texts))
            return self._add(value)
        return _map_strings(value, self._replace_required)

    def _add(self, text: str) -> str:
        """A new placeholder for a text."""
        self.texts.append(text)
        return f"\u2003\ue000{len(self.texts) - 1}\ue001\u2003"


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> re.Pattern[str]:
    """Builds a pattern that matches any control token.

    These are the tokenizer's special and added tokens, and what a template writes like them.

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja).

    Returns:
        The pattern; it matches nothing if there are none.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    controls = sorted(special | set(_CONTROL.findall(template)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, controls)) or r"(?!)")


def segment_ids(
    tokenizer: PreTrainedTokenizerBase,
    control: re.Pattern[str],
    segments: Segments,
) -> list[int]:
    """Encodes a rendered text; `control` tokens in the texts of others are plain text in it."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    whole = "".join(text for _, text in segments)
    # The texts are also searched together with what surrounds them: "<|im_" + "end|>".
    expected = sum(len(control.findall(text)) for number, text in segments if number is None)
    if len(control.findall(whole)) == expected:
        return encode(tokenizer, whole, add_special_tokens=False)
    ids, pending = list[int](), ""  # `pending` is text that is not encoded yet
    for number, text in segments:
        if number is not None:
            while match := control.search(text):
                # The halves are encoded apart, so that not even the ids of the plain tag arise.
                middle = (match.start() + match.end()) // 2
                ids += plain_ids(tokenizer, pending + text[:middle], inside=bool(ids))
                pending, text = "", text[middle:]
            pending += text
            continue
        end = 0
        for match in control.finditer(text):
            if match[0] not in special:
                continue
            ids += plain_ids(tokenizer, pending + text[end : match.start()], inside=bool(ids))
            ids.append(int(tokenizer.convert_tokens_to_ids(match[0])))  # type: ignore[arg-type]
            pending, end = "", match.end()
        pending += text[end:]
    return ids + plain_ids(tokenizer, pending, inside=bool(ids))


def _map_strings(value: Any, change: Callable[[Any], Any]) -> Any:
    """A JSON value with each string in it changed, keys too."""
    if isinstance(value, Mapping):
        return {change(key): change(item) for key, item in value.items()}
    return [change(item) for item in value] if isinstance(value, list) else value
