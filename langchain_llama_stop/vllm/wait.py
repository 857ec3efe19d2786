"""What a call may still take of time and bytes, and connections that keep to it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpcore2
import httpx2

_BYTES = (2**25, 2**13)
"""Most bytes of an answer: in all, and more for each token of its budget. Not tuned: a token with
20 log-probabilities takes some 3,000."""


@dataclass
class Wait:
    """What a call may still take. The time between two chunks that the caller takes is no wait.

    Attributes:
        seconds: Seconds that it may still wait for a server, pauses between tries included.
        most_bytes: Bytes that it may still read.
    """

    seconds: float
    most_bytes: int = _BYTES[0]
    _until: float = field(default=0.0, init=False)

    @classmethod
    def of(cls, seconds: float, tokens: int) -> Wait:
        """What a call with a token budget may take."""
        return cls(seconds, _BYTES[0] + tokens * _BYTES[1])

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts the time inside as waiting; what takes longer is a `TimeoutError`."""
        begun = time.monotonic()
        self._until = begun + self.seconds
        try:
            self.left()
            yield
        finally:
            self.seconds -= time.monotonic() - begun

    @asynccontextmanager
    async def awaited(self) -> AsyncIterator[None]:
        """The same for what is awaited, which is cancelled then."""
        with self.counted():
            async with asyncio.timeout(self.left()):
                yield

    def left(self) -> float:
        """The seconds left inside of `counted`."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def take(self, piece: bytes) -> None:
        """Counts bytes that were read."""
        self.left()
        self.most_bytes -= len(piece)
        if self.most_bytes < 0:
            raise httpx2.ReadError("the answer has more bytes than any answer needs")

    def allows(self, pause: float) -> bool:
        """Whether there is time for a pause, and for a try after it."""
        return pause < self.seconds


class _Stream(httpcore2.NetworkStream):
    """A connection on which no byte is waited for longer than its call may wait.

    httpx bounds each read by itself: a server that sends a byte now and then holds it for ever.
    """

    def __init__(self, inner: httpcore2.NetworkStream, wait: Wait) -> None:
        self._inner, self._wait = inner, wait

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._wait.left())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, self._wait.left())

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, *_: Any, **__: Any
    ) -> httpcore2.NetworkStream:
        secured = self._inner.start_tls(ssl_context, server_hostname, self._wait.left())
        return _Stream(secured, self._wait)

    def close(self) -> None:
        self._inner.close()

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class Network(httpcore2.SyncBackend):
    """Opens such connections."""

    def __init__(self, wait: Wait) -> None:
        """Binds them to a call."""
        self._wait = wait

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        """Opens one."""
        return _Stream(super().connect_tcp(*args, **kwargs), self._wait)
