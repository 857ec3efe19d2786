"""Tells a conversation in turns that a template takes, with as few changes as will do.

Each change is one function. `fitting` finds those that a template needs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = dict[str, Any]
"""`role` ("system", "user", "assistant", "tool") and `content`; as in OpenAI's form, `tool_calls`
(assistant), `name` and `tool_call_id` (tool)."""

Change = Callable[[list[Message]], list[Message]]

_CALL_ID = re.compile(r"[A-Za-z0-9]{9}")
_GO_ON = "Go on."
_SYSTEMS = ("system", "developer")


def fitting(
    messages: list[Message], takes: Callable[[list[Message]], bool], *, answer_next: bool
) -> list[Message] | None:
    """The conversation in the least changed shape that is taken.

    Changes are added one by one, from the least to the most invasive, until the shape is taken;
    then each that is not needed is left out again. Where one of them is in the way, all are tried
    without it.

    Args:
        messages: The conversation.
        takes: Whether a shape is taken; asked a few times per change.
        answer_next: Whether the model is to answer it; then a user's turn may be added to the end.

    Returns:
        The messages in that shape; None if none is taken.
    """
    changes: list[Change] = [ids_of_nine, text_arguments, content_apart, one_call_at_once]
    if not any(message.get("tool_calls") for message in messages):
        changes = []
    if answer_next and messages[-1]["role"] == "assistant":
        changes.insert(0, with_last_user)
    changes += [merged, without_empty_answers, with_first_user]
    if any(message["role"] in _SYSTEMS for message in messages):
        changes += [developer_as_system, system_first, system_in_user]
    changes = [change for change in changes if _may_help(change, messages)]

    def changed(chosen: Sequence[Change]) -> list[Message]:
        shape = messages
        for change in sorted(chosen, key=_ORDER.index):
            shape = change(shape)
        return shape

    if takes(messages):
        return messages
    for number, in_the_way in enumerate((None, *changes)):
        able = [change for change in changes if change is not in_the_way]
        untried = range(max(number, 1), len(able) + 1)  # the shorter ones were refused before
        lengths = (n for n in untried if takes(changed(able[:n])))
        if count := next(lengths, 0):
            needed = able[:count]
            for change in reversed(able[: count - 1]):
                without = [other for other in needed if other is not change]
                needed = without if takes(changed(without)) else needed
            return changed(needed)
    return None


def _may_help(change: Change, messages: list[Message]) -> bool:
    """Whether a change does anything, be it after others."""
    return change in (merged, with_first_user) or change(messages) != messages


def ids_of_nine(messages: Sequence[Message]) -> list[Message]:
    """Gives calls ids of nine letters and digits."""

    def short(call_id: Any) -> str:
        text = str(call_id)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:9]
        return text if _CALL_ID.fullmatch(text) else digest

    changed = []
    for message in messages:
        if calls := message.get("tool_calls"):
            calls = [{**call, "id": short(call.get("id"))} for call in calls]
            message = {**message, "tool_calls": calls}
        if "tool_call_id" in message:
            message = {**message, "tool_call_id": short(message["tool_call_id"])}
        changed.append(message)
    return changed


def text_arguments(messages: Sequence[Message]) -> list[Message]:
    """Writes the arguments of calls as JSON in a string."""

    def written(call: Mapping[str, Any]) -> dict[str, Any]:
        arguments = call["function"].get("arguments", {})
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        return {**call, "function": {**call["function"], "arguments": arguments}}

    return [
        {**m, "tool_calls": [*map(written, m["tool_calls"])]} if m.get("tool_calls") else m
        for m in messages
    ]


def content_apart(messages: Sequence[Message]) -> list[Message]:
    """Puts what an answer says beside its calls into a turn of its own, before them."""
    changed = []
    for message in messages:
        if message.get("tool_calls") and message["content"]:
            changed.append({k: v for k, v in message.items() if k != "tool_calls"})
            message = {**message, "content": ""}
        changed.append(message)
    return changed


def one_call_at_once(messages: Sequence[Message]) -> list[Message]:
    """Splits turns of several calls: each call is followed by its results."""
    changed, position = list[Message](), 0
    while position < len(messages):
        message = messages[position]
        position += 1
        calls = message.get("tool_calls") or ()
        ids = {call.get("id") for call in calls}
        if len(calls) < 2 or len(ids) < len(calls):
            changed.append(message)
            continue
        results = list[Message]()
        while position < len(messages) and messages[position]["role"] == "tool":
            results.append(messages[position])
            position += 1
        for number, call in enumerate(calls):
            content = "" if number else message["content"]
            changed.append({**message, "content": content, "tool_calls": [call]})
            changed += [m for m in results if m.get("tool_call_id") == call.get("id")]
        changed += [m for m in results if m.get("tool_call_id") not in ids]
    return changed


def merged(messages: Sequence[Message]) -> list[Message]:
    """Joins neighbours of one role, except tools' results, into one message each."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last and last["role"] == message["role"] != "tool":
            texts = [m["content"] for m in (last, message) if m["content"]]
            calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
            joined[-1] = {**last, "content": "\n\n".join(texts)}
            if calls:
                joined[-1]["tool_calls"] = calls
        else:
            joined.append(dict(message))
    return joined


