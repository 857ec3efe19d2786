"""Addresses of servers, and what goes wrong at them as LangChain's `ModelError`s."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import httpx2
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)


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


@contextmanager
def clear_errors(roots: Sequence[str]) -> Iterator[None]:
    """Turns failures of the network into `ModelError`s that say what to do."""
    tried = " or ".join(roots)
    try:
        yield
    except (TimeoutError, httpx2.TimeoutException) as error:
        if not isinstance(error, httpx2.ConnectTimeout):
            raise ModelTimeoutError(
                f"`timeout` ran out before {tried} answered: give more seconds, or ask for less."
            ) from error
        raise _broken(tried, "no connection in time") from error
    except httpx2.RequestError as error:
        raise _broken(tried, str(error).rstrip(".") or type(error).__name__) from error


def _broken(tried: str, reason: str) -> ModelError:
    return ModelConnectionError(
        f"No whole answer from {tried}: {reason}. Is the server running? `vllm serve MODEL "
        "--logits-processors langchain_llama_stop.vllm:EosRewardLogitsProcessor` starts one."
    )


_KINDS: dict[int, type[ModelError]] = {
    401: ModelAuthenticationError,
    403: ModelPermissionDeniedError,
    404: ModelNotFoundError,
    408: ModelAPIError,
    409: ModelAPIError,
    429: ModelRateLimitError,
}
_LONGEST = 2000  # characters of a server's own message that are given


def refusal(root: str, response: httpx2.Response, body: bytes) -> ModelError:
    """The error for an answer whose status is not 200."""
    status = response.status_code
    if 300 <= status < 400:
        to = response.headers.get("Location", "")[:200]
        return ModelInvalidRequestError(
            f"{root} sends the request on to {to!r} (status {status}), and no prompt goes to "
            "where nobody has sent it: give that address as `base_url`."
        )
    try:
        told: Any = json.loads(body)
    except (ValueError, RecursionError):
        told = body.decode("utf-8", "replace")
    error = told.get("error", told) if isinstance(told, dict) else told
    failure = status_error(root, status, error or response.reason_phrase)
    seconds = response.headers.get("Retry-After", "")
    if len(seconds) < 6 and seconds.isascii() and seconds.isdigit():
        failure.retry_after = float(seconds)  # type: ignore[attr-defined]
    return failure


def status_error(root: str, status: int, error: Any) -> ModelError:
    """The error for a request that a server refuses, or that breaks it.

    Args:
        root: The server's address.
        status: The HTTP status.
        error: What the server says: a text, or a dict with "message" and "code".
    """
    told = (
        error.get("message") or error.get("detail") or error if isinstance(error, dict) else error
    )
    message = str(told)[:_LONGEST]
    refused = 400 <= status < 500 and status not in (408, 409, 429)
    text = f"{root} {'refuses' if refused else 'fails'} the request (status {status}): {message}"
    if status == 400 and "context length" in message:
        return ContextOverflowError(text)
    if status == 401:
        text = f"{root} takes no requests without its key: give `api_key` ({message})."
    return _KINDS.get(status, ModelInvalidRequestError if refused else ModelAPIError)(text)
