"""Stops cut out of a model's own answer, and every way to call a LangChain model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from itertools import pairwise
from operator import add
from typing import Any

from langchain_core.caches import RETURN_VAL_TYPE, InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.outputs import LLMResult
from langchain_core.prompt_values import StringPromptValue

PATHS = "invoke ainvoke batch abatch generate agenerate stream astream bind bind.stream".split()
KINDS = ["at the beginning", "word", "inside a word", "across words", "long", "several"]
BROKEN = "\u2603"
"""A character that no answer holds: a stop that ends with it never completes."""


def before_stop(answer: str, stops: Iterable[str]) -> str:
    """Trims an unstopped answer as a model should: before the stop that completes first."""
    spans = [(answer.find(stop) + len(stop), answer.find(stop)) for stop in stops if stop in answer]
    return answer[: min(spans)[1]] if spans else answer


def stops_in(answer: str, kind: str, share: float = 0.2) -> list[str]:
    """Cuts stops out of an unstopped answer.

    Args:
        answer: The unstopped answer.
        kind: One of `KINDS`, or "never complete".
        share: The least share of the answer that precedes the stop, 0 to 1.

    Returns:
        One stop. Two for "several": the one that begins first completes last, by one character.
        Two for "never complete": both only begin to match, one of them at the end of the answer.

    Raises:
        ValueError: If the answer is too short for this kind.
    """
    if kind == "at the beginning" and len(answer) > 3:
        return [answer[:3]]
    if kind == "never complete":
        middle = len(answer) // 2
        return [answer[middle : middle + 6] + BROKEN, answer[-6:] + BROKEN]
    for word, after in pairwise(re.finditer(r"\w{4,}", answer)):
        start, end = word.span()
        if kind == "across words":
            start, end = end - 2, after.start() + 2
        elif kind == "long":
            start, end = start + 1, start + 25
        elif kind != "word":
            start, end = start + 1, end - 1
        if answer.find(answer[start:end]) == start >= share * len(answer):
            inner, outer = answer[start:end], answer[max(0, start - 4) : end + 1]
            return [outer, inner] if kind == "several" else [inner]
    raise ValueError(f"The answer {answer!r} holds no stop ({kind}): give other `prompts`.")


def run(path: str, model: Any, prompts: Sequence[str], **kwargs: Any) -> list[Any]:
    """Calls a model on one of LangChain's paths.

    Args:
        path: One of `PATHS`; with "bind", the arguments are bound.
        model: The model.
        prompts: The prompts.
        **kwargs: Arguments of the call.

    Returns:
        For each prompt a string, message or generation; for a stream, the sum of its chunks.
    """
    if path.startswith("bind"):
        model, path, kwargs = model.bind(**kwargs), path.partition(".")[2] or "invoke", {}
    call = getattr(model, f"{path}_prompt" if path.endswith("generate") else path)
    inputs = [StringPromptValue(text=prompt) for prompt in prompts]

    async def wait() -> Any:
        if path == "astream":
            return [[chunk async for chunk in call(i, **kwargs)] for i in inputs]
        if path == "ainvoke":
            return [await call(i, **kwargs) for i in inputs]
        return await call(inputs, **kwargs)

    results: Any
    if path.startswith("a"):
        results = asyncio.run(wait())
    elif path in ("invoke", "stream"):
        results = [call(i, **kwargs) for i in inputs]
    else:
        results = call(inputs, **kwargs)
    if path.endswith("generate"):
        return [generations[0] for generations in results.generations]
    return [reduce(add, chunks) for chunks in results] if path.endswith("stream") else list(results)


def text_of(result: Any) -> str:
    """The text of a string, message, chunk or generation."""
    return result if isinstance(result, str) else str(result.text)


class Listener(BaseCallbackHandler):
    """Collects tokens and results.

    Args:
        at_token: Called at each token; its errors reach the caller of the model.
    """

    raise_error = True

    def __init__(self, at_token: Callable[[], None] = lambda: None) -> None:
        """Starts empty."""
        self.at_token = at_token
        self.tokens: list[str] = []
        self.ends: list[LLMResult] = []

    def on_llm_new_token(self, token: str, **kwargs: Any) -> None:  # type: ignore[override]
        """Collects a token."""
        self.tokens.append(token)
        self.at_token()

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        """Collects a result."""
        self.ends.append(response)


class CountingCache(InMemoryCache):
    """Counts in `hits` how often it had an answer."""

    hits = 0

    def lookup(self, prompt: str, llm_string: str) -> RETURN_VAL_TYPE | None:
        """Looks up an answer; see `InMemoryCache`."""
        answer = super().lookup(prompt, llm_string)
        self.hits += answer is not None
        return answer
