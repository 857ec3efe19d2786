"""What a tool-call format is, and how calls are written in it.

To add a format: a file beside this one, as `hermes.py`, and an entry in `FORMATS` of `__init__.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from langchain_llama_stop.chat.tool_formats.body import Body

Call = tuple[str, dict[str, Any]]
"""Name and arguments of a tool call."""

THINKING = ("<think>", "</think>")
"""Tags around the thoughts that a model may write before it calls a tool."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family of models writes tool calls.

    Several calls are `trigger` CALL `between` CALL `between` CALL … `close`, and a CALL is `name`,
    the tool's name as JSON, `arguments`, the arguments as JSON, `end`.

    Attributes:
        recognises: Whether a chat template (Jinja) asks for this format.
        trigger: The text with which the first call begins.
        name: The text before a tool's name.
        arguments: The text between name and arguments.
        end: The text after the arguments.
        between: The text between two calls.
        close: The text after the last call.
        opening_tags: Tags that open calls in an answer, where one of the bodies follows.
        closing_tags: Tags that may close it.
        bodies: How calls are written after these tags, besides as JSON.
        is_free: Whether a grammar cannot write the form in which the model calls by itself. Where
            the model may choose, its calls are read as they come; a demanded call is written as
            the fields above say.
        plain: Whether calls are JSON without a tag. Such calls begin the answer; calls with a tag
            may follow some text.
        tokens: Ids of the tags that are single tokens of the vocabulary: a grammar can write
            these only by their ids.
    """

    recognises: Callable[[str], bool]
    trigger: str
    name: str
    arguments: str
    end: str
    between: str
    close: str = ""
    opening_tags: tuple[str, ...] = ()
    closing_tags: tuple[str, ...] = ()
    bodies: tuple[Body, ...] = ()
    is_free: bool = False
    plain: bool = False
    tokens: Mapping[str, int] = field(default_factory=dict)

    def write(self, calls: Sequence[Call]) -> str:
        """Some calls as a model writes them."""
        dumps = partial(json.dumps, ensure_ascii=False)
        return self._join([(dumps(name), dumps(arguments)) for name, arguments in calls])

    def tools_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """Describes tools to a model whose template knows none.

        Args:
            tools: Tools in OpenAI's form.

        Returns:
            A text for the system message.
        """
        lines = [json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools]
        return (
            "You can call these functions:\n"
            + "\n".join(lines)
            + "\n\nTo call a function, answer with nothing but this:\n"
            + self._join([("<the function>", "<its arguments as JSON>")])
        )

    def example(self) -> list[dict[str, Any]]:
        """Returns one exchange, as messages, that shows how tools are used."""
        return [
            {"role": "user", "content": "What time is it in Rome?"},
            {"role": "assistant", "content": self.write([("get_time", {"city": "Rome"})])},
            {"role": "user", "content": "Result of get_time: 10:45"},
            {"role": "assistant", "content": "It is 10:45 in Rome."},
        ]

    def _join(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls whose name and arguments are JSON text already."""
        texts = [f"{self.name}{name}{self.arguments}{args}{self.end}" for name, args in calls]
        return f"{self.trigger}{self.between.join(texts)}{self.close}"