def without_empty_answers(messages: Sequence[Message]) -> list[Message]:
    """Leaves out answers that say nothing and call nothing."""
    return [m for m in messages if m["role"] != "assistant" or m["content"] or m.get("tool_calls")]


def with_first_user(messages: Sequence[Message]) -> list[Message]:
    """Lets a user begin, with an empty turn where none does."""
    count = next((n for n, m in enumerate(messages) if m["role"] != "system"), len(messages))
    if count < len(messages) and messages[count]["role"] == "user":
        return list(messages)
    return [*messages[:count], {"role": "user", "content": ""}, *messages[count:]]


def with_last_user(messages: Sequence[Message]) -> list[Message]:
    """Lets a user ask for the next answer."""
    return [*messages, {"role": "user", "content": _GO_ON}]


def developer_as_system(messages: Sequence[Message]) -> list[Message]:
    """Lets the system tell what a developer says."""
    return [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]


def system_first(messages: Sequence[Message]) -> list[Message]:
    """Keeps the first system messages; those after others are told by the user."""
    count = next((n for n, m in enumerate(messages) if m["role"] not in _SYSTEMS), len(messages))
    return merged([*messages[:count], *map(_by_user, messages[count:])])


def system_in_user(messages: Sequence[Message]) -> list[Message]:
    """Lets the user tell all system messages."""
    return merged([*map(_by_user, messages)])


def _by_user(message: Message) -> Message:
    is_system = message["role"] in _SYSTEMS
    return {"role": "user", "content": message["content"]} if is_system else message


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """Lets the first system message begin with a text; makes one where there is none."""
    if messages and messages[0]["role"] == "system":
        content = "\n\n".join(filter(None, (text, messages[0]["content"])))
        return [{**messages[0], "content": content}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def described(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools (in OpenAI's form) with an empty description and no arguments where none are given."""

    def told(schema: Mapping[str, Any]) -> dict[str, Any]:
        return {"description": "", **schema}

    described_tools = []
    for tool in tools:
        function = told(tool["function"])
        parameters = function["parameters"]
        properties = {
            name: told(schema) if isinstance(schema, Mapping) else schema
            for name, schema in parameters.get("properties", {}).items()
        }
        function["parameters"] = {**parameters, "properties": properties}
        described_tools.append({**tool, "function": function})
    return described_tools


def as_text(messages: Sequence[Message], write: Callable[[Any], str]) -> list[Message]:
    """Tells calls and their results in words, for templates that know none.

    Args:
        messages: The conversation.
        write: Writes calls, pairs of a name and arguments.

    Returns:
        The conversation in the roles of users, assistants and the system.
    """
    simple = []
    for message in messages:
        role, content = message["role"], message["content"]
        if role == "tool":
            name = f" of {message['name']}" if message.get("name") else ""
            role, content = "user", f"Result{name}: {content}"
        elif functions := [call["function"] for call in message.get("tool_calls", ())]:
            calls = write([(f["name"], f.get("arguments", {})) for f in functions])
            content = f"{content}\n{calls}" if content else calls
        simple.append({"role": role, "content": content})
    return merged(simple)


_ORDER: list[Change] = [
    without_empty_answers,
    developer_as_system,
    system_first,
    system_in_user,
    ids_of_nine,
    content_apart,
    one_call_at_once,
    text_arguments,
    merged,
    with_first_user,
    with_last_user,
]
"""In which order changes are made: those that make neighbours of one role come before `merged`."""
