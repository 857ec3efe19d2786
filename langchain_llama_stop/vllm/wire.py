"""What a server's bytes may say: strict models of its answers, and the events of its streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from langchain_core.exceptions import ModelAPIError
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError


class _Wire(BaseModel):
    """Takes nothing for another type ("5" for 5), and leaves out what it does not know."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Function(_Wire):
    name: str | None = None
    arguments: str | None = None


class Call(_Wire):
    """A tool call, or the next part of one."""

    index: NonNegativeInt = 0
    id: str | None = None
    function: _Function


class Message(_Wire):
    """The text and the calls of an answer, or the next part of them."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[Call] | None = None


class _CachedTokens(_Wire):
    cached_tokens: NonNegativeInt | None = None


class Usage(_Wire):
    """The token counts of an answer."""

    prompt_tokens: NonNegativeInt
    completion_tokens: NonNegativeInt = 0
    prompt_tokens_details: _CachedTokens | None = None


_Reason = Literal["stop", "length", "tool_calls", "repetition"]
"""How whole answers end. vLLM gives "repetition" where a request asks for that check."""


class _Likely(_Wire):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Token(_Likely):
    top_logprobs: list[_Likely] = []


class _Logprobs(_Wire):
    content: list[_Token] | None = None


class _Choice(_Wire):
    index: Literal[0] = 0
    logprobs: _Logprobs | None = None
    stop_reason: int | str | None = None


class _WholeChoice(_Choice):
    message: Message
    finish_reason: _Reason


class _PartOfChoice(_Choice):
    delta: Message | None = None
    finish_reason: _Reason | None = None


class Completion(_Wire):
    """A whole answer."""

    model: str
    choices: Annotated[list[_WholeChoice], Field(min_length=1, max_length=1)]
    usage: Usage | None = None


class Chunk(_Wire):
    """A part of an answer; with `error`, the failure of the whole."""

    model: str | None = None
    choices: Annotated[list[_PartOfChoice], Field(max_length=1)] = []
    usage: Usage | None = None
    error: dict[str, Any] | str | None = None


class Tokens(_Wire):
    """What the server's tokenizer makes of a prompt."""

    tokens: list[NonNegativeInt]
    count: NonNegativeInt


W = TypeVar("W", bound=_Wire)


def read(kind: type[W], body: bytes, root: str) -> W:
    """Reads JSON that a server has sent.

    Args:
        kind: What it has to be.
        body: The JSON, in UTF-8.
        root: The server's address, for the error.

    Raises:
        ModelAPIError: If it is anything else; with the first part of it that is wrong.
    """
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        wrong = f"{place}: {first['msg']}" if place else first["msg"]
        raise ModelAPIError(
            f"{root} has sent what is no answer ({wrong}). Is a server of OpenAI's API at this "
            "address?"
        ) from None


MOST_EVENT_BYTES = 2**22
"""Bytes of one event. Not tuned: a chunk with 20 log-probabilities takes some 3,000."""


class Events:
    """The data of server-sent events, whose bytes come in pieces cut anywhere."""

    def __init__(self) -> None:
        """Starts before the first byte."""
        self._rest, self._data = b"", list[bytes]()

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """Takes the next bytes; returns the data of the events that they complete.

        Raises:
            ModelAPIError: If an event is longer than `MOST_EVENT_BYTES`.
        """
        text = self._rest + piece
        held = text[-1:] == b"\r"  # of "\r\n", perhaps
        if b"\r" in text:
            text = text[: len(text) - held].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = text.split(b"\n")
        self._rest = rest + b"\r" * held
        for line in lines:
            if line[:5] == b"data:":
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data.clear()
        if len(self._rest) + sum(map(len, self._data)) > MOST_EVENT_BYTES:
            raise ModelAPIError(f"An event of a stream has more than {MOST_EVENT_BYTES:,} bytes.")
