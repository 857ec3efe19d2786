"""One call to a server: in time, bounded, to no other host; errors that say what to do.

Each call has connections of its own, so nothing is shared between event loops, threads and forked
processes. A user's own client keeps its connections as it likes.
"""

from __future__ import annotations

import asyncio
import functools
import random
import socket
import ssl
import sys
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import httpcore2
import httpx2
from langchain_core.exceptions import ModelError

from langchain_llama_stop.vllm.errors import clear_errors, refusal
from langchain_llama_stop.vllm.wait import Network, Wait

T = TypeVar("T")
_CONNECT = 5.0
"""Seconds until the next server is tried where one cannot be reached. Not tuned: time for two more
SYN packets (sent after 1 and 3 seconds), far below the default timeout of 600 seconds."""
_PAUSES = (0.5, 8.0)
"""Seconds before the second try, doubled for each further one, and the most. Not tuned."""
_KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if sys.platform == "linux":  # notices after two minutes that a server's machine is gone
    _KEEPALIVE += [
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    ]


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The certificates that HTTPS trusts; cached, as reading them is slow."""
    return httpx2.create_ssl_context()


@dataclass
class Order:
    """Which of the servers is asked first: the one that answered last.

    Attributes:
        first: Its place in the list.
    """

    first: int = 0


@dataclass
class ServerCall:
    """One call: where it goes, what it sends, how long it may take.

    Attributes:
        roots: Addresses as `server_root` returns them.
        path: The path after them.
        body: What is sent, as JSON.
        headers: Headers of the request.
        query: What stands after "?".
        wait: What it may take.
        max_retries: More tries after a failure that may pass.
        order: Which server is asked first.
    """

    roots: Sequence[str]
    path: str
    body: Mapping[str, Any]
    headers: Mapping[str, str]
    query: Mapping[str, Any]
    wait: Wait
    max_retries: int
    order: Order
    _begin: int = field(default=0, init=False)

    def post(self, own: httpx2.Client | None) -> bytes:
        """Returns the whole body of the answer.

        Args:
            own: The user's own client, if any.

        Raises:
            ModelError: If there is none.
        """
        with self._client(own) as client:
            return self._tried(lambda root: b"".join(self._pieces(self._sent(client, root))))

    def stream(self, own: httpx2.Client | None) -> Generator[bytes]:
        """Gives the body of the answer in pieces; it is asked for again until it begins."""
        with self._client(own) as client:
            response = self._tried(lambda root: self._sent(client, root))
            with clear_errors(self.roots):
                yield from self._pieces(response)

    async def apost(self, own: httpx2.AsyncClient | None) -> bytes:
        """The same as `post`, for asyncio."""

        async def whole(root: str) -> bytes:
            return b"".join(
                [piece async for piece in self._apieces(await self._asent(client, root))]
            )

        async with self._aclient(own) as client:
            return await self._atried(whole)

    async def astream(self, own: httpx2.AsyncClient | None) -> AsyncGenerator[bytes]:
        """The same as `stream`, for asyncio."""
        async with self._aclient(own) as client:
            response = await self._atried(lambda root: self._asent(client, root))
            with clear_errors(self.roots):
                async with aclosing(self._apieces(response)) as pieces:
                    async for piece in pieces:
                        yield piece

    @contextmanager
    def _client(self, own: httpx2.Client | None) -> Iterator[httpx2.Client]:
        if own is not None:
            yield own
            return
        transport = httpx2.HTTPTransport(verify=_certificates())
        # The transport has no argument for this one of the pool.
        transport._pool = httpcore2.ConnectionPool(
            ssl_context=_certificates(),
            socket_options=_KEEPALIVE,
            network_backend=Network(self.wait),
        )
        with httpx2.Client(transport=transport, trust_env=False) as client:
            yield client

    @asynccontextmanager
    async def _aclient(self, own: httpx2.AsyncClient | None) -> AsyncIterator[httpx2.AsyncClient]:
        if own is not None:
            yield own
            return
        transport = httpx2.AsyncHTTPTransport(verify=_certificates(), socket_options=_KEEPALIVE)
        async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
            yield client

    def _request(self, client: httpx2.Client | httpx2.AsyncClient, root: str) -> httpx2.Request:
        """The request for one server; compressed answers are not asked for."""
        return client.build_request(
            "POST",
            f"{root}{self.path}",
            json=self.body,
            headers={"Accept-Encoding": "identity", **self.headers},
            params=self.query or None,
            timeout=httpx2.Timeout(self.wait.left(), connect=min(_CONNECT, self.wait.left())),
        )

    def _sent(self, client: httpx2.Client, root: str) -> httpx2.Response:
        """A server's answer with its body still to come."""
        with self.wait.counted():
            request = self._request(client, root)
            response = client.send(request, stream=True, follow_redirects=False)
        if response.status_code != 200:
            raise refusal(root, response, b"".join(self._pieces(response)))
        return response

    async def _asent(self, client: httpx2.AsyncClient, root: str) -> httpx2.Response:
        async with self.wait.awaited():
            request = self._request(client, root)
            response = await client.send(request, stream=True, follow_redirects=False)
        if response.status_code != 200:
            raise refusal(root, response, b"".join([p async for p in self._apieces(response)]))
        return response

    def _pieces(self, response: httpx2.Response) -> Iterator[bytes]:
        """The body as it comes, as long as it may take."""
        try:
            _check_encoding(response)
            pieces = response.iter_raw()
            while True:
                with self.wait.counted():
                    if (piece := next(pieces, None)) is None:
                        return
                    self.wait.take(piece)
                yield piece
        finally:
            response.close()

    async def _apieces(self, response: httpx2.Response) -> AsyncGenerator[bytes]:
        try:
            _check_encoding(response)
            pieces = response.aiter_raw()
            while True:
                async with self.wait.awaited():
                    if (piece := await anext(pieces, None)) is None:
                        return
                    self.wait.take(piece)
                yield piece
        finally:
            await response.aclose()

    def _tried(self, attempt: Callable[[str], T]) -> T:
        """Asks one server after another until one answers."""
        for turn in range(self._tries()):
            place, root = self._turn(turn)
            try:
                with clear_errors(self.roots):
                    result = attempt(root)
            except ModelError as error:
                time.sleep(self._pause(turn, place, error))
            else:
                self.order.first = place
                return result
        raise AssertionError("The last try returns or raises.")

    async def _atried(self, attempt: Callable[[str], Awaitable[T]]) -> T:
        for turn in range(self._tries()):
            place, root = self._turn(turn)
            try:
                with clear_errors(self.roots):
                    result = await attempt(root)
            except ModelError as error:
                await asyncio.sleep(self._pause(turn, place, error))
            else:
                self.order.first = place
                return result
        raise AssertionError("The last try returns or raises.")

    def _tries(self) -> int:
        return max(self.max_retries + 1, len(self.roots))

    def _turn(self, turn: int) -> tuple[int, str]:
        """The place and the address of the server for a try."""
        if turn == 0:
            self._begin = self.order.first
        place = (self._begin + turn) % len(self.roots)
        return place, self.roots[place]

    def _pause(self, turn: int, place: int, error: ModelError) -> float:
        """The seconds until the next try after a failure; raises it where there is none."""
        if self.order.first == place and error.is_retryable:
            self.order.first = (place + 1) % len(self.roots)
        rounds, rest = divmod(turn + 1, len(self.roots))
        least, most = _PAUSES
        asked = getattr(error, "retry_after", 0.0)
        pause = 0.0 if rest else max(asked, min(least * 2 ** (rounds - 1), most))
        pause *= random.uniform(1, 1.25)  # clients that failed at once do not come back at once
        if turn + 1 == self._tries() or not error.is_retryable or not self.wait.allows(pause):
            raise error
        self.wait.seconds -= pause
        return pause


def _check_encoding(response: httpx2.Response) -> None:
    """Refuses what was compressed unasked: a few bytes can become gigabytes."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding.lower() != "identity":
        raise httpx2.DecodingError(f"it came compressed ({encoding[:20]!r})")
