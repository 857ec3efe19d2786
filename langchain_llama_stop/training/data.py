"""Rows of data, in any of the forms they come in, into conversations that end with an answer."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from langchain_llama_stop._optional import require
from langchain_llama_stop.chat.template import Message, merged

INSTALL_TRAIN = "pip install 'langchain-llama-stop[train]' ('.[train]' in a clone)"
Conversation = list[Message]

_MARK = re.compile(r"\s*### (Human|Assistant):\s*")
_FORMS = (
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
        given = list(data)
        if wrong := [row for row in given if not isinstance(row, Mapping)]:
            raise ValueError(f"`data` has to hold dicts, but holds {wrong[0]!r}.")
        rows = [dict(row) for row in given]
    elif Path(data).is_file() or not isinstance(data, str) or data.endswith((".jsonl", ".json")):
        rows = _file_rows(Path(data).expanduser())
    else:
        rows = _hub_rows(data)
    if not rows:
        raise ValueError(f"`data` has to hold at least one row, but {_named(data)} holds none.")
    return rows


def _named(data: Any) -> str:
    return str(data) if isinstance(data, str | os.PathLike) else "the list"


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
    # Not `splitlines`: JSON strings may hold what that takes for ends of lines.
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
    except Exception as error:  # the hub, the network and the data set raise what they like
        raise OSError(
            f"`data` is '{name}', which is no file here and which the Hugging Face hub did not "
            f"give: {' '.join(str(error).split())[:200]} Check the name and the network, or give "
            "a JSONL file."
        ) from error


def conversations(
    rows: Iterable[Mapping[str, Any]], *, answered: bool = True
) -> list[Conversation]:
    """Recognises the form of each row and turns it into a conversation.

    The forms: `text`, turns behind "### Human:" and "### Assistant:" (as in openassistant-guanaco);
    `prompt` and `completion`, or `input` and `output`, texts or lists of messages; `messages`.

    Args:
        rows: The rows; what else they hold is left alone.
        answered: Whether a conversation ends with an answer (what comes behind it is dropped), or
            with a question (as prompts for `self_distil` do).

    Returns:
        The conversations, one for each row.

    Raises:
        ValueError: If a row has none of the forms, or no answer.
    """
    found = []
    for number, row in enumerate(rows, start=1):
        reason = "the form is not known"
        for form in _row_forms(row):
            try:
                messages = form()
            except ValueError as error:
                reason = str(error)
                continue
            while messages and (messages[-1]["role"] == "assistant") != answered:
                messages.pop()
            messages = _without_greeting(messages)
            if any(message["role"] == "user" for message in messages):
                found.append(messages)
                break
            reason = f"it holds no {'answer' if answered else 'question'}"
        else:
            raise ValueError(
                f"Each row has to be a conversation, as {_FORMS}, but row {number} is not: "
                f"{reason}. It has the keys {sorted(map(str, row))}."
            )
    return found


def _row_forms(row: Mapping[str, Any]) -> Iterator[Callable[[], Conversation]]:
    """What a row may be read as, in the order of preference."""
    if row.get("messages") is not None:
        yield partial(_messages, row["messages"])
    if isinstance(row.get("text"), str):
        yield partial(_turns, row["text"])
    for begin, end in (("prompt", "completion"), ("input", "output")):
        if begin in row:
            yield partial(_pair, row[begin], row.get(end) or "")


def _pair(begin: Any, end: Any) -> Conversation:
    """A prompt and a completion: texts, or lists of messages."""
    if isinstance(begin, list):
        end = [{"role": "assistant", "content": end}] if isinstance(end, str) and end else end
        return _messages([*begin, *end])
    if not isinstance(begin, str) or not isinstance(end, str):
        raise ValueError("the form is not known")
    if _MARK.match(begin):
        return _turns(begin + end)
    asked: Conversation = [{"role": "user", "content": begin}]
    return _messages([*asked, {"role": "assistant", "content": end}] if end.strip() else asked)


def _turns(text: str) -> Conversation:
    """The turns of a text with marks; system texts before the first mark are kept."""
    before, *parts = _MARK.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[mark], "content": said.strip()}
        for mark, said in zip(parts[::2], parts[1::2], strict=True)
    ]
    if not turns:
        raise ValueError("its `text` has no '### Human:' and '### Assistant:'")
    system = [{"role": "system", "content": before.strip()}] if before.strip() else []
    return _messages([*system, *(turn for turn in turns if turn["content"])])


def _messages(messages: Any) -> Conversation:
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise ValueError("its `messages` are no list")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), str):
            raise ValueError(f"{str(message)[:80]!r} is no message with a `content` of text")
        if message.get("role") not in ("system", "user", "assistant"):
            raise ValueError(f"the role {message.get('role')!r} is not system, user or assistant")
        if message["role"] == "assistant" and not message["content"].strip():
            raise ValueError("an answer is empty")
    return merged([{"role": m["role"], "content": _said(m)} for m in messages])


def _said(message: Mapping[str, Any]) -> str:
    """What a message says; of an answer with thoughts, what is behind them."""
    answer = message["role"] == "assistant"
    return behind_thoughts(message["content"]) if answer else str(message["content"]).strip()


def behind_thoughts(text: str) -> str:
    """Gives what a reasoning model says behind its thoughts; all of it, stripped, without any."""
    return text.rpartition("</think>")[2].strip()


def _without_greeting(messages: Conversation) -> Conversation:
    """Drops answers before the first question: there is nothing that they answer."""
    asked = next((i for i, m in enumerate(messages) if m["role"] == "user"), 0)
    return [m for i, m in enumerate(messages) if i >= asked or m["role"] == "system"]
