"""A chat template with what it is given besides messages, and what it takes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.chat.reshape import Message, text_arguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger("langchain_llama_stop")

_END = "\ue000"
_WORDS = re.compile(r"qzx\d+xzq")


class _Words:
    """Words that nobody says: where they come out, the template has told what they stand for."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._names: dict[str, str] = {}

    def new(self, _: object = None) -> str:
        self.all.append(f"qzx{len(self.all)}xzq")
        return self.all[-1]

    def name(self, name: str) -> str:
        """The same word for the same name."""
        if name not in self._names:
            self._names[name] = self.new()
        return self._names[name]

    def message(self, message: Message) -> Message:
        """A copy of a message that says words."""
        content = self.new() if message["content"] else message["content"]
        copied = {k: v for k, v in message.items() if k in ("role", "tool_call_id")}
        copied["content"] = content
        if calls := message.get("tool_calls"):
            copied["tool_calls"] = [
                {
                    **call,
                    "function": {
                        "name": self.name(call["function"]["name"]),
                        "arguments": self._value(call["function"].get("arguments", {})),
                    },
                }
                for call in calls
            ]
        if message["role"] == "tool" and (name := message.get("name")):
            copied["name"] = self._names.get(name, name)
        return copied

    def _value(self, value: Any) -> Any:
        """A JSON value with words for its strings; a text of JSON stays one."""
        if isinstance(value, str):
            return f'{{"a": "{self.new()}"}}' if value.startswith("{") else value and self.new()
        if isinstance(value, Mapping):
            return {key: self._value(item) for key, item in value.items()}
        return [self._value(item) for item in value] if isinstance(value, list) else value


@dataclass
class Rendering:
    """A chat template with its tools and settings.

    Attributes:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja).
        settings: What the template is given besides.
        tools: Tools in OpenAI's form.
        no_tools: What the template is given where there are none: None, or [] if it demands a list.
        in_blocks: Whether contents are lists of blocks, for templates that take no strings.
        problem: Why it did not take the messages that it was last asked about.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str
    settings: Mapping[str, Any]
    tools: Sequence[Mapping[str, Any]]
    no_tools: list[Any] | None = None
    in_blocks: bool = False
    problem: object = field(default=None, compare=False)

    def __post_init__(self) -> None:
        """Asks in which form the template takes contents, and whether it does without tools."""
        forms: list[tuple[bool, list[Any] | None]] = [(False, None), (False, []), (True, None)]
        for self.in_blocks, self.no_tools in (*forms, forms[0]):
            if self._tells(["qzx0xzq"], [{"role": "user", "content": "qzx0xzq"}]):
                break

    def render(self, messages: Sequence[Message], begin_answer: bool) -> str:
        """The text that the template makes of messages; it raises whatever it likes."""
        text = self.tokenizer.apply_chat_template(
            [*map(_in_blocks, messages)] if self.in_blocks else list(messages),
            tools=list(self.tools) or self.no_tools,  # type: ignore[arg-type]
            chat_template=self.template,
            add_generation_prompt=begin_answer,
            tokenize=False,
            **self.settings,
        )
        return str(text)

    def takes(self, messages: Sequence[Message], *, answer_next: bool = False) -> bool:
        """Whether the template renders messages of such roles, and leaves none of them out."""
        if not messages:
            return False
        words = _Words()
        probe = [words.message(message) for message in messages]
        is_answer = probe[-1]["role"] == "assistant"
        try:
            text = self.render(probe, answer_next or not is_answer)
            opens = not (answer_next and is_answer) or self._opens_answer(probe, text)
        except Exception as error:  # templates raise errors of any type
            self.problem = error
            # Only its type is logged: its text may quote a message.
            _log.debug("The chat template refused these roles (%s)", type(error).__name__)
            return False
        told = set(_WORDS.findall(text.lower()))
        if not told.issuperset(words.all):
            self.problem = "it leaves out what messages say"
            _log.debug("The chat template left out a text with these roles")
            return False
        if not opens:
            self.problem = "no answer begins after an answer"
            return False
        if not self._knows_system_inside(probe):
            self.problem = "it has no system messages"
            return False
        return True

    def takes_calls(self, messages: Sequence[Message]) -> bool:
        """Whether the template has a form for all calls and results among messages."""
        calls = any(message.get("tool_calls") for message in messages)
        results = any(message["role"] == "tool" for message in messages)
        if results and not self._names("tool"):
            return False
        if calls:
            function = {"name": "f", "arguments": {"a": "b"}}
            call = {"type": "function", "id": "abcdefgh1", "function": function}
            probe: list[Message] = [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "a", "name": "f", "tool_call_id": "abcdefgh1"},
            ]
            return self.takes(probe) or self.takes(text_arguments(probe))
        return True

    def tells_tools(self) -> bool:
        """Whether the template tells a model of its tools."""
        names = [tool["function"]["name"] for tool in self.tools]
        return self._tells(names, [{"role": "user", "content": "a"}])

    def _tells(self, words: Sequence[str], messages: Sequence[Message]) -> bool:
        """Whether all words come out where the template renders messages."""
        try:
            text = self.render(messages, True)
        except Exception:  # templates raise errors of any type
            return False
        return all(word in text for word in words)

    def in_known_role(self, message: Message) -> Message:
        """A message in a role that the template knows; what a stranger says is told by the user."""
        role = message["role"]
        if role in ("system", "user", "assistant", "tool") or self._names(role):
            return message
        if role == "developer":
            return {**message, "role": "system"}
        return {"role": "user", "content": f"{role}: {message['content']}"}

    def up_to_end_of(self, messages: Sequence[Message]) -> str:
        """The text that the template makes of messages, up to the end of the last content."""
        content = messages[-1]["content"]
        bare = content.rstrip()
        # Where the template keeps the blank after the mark, it keeps those of the content.
        marked = {**messages[-1], "content": f"{bare}{_END}\u2003"}
        text = self.render([*messages[:-1], marked], False)
        before, _, after = text.rpartition(_END)
        return before + (content[len(bare) :] if after.startswith("\u2003") else "")

    def _names(self, role: str) -> bool:
        """Whether the template has a rule for a role."""
        return f"'{role}'" in self.template or f'"{role}"' in self.template

    def _opens_answer(self, probe: list[Message], text: str) -> bool:
        """Whether a rendered text, which ends with an answer, begins the next one."""
        if text != self.render(probe, False):
            return True
        after_user = self.render([{"role": "user", "content": "qzx0xzq"}], True)
        return _WORDS.split(text)[-1] == _WORDS.split(after_user)[-1]

    def _knows_system_inside(self, probe: list[Message]) -> bool:
        """Whether a system message after others has a turn of its own, and not just its name."""
        first = next((n for n, m in enumerate(probe) if m["role"] != "system"), len(probe))
        if all(message["role"] != "system" for message in probe[first:]):
            return True
        user, system = (
            {"role": "user", "content": "qzx0xzq"},
            {"role": "system", "content": "qzx1xzq"},
        )
        inside = self.render([user, system], False)
        header = inside.partition("qzx0xzq")[2].partition("qzx1xzq")[0]
        if "system" not in header:
            return True
        try:
            return "system" in self.render([system, user], False).partition("qzx1xzq")[0]
        except Exception:  # templates raise errors of any type
            return False


def _in_blocks(message: Message) -> Message:
    """A message whose content is a list of one block of text."""
    return {**message, "content": [{"type": "text", "text": message["content"]}]}
