"""Servers of one model: tried in turn by the HTTP clients of `openai`, and why they failed."""

from __future__ import annotations

import functools
import socket
import ssl
import sys
import weakref
from collections.abc import Iterator, Sequence

import httpx2
import openai


def server_root(url: object) -> str:
    """Reads one of `base_url`.

    Args:
        url: Where a server listens, with or without "/v1" at its end.

    Returns:
        The address without it.

    Raises:
        ValueError: If it is no HTTP address, or holds a user or password.
    """
    parsed = httpx2.URL(url) if isinstance(url, str) else None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(
            f"`base_url` has to be an address such as 'http://localhost:8000/v1', or a list of "
            f"them, but holds {url!r}."
        )
    if parsed.userinfo:
        raise ValueError("`base_url` may hold no user or password: give `api_key`.")
    return str(parsed).rstrip("/").removesuffix("/v1").rstrip("/")


def explanation(error: openai.APIError, roots: Sequence[str]) -> str:
    """Says in one sentence or two why a request has failed for good, and what to do.

    Args:
        error: What openai's client has raised, or LangChain for it.
        roots: Addresses as `server_root` gives them.

    Returns:
        The text.
    """
    tried = " or ".join(roots)
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or error.message)
    if isinstance(error, openai.APITimeoutError):
        return f"`timeout` ran out before {tried} answered: give more seconds, or ask for less."
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__ and (error.__cause__.__cause__ or error.__cause__) or message
        return (
            f"No whole answer from {tried}: {str(cause).rstrip('.')}. Is the server running? "
            "`vllm serve MODEL --logits-processors "
            "langchain_llama_stop.vllm:EosRewardLogitsProcessor` starts one."
        )
    if isinstance(error, openai.AuthenticationError):
        return f"{tried} takes no requests without its key: give `api_key` ({message})."
    status = error.status_code if isinstance(error, openai.APIStatusError) else body.get("code")
    refused = isinstance(status, int) and 400 <= status < 500 and status != 429
    return f"{tried} {'refuses' if refused else 'fails'} the request (status {status}): {message}"


_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
_ASYNC_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=0)
"""A kept connection belongs to its event loop and would break the next one's first request."""

_KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if sys.platform == "linux":  # a server whose machine has gone is noticed after two minutes
    _KEEPALIVE += [
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    ]

_BUSY = (429, *range(500, 600))

_LATE = (httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout)
"""The whole `timeout` is used up: the client's next try begins with the next server."""


class _Servers:
    """Which server comes next: the one that answered last, then those behind it in the list."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._first = 0

    def turns(self) -> Iterator[tuple[int, bool]]:
        """The order in which one request tries the servers, and whether each is the last."""
        count, first = len(self._roots), self._first
        return iter([((first + turn) % count, turn == count - 1) for turn in range(count)])

    def direct(self, request: httpx2.Request, index: int) -> None:
        """Directs a request at a server; it may have been directed at another."""
        url = str(request.url)
        root = next(root for root in self._roots if url.startswith(f"{root}/"))
        request.url = httpx2.URL(self._roots[index] + url.removeprefix(root))
        request.headers["Host"] = request.url.netloc.decode("ascii")

    def settles(self, index: int, last: bool, outcome: httpx2.Response | Exception) -> bool:
        """Notes what came of a server; whether the request ends with it."""
        if isinstance(outcome, Exception) or outcome.status_code in _BUSY:
            if self._first == index:
                self._first = (index + 1) % len(self._roots)
            return last or isinstance(outcome, _LATE)
        self._first = index
        return True


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The authorities that HTTPS trusts; reading them takes longer than all else here."""
    return httpx2.create_ssl_context()


class ServersInTurn(httpx2.BaseTransport):
    """Sends each request to the first server that takes it."""

    def __init__(self, roots: Sequence[str]) -> None:
        """Opens no connection yet.

        Args:
            roots: Addresses as `server_root` gives them.
        """
        self._servers = _Servers(roots)
        self._inner = httpx2.HTTPTransport(
            verify=_certificates(), limits=_LIMITS, socket_options=_KEEPALIVE
        )
        weakref.finalize(self, self._inner.close)  # nobody closes a chat model

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request.

        Args:
            request: It; its body can be sent again.

        Returns:
            The answer of the first server that has one, else of the last.

        Raises:
            httpx2.TransportError: If the last cannot be reached, or one lets `timeout` run out.
        """
        turns = self._servers.turns()
        while True:
            index, last = next(turns)
            self._servers.direct(request, index)
            try:
                response = self._inner.handle_request(request)
            except httpx2.TransportError as error:
                if self._servers.settles(index, last, error):
                    raise
                continue
            if self._servers.settles(index, last, response):
                return response
            response.close()

    def close(self) -> None:
        """Closes the connections."""
        self._inner.close()


class AsyncServersInTurn(httpx2.AsyncBaseTransport):
    """The same for asyncio."""

    def __init__(self, roots: Sequence[str]) -> None:
        """Opens no connection yet.

        Args:
            roots: Addresses as `server_root` gives them.
        """
        self._servers = _Servers(roots)
        self._inner = httpx2.AsyncHTTPTransport(limits=_ASYNC_LIMITS, socket_options=_KEEPALIVE)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """As `ServersInTurn.handle_request`."""
        turns = self._servers.turns()
        while True:
            index, last = next(turns)
            self._servers.direct(request, index)
            try:
                response = await self._inner.handle_async_request(request)
            except httpx2.TransportError as error:
                if self._servers.settles(index, last, error):
                    raise
                continue
            if self._servers.settles(index, last, response):
                return response
            await response.aclose()

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._inner.aclose()
