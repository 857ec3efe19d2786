"""Awaited calls: the same work in threads of a pool of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from typing import Any

from langchain_core.runnables.config import run_in_executor

from langchain_llama_stop._locks import in_forked_child
from langchain_llama_stop.engine.admission import Cancellation, cancelled_by


def _new_pool() -> None:
    """Makes the pool; a forked child has none of its parent's threads, and gets a new one."""
    global _WAITING
    _WAITING = ThreadPoolExecutor(max_workers=1100, thread_name_prefix="llama-stop")


_WAITING: ThreadPoolExecutor
"""Threads of awaited calls, made as they are needed: more than `max_calls` (1024 by default), so
that one call too many is refused and does not wait here."""
_new_pool()
in_forked_child(_new_pool)


class AsyncCallsMixin:
    """`_agenerate` and `_astream`, made of a class's own `_generate` and `_stream`."""

    async def _agenerate(self, *args: Any, run_manager: Any = None, **kwargs: Any) -> Any:
        """Runs `_generate` in a thread; a call that is cancelled leaves the model within one step.

        asyncio's own pool has only a few threads more than there are cores: calls that wait for a
        thread could not share their forward passes with the others.
        """
        callbacks = run_manager.get_sync() if run_manager else None
        cancellation = Cancellation()

        def generate() -> Any:
            with cancelled_by(cancellation):
                return self._generate(*args, run_manager=callbacks, **kwargs)  # type: ignore[attr-defined]

        try:
            return await run_in_executor(_WAITING, copy_context().run, generate)
        except asyncio.CancelledError:
            cancellation.cancel()
            raise

    async def _astream(
        self, *args: Any, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """Runs `_stream` in threads of the same pool; closing it ends the answer in one step."""
        callbacks = run_manager.get_sync() if run_manager else None
        stream = self._stream(*args, run_manager=callbacks, **kwargs)  # type: ignore[attr-defined]
        cancellation = Cancellation()

        def pull() -> Any:
            with cancelled_by(cancellation):
                return next(stream, None)

        try:
            while (chunk := await run_in_executor(_WAITING, copy_context().run, pull)) is not None:
                yield chunk
        finally:
            cancellation.cancel()
            with suppress(ValueError):  # a thread is inside it, and leaves it at once
                stream.close()
