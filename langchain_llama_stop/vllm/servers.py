"""Several servers of one model: HTTP clients that try one after another, and clear errors."""

from __future__ import annotations

import functools
import socket
import ssl
import sys
import weakref
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import httpx2
import openai
from langchain_openai.chat_models import base

_CONNECT = 5.0
"""Seconds until the next server is tried where one cannot be reached. Not tuned: time for two more
SYN packets (sent after 1 and 3 seconds), far below the default timeout of 600 seconds."""


def server_root(url: object) -> str:
    """Returns an address of `base_url` without "/v1" at its end.

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
        raise ValueError(f"`base_url` may hold nothing after its path, but is {url!r}.")
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
    """The error of langchain-openai, a `ModelError`, for a request that failed for good.

    Its message says why the request failed and what to do. It is an error of openai's client, too.
    """
    tried = " or ".join(roots)
    request = httpx2.Request("POST", f"{roots[0]}/v1/chat/completions")
    if isinstance(error, TimeoutError):  # LangChain's: an awaited stream gave no chunk in time
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
    status = status if isinstance(status, int) else 500  # a stream has its status in the body
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
    """A time-out error with a message, which its class does not take."""
    error = base.OpenAITimeoutError(request)
    error.message, error.args = text, (text,)
    return error


_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
_ASYNC_LIMITS = httpx2.Limits(max_connections=1000, max_keepalive_connections=0)
"""As many connections as openai's clients have. asyncio's are not kept: a connection belongs to its
event loop, and would break the first request in the next loop."""

_KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
if sys.platform == "linux":  # notices after two minutes that a server's machine is gone
    _KEEPALIVE += [
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    ]

_BUSY = (429, *range(500, 600))

_LATE = (httpx2.ReadTimeout, httpx2.WriteTimeout, httpx2.PoolTimeout)
"""The whole `timeout` is used up: this try ends, the next one starts with the next server."""


class _Servers:
    """The servers in their order, and which one is tried first: the one that answered last."""

    def __init__(self, roots: Sequence[str]) -> None:
        self._roots = roots
        self._first = 0

    async def send(
        self,
        request: httpx2.Request,
        send_once: Callable[[httpx2.Request], Awaitable[httpx2.Response]],
        close: Callable[[httpx2.Response], Awaitable[None]],
    ) -> httpx2.Response:
        """Sends a request, written for the first of the list, to one server after another.

        Returns:
            The first answer that is not "busy", else that of the last server.

        Raises:
            httpx2.TransportError: If the last server cannot be reached, or `timeout` runs out.
        """
        path = str(request.url).removeprefix(f"{self._roots[0]}/")
        if path == str(request.url):  # a redirect leads to another server
            return await send_once(request)
        count, first = len(self._roots), self._first
        for turn in range(count):
            index, is_last = (first + turn) % count, turn == count - 1
            request.url = httpx2.URL(f"{self._roots[index]}/{path}")
            request.headers["Host"] = request.url.netloc.decode("ascii")
            try:
                response = await send_once(request)
            except httpx2.TransportError as error:
                self._leave(index)
                if is_last or isinstance(error, _LATE):
                    raise
                continue
            if response.status_code not in _BUSY:
                self._first = index
                return response
            self._leave(index)
            if is_last:
                return response
            await close(response)
        raise AssertionError("The last server returns or raises.")

    def _leave(self, index: int) -> None:
        """Makes the next server the first, unless another thread has done so."""
        if self._first == index:
            self._first = (index + 1) % len(self._roots)


@functools.cache
def _certificates() -> ssl.SSLContext:
    """The certificates that HTTPS trusts; cached, as reading them is slow."""
    return httpx2.create_ssl_context()


class ServersInTurn(httpx2.BaseTransport):
    """Sends each request to the first server that answers it."""

    def __init__(self, roots: Sequence[str]) -> None:
        """Opens no connection yet; `roots` are addresses as `server_root` returns them."""
        self._servers = _Servers(roots)
        self._inner = httpx2.HTTPTransport(
            verify=_certificates(), limits=_LIMITS, socket_options=_KEEPALIVE
        )
        weakref.finalize(self, self._inner.close)  # nobody closes a chat model

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request by `_Servers.send`, with functions that block."""

        async def send_once(request: httpx2.Request) -> httpx2.Response:
            return self._inner.handle_request(request)

        async def close(response: httpx2.Response) -> None:
            response.close()

        # Nothing in it waits, so its first step is its last, and needs no event loop.
        try:
            self._servers.send(request, send_once, close).send(None)
        except StopIteration as finished:
            return cast(httpx2.Response, finished.value)
        raise AssertionError("A function that blocks has waited.")

    def close(self) -> None:
        """Closes the connections."""
        self._inner.close()


class AsyncServersInTurn(httpx2.AsyncBaseTransport):
    """The same for asyncio."""

    def __init__(self, roots: Sequence[str]) -> None:
        """Opens no connection yet; `roots` are addresses as `server_root` returns them."""
        self._servers = _Servers(roots)
        self._inner = httpx2.AsyncHTTPTransport(
            verify=_certificates(), limits=_ASYNC_LIMITS, socket_options=_KEEPALIVE
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Sends a request by `_Servers.send`."""
        inner = self._inner
        return await self._servers.send(request, inner.handle_async_request, httpx2.Response.aclose)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._inner.aclose()


_OURS: weakref.WeakSet[Any] = weakref.WeakSet()
"""Clients made here. A copy of a model with other servers gets new ones."""


@contextmanager
def clear_errors(roots: Sequence[str]) -> Iterator[None]:
    """Turns errors of openai's client into LangChain's `ModelError`s, which say what to do."""
    try:
        yield
    except (openai.APIError, httpx2.TransportError, TimeoutError) as error:
        raise _model_error(error, roots) from error


def http_clients(roots: Sequence[str], http_client: Any, http_async_client: Any) -> dict[str, Any]:
    """Returns the HTTP clients of a model by name: the user's own, else new ones.

    Args:
        roots: Addresses as `server_root` returns them.
        http_client: The user's own, or one made here for a model with other servers, or None.
        http_async_client: The same for asyncio.

    Raises:
        ValueError: If there are several servers and a client of the user's own.
    """
    clients = {"http_client": http_client, "http_async_client": http_async_client}
    own = {name: it for name, it in clients.items() if it is not None and not are_ours(it)}
    if own and len(roots) > 1:
        raise ValueError(
            f"`{next(iter(own))}` cannot go with several of `base_url`, which are tried in turn by "
            "a client of this class: give one of them."
        )
    new = {
        "http_client": openai.DefaultHttpx2Client(transport=ServersInTurn(roots)),
        "http_async_client": openai.DefaultAsyncHttpx2Client(transport=AsyncServersInTurn(roots)),
    }
    _OURS.update(new.values())
    return {**new, **own}


def are_ours(*clients: Any) -> bool:
    """Returns whether `http_clients` made all of these clients."""
    return all(client in _OURS for client in clients)


def timeouts(seconds: float) -> httpx2.Timeout:
    """Returns the limits of a request, with a lower one for the time until a server is reached."""
    return httpx2.Timeout(seconds, connect=min(_CONNECT, seconds))
