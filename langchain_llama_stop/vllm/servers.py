"""Servers of one model: tried in turn by the HTTP clients of `openai`, and why they failed."""

from __future__ import annotations

import functools
import socket
import ssl
import sys
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
from langchain_openai.chat_models import base

_CONNECT = 5.0  # seconds until a server that cannot be reached is given up


def server_root(url: object) -> str:
    """Reads one of `base_url`.

    Args:
        url: Where a server listens, with or without "/v1" at its end.

    Returns:
        The address without it.

    Raises:
        ValueError: If it is no HTTP address, or holds more than host, port and path.
    """
    parsed = httpx2.URL(url) if isinstance(url, str) else None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(
            f"`base_url` has to be an address such as 'http://localhost:8000/v1', or a list of "
            f"them, but holds {url!r}."
        )
    if parsed.userinfo:
        raise ValueError("`base_url` may hold no user or password: give `api_key`.")
    if parsed.query or parsed.fragment:
        raise ValueError(f"`base_url` may hold nothing behind its path, but is {url!r}.")
    return str(parsed).rstrip("/").removesuffix("/v1").rstrip("/")


_KINDS = {
    400: base.OpenAIInvalidRequestError,
    401: base.OpenAIAuthenticationError,
    403: base.OpenAIPermissionDeniedError,
    404: base.OpenAIModelNotFoundError,
    429: base.OpenAIRateLimitError,
}


def _model_error(
    error: openai.APIError | httpx2.TransportError | TimeoutError, roots: Sequence[str]
) -> Exception:
    """Says in one sentence or two why a request has failed for good, and what to do.

    Args:
        error: What openai's client has raised, or LangChain for it; older ones let errors of the
            connection through in the midst of a stream.
        roots: Addresses as `server_root` gives them.

    Returns:
        The error to raise: one of langchain-openai's, which are LangChain's `ModelError`s and
        openai's errors at once.
    """
    tried = " or ".join(roots)
    request = httpx2.Request("POST", f"{roots[0]}/v1/chat/completions")
    if isinstance(error, TimeoutError):  # no chunk of an awaited stream for too long
        return _timed_out(request, f"`stream_chunk_timeout` ran out while {tried} was answering.")
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    reason = next((c for c in causes if isinstance(c, httpx2.TransportError)), causes[-1])
    if isinstance(reason, _LATE):
        text = f"`timeout` ran out before {tried} answered: give more seconds, or ask for less."
        return _timed_out(request, text)
    if isinstance(error, (openai.APIConnectionError, httpx2.TransportError)):
        text = (
            f"No whole answer from {tried}: {str(reason).rstrip('.') or type(reason).__name__}. "
            "Is the server running? `vllm serve MODEL --logits-processors "
            "langchain_llama_stop.vllm:EosRewardLogitsProcessor` starts one."
        )
        return base.OpenAIConnectionError(message=text, request=request)
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or error.message)
    status = error.status_code if isinstance(error, openai.APIStatusError) else body.get("code")
    status = status if isinstance(status, int) else 500  # in a stream it stands in the body
    refused = 400 <= status < 500 and status not in (408, 429)
    text = f"{tried} {'refuses' if refused else 'fails'} the request (status {status}): {message}"
    kind: type[openai.APIStatusError] = _KINDS.get(status, base.OpenAIAPIError)
    if status == 400 and "context length" in message:
        kind = base.OpenAIContextOverflowError
    elif status == 401:
        text = f"{tried} takes no requests without its key: give `api_key` ({message})."
    response = getattr(error, "response", None) or httpx2.Response(status, request=request)
    return kind(text, response=response, body=error.body)


def _timed_out(request: httpx2.Request, text: str) -> Exception:
    """The error of a time-out, whose class takes no message, with one."""
    error = base.OpenAITimeoutError(request)
    error.message, error.args = text, (text,)
    return error


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

    def turns(self, request: httpx2.Request) -> Iterator[tuple[int, bool]]:
        """Directs a request at the servers in turn; gives the number of each, and if it is last.

        The request is written for the first of the list. One that a redirect has sent elsewhere is
        left alone.
        """
        path = str(request.url).removeprefix(f"{self._roots[0]}/")
        if path == str(request.url):
            yield -1, True
            return
        count, first = len(self._roots), self._first
        for turn in range(count):
            index = (first + turn) % count
            request.url = httpx2.URL(f"{self._roots[index]}/{path}")
            request.headers["Host"] = request.url.netloc.decode("ascii")
            yield index, turn == count - 1

    def settles(self, index: int, last: bool, outcome: httpx2.Response | Exception) -> bool:
        """Notes what came of a server; whether the request ends with it."""
        if index < 0:
            return True
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
        turns = self._servers.turns(request)
        while True:
            index, last = next(turns)
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
        self._inner = httpx2.AsyncHTTPTransport(
            verify=_certificates(), limits=_ASYNC_LIMITS, socket_options=_KEEPALIVE
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """As `ServersInTurn.handle_request`."""
        turns = self._servers.turns(request)
        while True:
            index, last = next(turns)
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


_MADE: weakref.WeakSet[Any] = weakref.WeakSet()
"""Clients of our making: a copy of a model with other servers gets new ones."""


@contextmanager
def clear_errors(roots: Sequence[str]) -> Iterator[None]:
    """Makes what openai's client raises one of LangChain's errors, which says what to do.

    Args:
        roots: Addresses as `server_root` gives them.

    Raises:
        ModelError: In place of the client's own error.
    """
    try:
        yield
    except (openai.APIError, httpx2.TransportError, TimeoutError) as error:
        raise _model_error(error, roots) from error


def http_clients(roots: Sequence[str], http_client: Any, http_async_client: Any) -> dict[str, Any]:
    """Gives the HTTP clients of a model.

    Args:
        roots: Addresses as `server_root` gives them.
        http_client: The user's own, one that was made here for a model of other servers, or None.
        http_async_client: The same for asyncio.

    Returns:
        Both by name: the user's own, else new ones.

    Raises:
        ValueError: If the user has an own one for several servers.
    """
    given = {"http_client": http_client, "http_async_client": http_async_client}
    own = {name: it for name, it in given.items() if it is not None and not made_here(it)}
    if own and len(roots) > 1:
        raise ValueError(
            f"`{next(iter(own))}` cannot go with several of `base_url`, which are tried in turn by "
            "a client of this class: give one of them."
        )
    made = {
        "http_client": openai.DefaultHttpx2Client(transport=ServersInTurn(roots)),
        "http_async_client": openai.DefaultAsyncHttpx2Client(transport=AsyncServersInTurn(roots)),
    }
    _MADE.update(made.values())
    return {**made, **own}


def made_here(*clients: Any) -> bool:
    """Says whether HTTP clients are those that `http_clients` makes.

    Args:
        *clients: HTTP clients.

    Returns:
        Whether all of them are.
    """
    return all(client in _MADE for client in clients)


def timeouts(seconds: float) -> httpx2.Timeout:
    """Gives the limits of a request.

    Args:
        seconds: How long it may take.

    Returns:
        The same as httpx has it: a server that cannot be reached is given up sooner.
    """
    return httpx2.Timeout(seconds, connect=min(_CONNECT, seconds))
