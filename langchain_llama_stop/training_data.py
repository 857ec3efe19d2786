"""Rows of data into what a model is trained on: conversations whose answers end by EOS.

Each answer of a conversation is rendered by the model's own chat template, behind exactly the
tokens that a chat would put before it, and supervised up to its EOS. Nothing else is.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.chat_templates import Message, chat_ids
from langchain_llama_stop.gguf_cache import require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

INSTALL_TRAIN = "pip install 'langchain-llama-stop[train]' ('.[train]' in a clone)"
IGNORED = -100
"""The label of a token without loss, as in torch's cross entropy."""

Conversation = list[Message]

_MARK = re.compile(r"\s*### (Human|Assistant):\s*")
_FORMS = (
    "`text` ('### Human: … ### Assistant: …'), `prompt` and `completion`, or `messages` "
    "([{'role': 'user', 'content': …}, …])"
)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation in tokens.

    Attributes:
        ids: All of it.
        answers: Where the supervised tokens of each answer begin and end, its EOS included.
    """

    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]

    @property
    def labels(self) -> list[int]:
        """The ids with `IGNORED` in place of all that is not supervised."""
        labels = [IGNORED] * len(self.ids)
        for begin, end in self.answers:
            labels[begin:end] = self.ids[begin:end]
        return labels

    @property
    def prompt(self) -> tuple[int, ...]:
        """What stands before the last answer."""
        return self.ids[: self.answers[-1][0]]

    @property
    def reference(self) -> tuple[int, ...]:
        """The last answer."""
        begin, end = self.answers[-1]
        return self.ids[begin:end]


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
        rows = [dict(row) for row in data]
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
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
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
            if any(message["role"] == "user" for message in messages):
                found.append(messages)
                break
            reason = f"it holds no {'answer' if answered else 'question'}"
        else:
            raise ValueError(
                f"Each row has to be a conversation, as {_FORMS}, but row {number} is not: "
                f"{reason}. It has the keys {sorted(row)}."
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
    return [{"role": m["role"], "content": m["content"].strip()} for m in messages]


def example(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    template: str,
    eos: Collection[int],
) -> Example:
    """Renders and encodes a conversation, and finds its answers in it.

    What a template puts behind the EOS of the last answer is left out.

    Args:
        tokenizer: The model's tokenizer.
        conversation: Ends with an answer.
        template: The chat template (Jinja).
        eos: The model's EOS ids.

    Returns:
        The example. An answer that stands behind other tokens there than in a chat (some templates
        render earlier answers differently) is not supervised; the last one always is.

    Raises:
        ValueError: If the template cannot render the conversation.
    """
    ids = chat_ids(tokenizer, conversation, template=template)
    answers = []
    for turn, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        last = turn + 1 == len(conversation)
        prompt = chat_ids(tokenizer, conversation[:turn], template=template)
        till = ids if last else chat_ids(tokenizer, conversation[: turn + 1], template=template)
        begin = _common(prompt, ids) if last else len(prompt)
        if last or ids[: len(till)] == till and till[:begin] == prompt:
            ends = [i for i in range(begin, len(till)) if till[i] in eos]
            answers.append((begin, ends[-1] + 1 if ends else len(till)))
    return Example(tuple(ids[: answers[-1][1]]), tuple(answers))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that two texts begin with in common."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def marked(tokenizer: PreTrainedTokenizerBase, labelled: Example) -> list[tuple[str, bool]]:
    """Gives an example as a person reads it.

    Args:
        tokenizer: The model's tokenizer.
        labelled: The example.

    Returns:
        Pieces of its text, special tokens included, and whether their tokens are supervised.
    """
    cuts = [0, *(place for answer in labelled.answers for place in answer), len(labelled.ids)]
    # From the beginning each time: alone, a piece may lose the space that it begins with.
    texts = [str(tokenizer.decode(list(labelled.ids[:cut]))) for cut in cuts]
    pieces = [
        (text[len(before) :], number % 2 == 1)
        for number, (before, text) in enumerate(pairwise(texts))
    ]
    return [piece for piece in pieces if piece[0]]


@dataclass(frozen=True, slots=True)
class Supervision:
    """Whether training will show the model where answers end.

    Attributes:
        examples: How many were looked at.
        ended: How many of them have a loss on an EOS at the end of each answer.
        reasons: Why the others have not, the commonest first, with their counts.
    """

    examples: int
    ended: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """The share of examples whose EOS is supervised, 0 to 1."""
        return self.ended / self.examples


def supervision(
    batches: Iterable[Mapping[str, torch.Tensor]],
    eos: Collection[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Supervision:
    """Looks at batches as the model will get them.

    Args:
        batches: `input_ids`, `labels` and `attention_mask`, (batch, length) each.
        eos: The model's EOS ids.
        tokenizer: The model's tokenizer.
        max_length: Tokens to which rows are cut.

    Returns:
        The share of rows in which each supervised run ends by EOS, and why others do not.
    """
    count, reasons = 0, Counter[str]()
    for batch in batches:
        columns = (batch[name].tolist() for name in ("input_ids", "labels", "attention_mask"))
        for ids, labels, attended in zip(*columns, strict=True):
            count += 1
            length = sum(attended)  # what is behind is padding
            if reason := _reason(ids[:length], labels[:length], eos, tokenizer, max_length):
                reasons[reason] += 1
    return Supervision(count, count - sum(reasons.values()), tuple(reasons.most_common()))


def _reason(
    ids: list[int],
    labels: list[int],
    eos: Collection[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> str:
    """Why the EOS of an answer in a row has no loss; "" if each has one."""
    runs = [[i for i, _ in run] for shown, run in groupby(enumerate(labels), _has_loss) if shown]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for run in runs:
        last = run[-1]
        if labels[last] in eos:
            continue
        if last + 1 < len(ids) and ids[last + 1] in eos:
            return "EOS stands there, but its label is masked (a collator that masks the pad id)"
        if last + 1 >= max_length:
            return f"they are cut at `max_length` {max_length}"
        if others := [labels[i] for i in run if labels[i] in special]:
            return (
                f"an answer ends with {tokenizer.convert_ids_to_tokens(others[-1])} "
                f"({others[-1]}), which is not among the EOS ids {sorted(eos)}: set "
                "`pipeline.model.generation_config.eos_token_id`, and give the pipeline"
            )
        return (
            "the chat template puts no EOS behind an answer: set a `pipeline.tokenizer."
            "chat_template` with `eos_token` there, and give the pipeline"
        )
    return "" if runs else "no token is supervised"


def _has_loss(place: tuple[int, int]) -> bool:
    return place[1] != IGNORED
