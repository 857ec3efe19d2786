"""Tests of `stop` for any LangChain model, in the form of LangChain's standard tests.

```python
from langchain_llama_stop.testing import StopChatModelTests


class TestStop(StopChatModelTests):
    @property
    def model_class(self):
        return MyChatModel

    @property
    def model_params(self):
        return {"model": "my-model", "temperature": 0, "max_tokens": 32}
```

Stops are cut out of the model's own unstopped answer. So the only condition is that the model gives
the same answer to a prompt each time, alone and in a batch: on a GPU use float32, because 16-bit
weights round differently in a batch. Needs pytest.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar

import pytest
from langchain_core.language_models import BaseLanguageModel

from langchain_llama_stop.testing._paths import (
    KINDS,
    PATHS,
    CountingCache,
    Listener,
    before_stop,
    run,
    stops_in,
    text_of,
)

SHORT = 6
"""A budget in tokens that cuts an answer."""
SLACK = 4
"""Steps that a model may take before it notices that its stream was closed."""
PATIENCE = 20.0
"""Seconds after which a thread that still runs is a failure."""


class _Bang(Exception):
    """An error that no model raises."""


def _check(passed: bool, message: str) -> None:
    """Fails a test with a message, and without a traceback of this file."""
    if not passed:
        pytest.fail(message, pytrace=False)


def _check_equal(actual: object, expected: object, what: str) -> None:
    """Fails a test if a value is not the expected one."""
    _check(actual == expected, f"{what}: came {actual!r}, but it has to be {expected!r}.")


class StopTests:
    """What both classes share: properties to define, and every test."""

    _results: ClassVar[dict[Any, Any]]

    def __init_subclass__(cls) -> None:
        """Lets each class keep the answers that many tests need."""
        cls._results = {}

    @property
    def model_class(self) -> type[BaseLanguageModel[Any]]:
        """The class to test."""
        raise NotImplementedError

    @property
    def model_params(self) -> dict[str, Any]:
        """Constructor arguments: greedy, with a budget of 24 to 64 tokens."""
        return {"temperature": 0, "max_tokens": 32}

    @property
    def prompts(self) -> list[str]:
        """Prompts whose answers differ and hold some words of four letters or more."""
        return ["What can I do in Paris?", "Why is the sky blue?", "How do I cook rice?"]

    @property
    def constructor_stop(self) -> str | None:
        """The constructor's argument for stops; None where it takes none."""
        for name, field in self.model_class.model_fields.items():
            if {"stop", "stop_sequences"} & {name, field.alias}:
                return field.alias or name
        return None

    def budget(self, tokens: int) -> dict[str, Any]:
        """Constructor arguments that cut an answer after this many tokens."""
        return {"max_tokens": tokens}

    def call_budget(self, tokens: int) -> dict[str, Any]:
        """The same as arguments of a call."""
        return self.budget(tokens)

    def steps(self, model: Any) -> int | None:
        """Tokens or forward passes that the model has computed; None if they cannot be counted."""
        return None

    def metadata(self, path: str, model: Any, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """The metadata of an answer; override it if an integration uses other names."""
        raise NotImplementedError

    def make(self, **params: Any) -> Any:
        """A model of `model_class`, with `model_params` updated by these arguments."""
        return self.model_class(**{**self.model_params, **params})

    def texts(self, path: str, model: Any, prompts: Sequence[str], **kwargs: Any) -> list[str]:
        """The texts of the answers to prompts on a path."""
        return [text_of(result) for result in run(path, model, prompts, **kwargs)]

    def answer(self, path: str, model: Any, **kwargs: Any) -> str:
        """The text of the answer to the first prompt on a path."""
        return self.texts(path, model, self.prompts[:1], **kwargs)[0]

    def whole(self, path: str, prompts: Sequence[str]) -> list[str]:
        """The unstopped answers to prompts on a path, from one call."""
        key = (path, *prompts)
        if key not in self._results:
            self._results[key] = self.texts(path, self.make(), prompts)
        return list(self._results[key])

    def first(self) -> str:
        """The unstopped answer to the first prompt."""
        return self.whole("invoke", self.prompts[:1])[0]

    def with_stop(self, stop: list[str], **params: Any) -> Any:
        """A model with stops from its constructor; skips the test if it takes none."""
        if self.constructor_stop is None:
            pytest.skip("The constructor takes no stop.")
        return self.make(**{self.constructor_stop: stop}, **params)

    # --- stops

    @pytest.mark.parametrize("path", PATHS)
    def test_stop_on_every_path(self, path: str) -> None:
        """The answer is the text before the stop, whichever method was called."""
        stop = stops_in(self.first(), "across words")
        actual = self.answer(path, self.make(), stop=stop)
        _check_equal(actual, before_stop(self.first(), stop), f"{path} with stop={stop!r}")

    @pytest.mark.parametrize("path", ["invoke", "stream"])
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "across words"])
    def test_stop_of_every_kind(self, kind: str, path: str) -> None:
        """A stop is text: it may begin and end inside of tokens, and match with the first token.

        Of several stops the one that completes first wins, in any order of the list.
        """
        stops = stops_in(self.first(), kind)
        for stop in [stops, stops[::-1]][: len(stops)]:
            actual = self.answer(path, self.make(), stop=stop)
            _check_equal(actual, before_stop(self.first(), stop), f"{path} with stop={stop!r}")

    @pytest.mark.parametrize("path", ["batch", "generate"])
    def test_stop_in_every_row(self, path: str) -> None:
        """Each row of a batch ends at its own first stop, and no row ends another."""
        rows = self.whole("batch", self.prompts)
        stop = [stops_in(row, "across words", 0.2 + i % 3 / 8)[0] for i, row in enumerate(rows)]
        actual = self.texts(path, self.make(), self.prompts, stop=stop)
        _check_equal(actual, [before_stop(row, stop) for row in rows], f"{path} with stop={stop!r}")

    @pytest.mark.parametrize("path", ["invoke", "stream"])
    def test_stop_that_does_not_match(self, path: str) -> None:
        """Only a whole stop that the model itself generates ends an answer.

        Not a stop in the prompt, nor one that begins in the prompt, nor one that begins to match
        and never completes: the text that was held back for it is released.
        """
        prompt, whole = self.prompts[0], self.first()
        stop = [s for s in (prompt[-9:], prompt[-4:] + whole[:4]) if s not in whole]
        stop += stops_in(whole, "never complete")
        _check_equal(self.answer(path, self.make(), stop=stop), whole, f"{path} with stop={stop!r}")

    @pytest.mark.parametrize("path", ["invoke", "stream"])
    def test_stop_of_the_constructor(self, path: str) -> None:
        """The constructor's stops are honoured, and those of a call are added to them."""
        early, late = (stops_in(self.first(), "word", share) for share in (0.2, 0.4))
        for ours, call in ((early, None), (early, late), (late, early)):
            what = f"{path} with the constructor's {ours!r} and the call's {call!r}"
            actual = self.answer(path, self.with_stop(ours), **({"stop": call} if call else {}))
            _check_equal(actual, before_stop(self.first(), early), what)

    def test_stop_ends_the_work(self) -> None:
        """A stop saves time: the model takes fewer steps than for the whole answer."""
        model, stop = self.make(), stops_in(self.first(), "across words")
        begin = self.steps(model)
        self.answer("invoke", model)
        middle = self.steps(model)
        self.answer("invoke", model, stop=stop)
        end = self.steps(model)
        if begin is None or middle is None or end is None:
            pytest.skip("`steps` cannot be counted.")
        message = f"{end - middle} steps with stop={stop!r}, {middle - begin} without it."
        _check(end - middle < middle - begin, message)

    @pytest.mark.parametrize("path", ["invoke", "batch", "generate", "stream"])
    def test_trim_of_the_prompt(self, path: str) -> None:
        """No path puts the prompt before the answer."""
        actual = self.answer(path, self.make(**self.budget(SHORT)))
        _check(self.prompts[0] not in actual, f"{path} echoes its prompt: {actual!r}.")

    # --- streams

    @pytest.mark.parametrize("kind", [None, "across words"])
    def test_stream_is_invoke(self, kind: str | None) -> None:
        """The chunks add up to the answer of `invoke`, with nothing lost at the end."""
        stop = stops_in(self.first(), kind) if kind else None
        invoked = self.answer("invoke", self.make(), stop=stop) if kind else self.first()
        streamed = self.answer("stream", self.make(), stop=stop)
        _check_equal(streamed, invoked, f"stream with stop={stop!r}")

    @pytest.mark.parametrize("kind", ["across words", "several"])
    def test_stream_holds_stops_back(self, kind: str) -> None:
        """No chunk holds part of a stop: it could not be taken back. Callbacks see the same."""
        stop, listener, actual = stops_in(self.first(), kind), Listener(), ""
        expected = before_stop(self.first(), stop)
        for chunk in self.make().stream(self.prompts[0], {"callbacks": [listener]}, stop=stop):
            actual += text_of(chunk)
            message = f"A chunk holds part of the stop {stop!r}: {actual!r}, not {expected!r}."
            _check(expected.startswith(actual), message)
        _check_equal("".join(listener.tokens), actual, "on_llm_new_token")

    # --- metadata

    def ends(self, path: str = "invoke") -> list[tuple[dict[str, Any], str, str | None]]:
        """Metadata of a stopped and of a cut answer, each with its finish and stop reason."""
        if ("ends", path) not in self._results:
            stop, prompt = stops_in(self.first(), "several"), self.prompts[0]
            stopped = self.metadata(path, self.make(), prompt, stop=stop)
            cut = self.metadata(path, self.make(**self.budget(SHORT)), prompt)
            self._results["ends", path] = [(stopped, "stop", stop[1]), (cut, "length", None)]
        return list(self._results["ends", path])

    @pytest.mark.parametrize("name", ["finish_reason", "stop_reason", "model_name"])
    def test_metadata_of_an_end(self, name: str) -> None:
        """An agent has to know whether its answer is finished or cut, and which stop ended it."""
        for metadata, reason, stop in self.ends():
            model = metadata.get("model_name") or "a name"
            expected = {"finish_reason": reason, "stop_reason": stop, "model_name": model}[name]
            _check_equal(metadata.get(name), expected, f"{name} ({reason}) in {metadata!r}")

    def test_metadata_token_counts(self) -> None:
        """`usage_metadata` counts the tokens of prompt and answer, not the budget."""
        whole = self.metadata("invoke", self.make(), self.prompts[0])
        counts = []
        for metadata in (*(end[0] for end in self.ends()), whole):
            usage = metadata.get("usage_metadata") or {}
            names = ("input_tokens", "output_tokens", "total_tokens")
            _check(usage.keys() >= set(names), f"No usage_metadata in {metadata!r}.")
            counts.append(tuple(usage[name] for name in names))
        prompt, (stopped, cut, full) = counts[0][0], (count[1] for count in counts)
        message = f"(input, output, total) of a stopped, cut and whole answer: {counts!r}."
        sums = all(count == (prompt, count[1], prompt + count[1]) for count in counts)
        _check(prompt > 0 and sums and cut == SHORT and 0 < stopped < full, message)

    def test_metadata_of_a_stream(self) -> None:
        """A stream's chunks add up to the metadata of `invoke` too."""
        names = ("finish_reason", "stop_reason", "model_name", "usage_metadata")
        for (invoked, *_), (streamed, *_) in zip(self.ends(), self.ends("stream"), strict=True):
            actual, expected = ({n: f.get(n) for n in names} for f in (streamed, invoked))
            _check(bool(expected["finish_reason"]), f"No finish_reason in {invoked!r}.")
            _check_equal(actual, expected, "The metadata of a stream")

    # --- cancellation and errors

    @pytest.mark.parametrize("how", ["close", "aclose", "error in a callback", "error in the loop"])
    def test_cancel_stream(self, how: str) -> None:
        """A stream that is closed early ends its work; an error reaches the caller unchanged.

        No thread may continue, and if `steps` can be counted, only those that had begun are taken.
        The next call gives the right answer.
        """
        model, prompt, whole = self.make(), self.prompts[0], self.first()
        if how == "aclose":  # a pool for awaited calls may keep its idle thread
            asyncio.run(model.ainvoke(prompt))
        threads, counts = set(threading.enumerate()), []

        def count(error: type[Exception] | None = None) -> None:
            counts.append(self.steps(model))
            if error:
                raise error

        async def aclose() -> None:
            stream = model.astream(prompt)
            await anext(stream)
            count()
            await stream.aclose()

        if how == "close":
            stream = model.stream(prompt)
            next(stream)
            count()
            stream.close()
        elif how == "aclose":
            asyncio.run(aclose())
        else:
            listener = Listener(partial(count, _Bang if "callback" in how else None))
            with pytest.raises(_Bang):
                for _ in model.stream(prompt, {"callbacks": [listener]}):
                    if "loop" in how:
                        count(_Bang)
        until = time.monotonic() + PATIENCE
        while others := [t.name for t in threading.enumerate() if t not in threads]:
            _check(time.monotonic() < until, f"{others!r} still run {PATIENCE} s after {how}.")
            time.sleep(0.01)
        begin, end = counts[-1], self.steps(model)
        if begin is not None and end is not None:
            _check(end - begin <= SLACK, f"{end - begin} more steps after {how}.")
        _check_equal(self.answer("invoke", model), whole, f"The next call after {how}")

    # --- cache

    @pytest.mark.parametrize("path", ["invoke", "ainvoke"])
    def test_cache_hit(self, path: str) -> None:
        """A second equal call, on an equal model, is answered from the cache."""
        cache, stop = CountingCache(), stops_in(self.first(), "word")
        first, second = (self.answer(path, self.make(cache=cache), stop=stop) for _ in range(2))
        _check_equal(second, first, f"{path} with stop={stop!r} and a cache, the second time")
        _check_equal(cache.hits, 1, f"Hits of the cache after {path} twice")

    @pytest.mark.parametrize("where", ["constructor", "call"])
    def test_cache_knows_stops(self, where: str) -> None:
        """Models or calls with different stops do not share an answer in one cache."""

        def ask(cache: CountingCache | bool, stop: list[str]) -> str:
            if where == "call":
                return self.answer("invoke", self.make(cache=cache), stop=stop)
            return self.answer("invoke", self.with_stop(stop, cache=cache))

        cache, stops = CountingCache(), [stops_in(self.first(), "word", s) for s in (0.2, 0.4)]
        actual = [ask(cache, stop) for stop in stops]
        expected = [ask(False, stop) for stop in stops]
        _check_equal(actual, expected, f"The stops {stops!r} ({where}) with one cache")

    @pytest.mark.parametrize("where", ["constructor", "call"])
    def test_cache_knows_the_budget(self, where: str) -> None:
        """Models or calls with different options, such as a budget, do not share an answer."""
        cache, answers = CountingCache(), []
        for tokens in (SHORT, 2 * SHORT):
            params, call = self.budget(tokens), self.call_budget(tokens)
            model = self.make(cache=cache, **(params if where == "constructor" else {}))
            answers.append(self.answer("invoke", model, **(call if where == "call" else {})))
        _check(answers[0] != answers[1], f"Two budgets ({where}) both gave {answers[0]!r}.")


class StopLLMTests(StopTests):
    """Tests of an LLM: subclass it, define `model_class` and `model_params`, and run pytest.

    Metadata is read from `generation_info`, token counts from "usage_metadata" in it.
    """

    @property
    def prompts(self) -> list[str]:
        """Beginnings for the model to continue; see `StopTests`."""
        return ["The history of Paris begins", "To cook rice, first", "Once upon a time"]

    def metadata(self, path: str, model: Any, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """The `generation_info` that callbacks get; a stream of strings has none itself."""
        listener = Listener()
        run(path, model, [prompt], config={"callbacks": [listener]}, **kwargs)
        return listener.ends[0].generations[0][0].generation_info or {}


class StopChatModelTests(StopTests):
    """Tests of a chat model: subclass it, define `model_class` and `model_params`.

    Metadata is read from the message: `response_metadata` and `usage_metadata`.
    """

    def metadata(self, path: str, model: Any, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """The metadata of the message; for a stream, of the sum of its chunks."""
        (message,) = run(path, model, [prompt], **kwargs)
        return {**message.response_metadata, "usage_metadata": message.usage_metadata}
