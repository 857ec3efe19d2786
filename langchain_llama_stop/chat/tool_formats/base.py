"""What a tool-call format is, and how calls are written in it.

To add a format: a file beside this one, as `hermes.py`, and an entry in `FORMATS` of `__init__.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from langchain_llama_stop.chat.thoughts import TAGS
from langchain_llama_stop.chat.tool_formats.arguments import ID, LINE, NUMBER, Element, json_text
from langchain_llama_stop.chat.tool_formats.body import Body

Call = tuple[str, dict[str, Any]]
"""Name and arguments of a tool call."""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a family of models writes tool calls.

    Several calls are `trigger` CALL `between` CALL `between` CALL … `close`, and a CALL is `name`,
    the tool's name as JSON, `arguments`, the arguments as JSON, `end`. `NUMBER` in these texts is
    the number of the call in its answer, `LINE` a line end that a model may leave out.

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
        is_bare: Whether a tool's name stands without quotes.
        element: How one argument is written, where the arguments are no JSON object.
        plain: Whether calls are JSON without a tag. Such calls begin the answer; calls with a tag
            may follow some text.
        tokens: Ids of the control tokens that answers may hold: a grammar can write these only by
            their ids.
        thoughts: Tags around the thoughts that an answer may hold; calls inside are none.
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
    is_bare: bool = False
    element: Element | None = None
    plain: bool = False
    tokens: Mapping[str, int] = field(default_factory=dict, hash=False)
    thoughts: tuple[tuple[str, str], ...] = TAGS[:1]

    def write(self, calls: Sequence[Call]) -> str:
        """Some calls as a model writes them."""
        write = self.element.write_all if self.element else json_text
        return self._join([(self.written_name(name), write(given)) for name, given in calls])

    def written_name(self, name: str) -> str:
        """A tool's name as it stands in a call."""
        return name if self.is_bare else json_text(name)

    def tools_text(self, tools: Sequence[Mapping[str, Any]]) -> str:
        """Describes tools to a model whose template knows none.

        Args:
            tools: Tools in OpenAI's form.

        Returns:
            A text for the system message.
        """
        lines = [json_text(tool.get("function", tool)) for tool in tools]
        arguments = "<its arguments as JSON>"
        if self.element:
            arguments = self.element.join({"<an argument>": "<its value>"})
        return (
            "You can call these functions:\n"
            + "\n".join(lines)
            + "\n\nTo call a function, answer with nothing but this:\n"
            + self._join([("<the function>", arguments)])
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
        """Calls whose name and arguments are written already."""
        texts = [
            _numbered(f"{self.name}{name}{self.arguments}", number) + given + self.end
            for number, (name, given) in enumerate(calls)
        ]
        return f"{self.trigger}{self.between.join(texts)}{self.close}".replace(LINE, "\n")


def _numbered(text: str, number: int) -> str:
    """A text of a format, in the call of a number."""
    return text.replace(NUMBER, str(number)).replace(ID, f"{number:09}")
