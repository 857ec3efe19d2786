"""Turns rows of data, in any of the usual formats, into conversations that end with an answer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from langchain_llama_stop._optional import require
from langchain_llama_stop.chat.reshape import Message, merged

INSTALL_TRAIN = "pip install 'langchain-llama-stop[train]' ('.[train]' in a clone)"
Conversation = list[Message]

_TURN_MARKER = re.compile(r"\s*### (Human|Assistant):\s*")
_FORMATS = (
    "`text` ('### Human: … ### Assistant: …'), `prompt` and `completion`, or `messages` "
    "([{'role': 'user', 'content': …}, …])"
)


def read_rows(data: str | os.PathLike[str] | Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Reads the rows of a data set.

    Args:
        data: A JSONL file, the id of a data set on the hub (its "train" split is taken), or rows.

    Returns:
        The rows.

    Raises:
        ValueError: If a line is no JSON object, or there is no row.
        FileNotFoundError: If the file does not exist.
        OSError: If the hub does not give the data set.
        ImportError: If `datasets` is missing; the message says how to install it.
    """
    if not isinstance(data, str | os.PathLike):
        items = list(data)
        if wrong := [row for row in items if not isinstance(row, Mapping)]:
            raise ValueError(f"`data` has to hold dicts, but holds {wrong[0]!r}.")
        rows = [dict(row) for row in items]
    elif Path(data).is_file() or not isinstance(data, str) or data.endswith((".jsonl", ".json")):
        rows = _file_rows(Path(data).expanduser())
    else:
        rows = _hub_rows(data)
    if not rows:
        source = str(data) if isinstance(data, str | os.PathLike) else "the list"
        raise ValueError(f"`data` has to hold at least one row, but {source} holds none.")
    return rows


def _file_rows(file: Path) -> list[dict[str, Any]]:
    if not file.is_file():
        raise FileNotFoundError(
            f"`data` is the file {file}, which does not exist. A data set on the hub is named "
            "'owner/name'."
        )
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"`data` has to be UTF-8, but {file} is not ({error}).") from error
    rows = []
    # Not `splitlines`: it also splits at characters that JSON strings may contain.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            row = error
        if not isinstance(row, dict):
            raise ValueError(
                f"`data` has to hold one JSON object per line, but line {number} of {file} is "
                f"{line[:60]!r}{f' ({row})' if isinstance(row, ValueError) else ''}."
            )
        rows.append(row)
    return rows


def _hub_rows(name: str) -> list[dict[str, Any]]:
    require("datasets", "A data set from the hub", INSTALL_TRAIN)
    import datasets

    try:
        return [dict(row) for row in datasets.load_dataset(name, split="train")]
    except Exception as error:  # the hub, the network and the data set can raise anything
        raise OSError(
            f"`data` is '{name}', which is no file here and which the Hugging Face hub did not "
            f"give: {' '.join(str(error).split())[:200]} Check the name and the network, or give "
            "a JSONL file."
        ) from error


def to_conversations(
    rows: Iterable[Mapping[str, Any]], *, answered: bool = True
) -> list[Conversation]:
    """Recognises the format of each row and turns it into a conversation.

    The formats: `text`, with turns after "### Human:" and "### Assistant:" (as in
    openassistant-guanaco); `prompt` and `completion`, or `input` and `output`, each a text or a
    list of messages; `messages`. Other keys of a row are ignored.

    Args:
        rows: The rows.
        answered: True: conversations end with an answer, and what follows it is dropped. False:
            they end with a question, as the prompts of `self_distil` do.

    Returns:
        The conversations, one for each row.

    Raises:
        ValueError: If a row has none of the formats, or no answer (question).
    """
    conversations = []
    for number, row in enumerate(rows, start=1):
        reason = "the form is not known"
        for reader in _readers(row):
            try:
                messages = reader()
            except ValueError as error:
                reason = str(error)
                continue
            while messages and (messages[-1]["role"] == "assistant") != answered:
                messages.pop()
            messages = _without_greeting(messages)
            if any(message["role"] == "user" for message in messages):
                conversations.append(messages)
                break
            reason = f"it holds no {'answer' if answered else 'question'}"
        else:
            raise ValueError(
                f"Each row has to be a conversation, as {_FORMATS}, but row {number} is not: "
                f"{reason}. It has the keys {sorted(map(str, row))}."
            )
    return conversations


def _readers(row: Mapping[str, Any]) -> Iterator[Callable[[], Conversation]]:
    """The ways to read a row, the preferred one first."""
    if row.get("messages") is not None:
        yield partial(_from_messages, row["messages"])
    if isinstance(row.get("text"), str):
        yield partial(_from_text, row["text"])
    for begin, end in (("prompt", "completion"), ("input", "output")):
        if begin in row:
            yield partial(_from_pair, row[begin], row.get(end) or "")


def _from_pair(begin: Any, end: Any) -> Conversation:
    """A prompt and a completion: texts, or lists of messages."""
    if isinstance(begin, list):
        end = [{"role": "assistant", "content": end}] if isinstance(end, str) and end else end
        return _from_messages([*begin, *end])
    if not isinstance(begin, str) or not isinstance(end, str):
        raise ValueError("the form is not known")
    if _TURN_MARKER.match(begin):
        return _from_text(begin + end)
    question: Conversation = [{"role": "user", "content": begin}]
    answer: Conversation = [{"role": "assistant", "content": end}] if end.strip() else []
    return _from_messages([*question, *answer])


def _from_text(text: str) -> Conversation:
    """The turns of a text with markers; text before the first marker is a system message."""
    before, *parts = _TURN_MARKER.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[marker], "content": turn.strip()}
        for marker, turn in zip(parts[::2], parts[1::2], strict=True)
    ]
    if not turns:
        raise ValueError("its `text` has no '### Human:' and '### Assistant:'")
    system = [{"role": "system", "content": before.strip()}] if before.strip() else []
    return _from_messages([*system, *(turn for turn in turns if turn["content"])])


def _from_messages(messages: Any) -> Conversation:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError("its `messages` are no list")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ValueError(f"{str(message)[:80]!r} is no message with a `content` of text")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"the role {message.get('role')!r} is not system, user or assistant")
        if message["role"] == "assistant" and not message["content"].strip():
            raise ValueError("an answer is empty")
    return merged([{"role": m["role"], "content": _content(m)} for m in messages])


def _content(message: Mapping[str, Any]) -> str:
    """The text of a message; of an answer with thoughts, only what follows them."""
    is_answer = message["role"] == "assistant"
    return after_thoughts(message["content"]) if is_answer else str(message["content"]).strip()


def after_thoughts(text: str) -> str:
    """Returns the answer after a reasoning model's thoughts, stripped; without any, the text."""
    return text.rpartition("</think>")[2].strip()


def _without_greeting(messages: Conversation) -> Conversation:
    """Drops answers before the first question: they answer nothing."""
    first = next((i for i, m in enumerate(messages) if m["role"] == "user"), 0)
    return [m for i, m in enumerate(messages) if i >= first or m["role"] == "system"]
