"""Texts of others in a rendered template: where each stands, encoded as plain text.

A template is rendered with placeholders in their stead. What it puts around them is its own text,
and encoded as usual; the contents never become control tokens, whatever they say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.tokens.encoding import plain_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Segments = Sequence[tuple[int | None, str]]
"""A rendered text in pieces: (None, the template's own) or (number, what stands there)."""

_HOLDER = re.compile("(\u2003?)\ue000(\\d+)\ue001(\u2003?)")
_CONTROL = re.compile(r"<\|[^|<>\s]{1,40}\|>|\[/?[A-Z_]{2,20}\]|<</?[A-Z]{2,9}>>|</?[a-z_]{1,12}>")


class Placeholders:
    """What stands in place of texts while a template is rendered: it shows where each is put.

    Attributes:
        texts: What they stand for.
        needed: The numbers of those that have to come up, once: what messages say.
    """

    def __init__(self, control: re.Pattern[str]) -> None:
        """Begins without any.

        Args:
            control: What may not come out of these texts.
        """
        self._control = control
        self.texts: list[str] = []
        self.needed: list[int] = []

    def message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Replaces what a message says: its content, the arguments of its calls.

        Args:
            message: As a chat template takes it.

        Returns:
            The same, with placeholders.
        """
        held: dict[str, Any] = self.guarded({k: v for k, v in message.items() if k != "tool_calls"})
        held["content"] = self._said(message["content"])
        if calls := message.get("tool_calls"):
            held["tool_calls"] = [self.guarded(call) for call in calls]
            for call, new in zip(calls, held["tool_calls"], strict=True):
                new["function"]["arguments"] = self._said(call["function"]["arguments"])
        return held

    def guarded(self, value: Any) -> Any:
        """Replaces what holds a control token, and nothing else: templates may look at names.

        Args:
            value: A JSON value, a tool say.

        Returns:
            The same, with placeholders.
        """
        if isinstance(value, str):
            hostile = self._control.search(value) or "\ue000" in value
            return self._held(value) if hostile else value
        return _each(value, self.guarded)

    def segments(self, text: str) -> Iterator[tuple[int | None, str]]:
        """Puts the texts back into a rendered template.

        Args:
            text: The template, with placeholders.

        Yields:
            The text, as `Segments`.
        """
        end = 0
        for holder in _HOLDER.finditer(text):
            if holder.start() > end:
                yield None, text[end : holder.start()]
            number = int(holder[2])
            content = self.texts[number] if number < len(self.texts) else ""
            # Where the template has stripped the placeholder, it strips the content.
            content = content if holder[1] else content.lstrip()
            content = content if holder[3] else content.rstrip()
            if text[holder.start() - 1 : holder.start()] == text[holder.end() :][:1] == '"':
                content = json.dumps(content, ensure_ascii=False)[1:-1]  # rendered by `tojson`
            yield number, content
            end = holder.end()
        if end < len(text):
            yield None, text[end:]

    def _said(self, value: Any) -> Any:
        if isinstance(value, str):
            if not value:  # templates ask whether there is a text
                return value
            self.needed.append(len(self.texts))
            return self._held(value)
        return _each(value, self._said)

    def _held(self, text: str) -> str:
        self.texts.append(text)
        return f"\u2003\ue000{len(self.texts) - 1}\ue001\u2003"


def control_tokens(tokenizer: PreTrainedTokenizerBase, template: str) -> re.Pattern[str]:
    """Finds what is read as a control token: special ones, and what a template writes like them.

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja).

    Returns:
        A pattern that matches any of them.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    controls = sorted(special | set(_CONTROL.findall(template)), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, controls)) or r"(?!)")


def segment_ids(
    tokenizer: PreTrainedTokenizerBase,
    control: re.Pattern[str],
    segments: Segments,
) -> list[int]:
    """Encodes a rendered text; in contents nothing is read as a control token.

    Args:
        tokenizer: The model's tokenizer.
        control: Its control tokens.
        segments: The text.

    Returns:
        Its ids.
    """
    special = {token.content for token in tokenizer.added_tokens_decoder.values()}
    whole = "".join(text for _, text in segments)
    # Contents are also looked at together with what stands around them: "<|im_" + "end|>".
    expected = sum(len(control.findall(text)) for number, text in segments if number is None)
    if len(control.findall(whole)) == expected:
        ids: list[int] = tokenizer(whole, add_special_tokens=False)["input_ids"]
        return ids
    ids, run = [], ""
    for number, text in segments:
        if number is not None:
            while found := control.search(text):
                # Its two halves are encoded apart, so that not even its plain ids come about.
                middle = (found.start() + found.end()) // 2
                ids += plain_ids(tokenizer, run + text[:middle], inside=bool(ids))
                run, text = "", text[middle:]
            run += text
            continue
        end = 0
        for found in control.finditer(text):
            if found[0] not in special:
                continue
            ids += plain_ids(tokenizer, run + text[end : found.start()], inside=bool(ids))
            ids.append(int(tokenizer.convert_tokens_to_ids(found[0])))  # type: ignore[arg-type]
            run, end = "", found.end()
        run += text[end:]
    return ids + plain_ids(tokenizer, run, inside=bool(ids))


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    """A JSON value with each text in it changed, keys too."""
    if isinstance(value, Mapping):
        return {change(key): change(item) for key, item in value.items()}
    return [change(item) for item in value] if isinstance(value, list) else value
