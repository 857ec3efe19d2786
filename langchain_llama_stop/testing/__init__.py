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

Stops are taken from the model's own unstopped answer, so nothing has to be known of the model but
that it answers a prompt twice in the same way, alone and beside others: on a GPU take float32, as
16-bit weights round otherwise in a batch. Needs pytest.
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
"""Steps that a model may take until it notices that its stream was closed."""
PATIENCE = 20.0
"""Seconds after which a thread that still runs counts as one that goes on."""


class _Bang(Exception):
    """An error that no model raises."""


def _check(holds: bool, message: str) -> None:
    if not holds:
        pytest.fail(message, pytrace=False)


def _same(came: object, expected: object, what: str) -> None:
    _check(came == expected, f"{what}: came {came!r}, but it has to be {expected!r}.")


class StopTests:
    """What both classes share: properties to give, and every test."""

    _kept: ClassVar[dict[Any, Any]]

    def __init_subclass__(cls) -> None:
        """Gives each class a place for answers that many tests need."""
        cls._kept = {}

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
        """Constructor arguments that cut an answer after so many tokens."""
        return {"max_tokens": tokens}

    def call_budget(self, tokens: int) -> dict[str, Any]:
        """The same as arguments of a call."""
        return self.budget(tokens)

    def steps(self, model: Any) -> int | None:
        """How many tokens or forward passes the model has computed, where they can be counted."""
        return None

    def metadata(self, path: str, model: Any, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """What an answer says of itself; override it where an integration uses other names."""
        raise NotImplementedError

    def make(self, **params: Any) -> Any:
        """A model of `model_class`, with these arguments over `model_params`."""
        return self.model_class(**{**self.model_params, **params})

    def texts(self, path: str, model: Any, prompts: Sequence[str], **kwargs: Any) -> list[str]:
        """The texts that a path gives for prompts."""
        return [text_of(result) for result in run(path, model, prompts, **kwargs)]

    def answer(self, path: str, model: Any, **kwargs: Any) -> str:
        """The text that a path gives for the first prompt."""
        return self.texts(path, model, self.prompts[:1], **kwargs)[0]

    def whole(self, path: str, prompts: Sequence[str]) -> list[str]:
        """The unstopped answers of a path, from one call."""
        key = (path, *prompts)
        if key not in self._kept:
            self._kept[key] = self.texts(path, self.make(), prompts)
        return list(self._kept[key])

    def first(self) -> str:
        """The unstopped answer to the first prompt."""
        return self.whole("invoke", self.prompts[:1])[0]

    def with_stop(self, stop: list[str], **params: Any) -> Any:
        """A model with stops of its own; skips the test where the constructor takes none."""
        if self.constructor_stop is None:
            pytest.skip("The constructor takes no stop.")
        return self.make(**{self.constructor_stop: stop}, **params)

    # --- stops

    @pytest.mark.parametrize("path", PATHS)
    def test_stop_on_every_path(self, path: str) -> None:
        """The answer is what precedes the stop, whichever method was called."""
        stop = stops_in(self.first(), "across words")
        came = self.answer(path, self.make(), stop=stop)
        _same(came, before_stop(self.first(), stop), f"{path} with stop={stop!r}")

    @pytest.mark.parametrize("path", ["invoke", "stream"])
    @pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "across words"])
    def test_stop_of_every_kind(self, kind: str, path: str) -> None:
        """A stop is text: it may begin and end inside of tokens, and match at once.

        Of several, the one that completes first wins, wherever it stands in the list.
        """
        stops = stops_in(self.first(), kind)
        for stop in [stops, stops[::-1]][: len(stops)]:
            came = self.answer(path, self.make(), stop=stop)
            _same(came, before_stop(self.first(), stop), f"{path} with stop={stop!r}")

    @pytest.mark.parametrize("path", ["batch", "generate"])
    def test_stop_in_every_row(self, path: str) -> None:
        """Each row of a batch ends at the first stop of its own, and no row ends another."""
        rows = self.whole("batch", self.prompts)
        stop = [stops_in(row, "across words", 0.2 + i % 3 / 8)[0] for i, row in enumerate(rows)]
        came = self.texts(path, self.make(), self.prompts, stop=stop)
        _same(came, [before_stop(row, stop) for row in rows], f"{path} with stop={stop!r}")

    @pytest.mark.parametrize("path", ["invoke", "stream"])
    def test_stop_that_does_not_match(self, path: str) -> None:
        """Only a whole stop, and only where the model says it, ends an answer.

        Neither one that stands in the prompt or on its seam, nor one that begins to match and never
        completes: what was held back for it comes all the same.
        """
        prompt, whole = self.prompts[0], self.first()
        stop = [s for s in (prompt[-9:], prompt[-4:] + whole[:4]) if s not in whole]
        stop += stops_in(whole, "never complete")
        _same(self.answer(path, self.make(), stop=stop), whole, f"{path} with stop={stop!r}")

    @pytest.mark.parametrize("path", ["invoke", "stream"])
    def test_stop_of_the_constructor(self, path: str) -> None:
        """The constructor's stops hold, and those of a call are added to them."""
        early, late = (stops_in(self.first(), "word", share) for share in (0.2, 0.4))
        for ours, call in ((early, None), (early, late), (late, early)):
            what = f"{path} with the constructor's {ours!r} and the call's {call!r}"
            came = self.answer(path, self.with_stop(ours), **({"stop": call} if call else {}))
            _same(came, before_stop(self.first(), early), what)

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
        """The answer is the answer: no path puts the prompt before it."""
        came = self.answer(path, self.make(**self.budget(SHORT)))
        _check(self.prompts[0] not in came, f"{path} echoes its prompt: {came!r}.")

    # --- streams

    @pytest.mark.parametrize("kind", [None, "across words"])
    def test_stream_is_invoke(self, kind: str | None) -> None:
        """The chunks add up to what `invoke` gives, with nothing lost at the end."""
        stop = stops_in(self.first(), kind) if kind else None
        invoked = self.answer("invoke", self.make(), stop=stop) if kind else self.first()
        _same(self.answer("stream", self.make(), stop=stop), invoked, f"stream with stop={stop!r}")

    @pytest.mark.parametrize("kind", ["across words", "several"])
    def test_stream_holds_stops_back(self, kind: str) -> None:
        """No chunk brings part of a stop: it could not be taken back. Callbacks see the same."""
        stop, listener, came = stops_in(self.first(), kind), Listener(), ""
        expected = before_stop(self.first(), stop)
        for chunk in self.make().stream(self.prompts[0], {"callbacks": [listener]}, stop=stop):
            came += text_of(chunk)
            message = f"A chunk brings part of the stop {stop!r}: {came!r}, not {expected!r}."
            _check(expected.startswith(came), message)
        _same("".join(listener.tokens), came, "on_llm_new_token")

    # --- metadata

    def ends(self, path: str = "invoke") -> list[tuple[dict[str, Any], str, str | None]]:
        """Metadata of a stopped answer and of a cut one, each with its finish and stop reason."""
        if ("ends", path) not in self._kept:
            stop, prompt = stops_in(self.first(), "several"), self.prompts[0]
            stopped = self.metadata(path, self.make(), prompt, stop=stop)
            cut = self.metadata(path, self.make(**self.budget(SHORT)), prompt)
            self._kept["ends", path] = [(stopped, "stop", stop[1]), (cut, "length", None)]
        return list(self._kept["ends", path])

    @pytest.mark.parametrize("name", ["finish_reason", "stop_reason", "model_name"])
    def test_metadata_of_an_end(self, name: str) -> None:
        """An agent has to know whether its answer is finished or cut, and which stop ended it."""
        for found, reason, stop in self.ends():
            model = found.get("model_name") or "a name"
            expected = {"finish_reason": reason, "stop_reason": stop, "model_name": model}[name]
            _same(found.get(name), expected, f"{name} ({reason}) in {found!r}")

    def test_metadata_token_counts(self) -> None:
        """`usage_metadata` counts the tokens of prompt and answer, not those of the budget."""
        whole = self.metadata("invoke", self.make(), self.prompts[0])
        counts = []
        for found in (*(end[0] for end in self.ends()), whole):
            usage = found.get("usage_metadata") or {}
            names = ("input_tokens", "output_tokens", "total_tokens")
            _check(usage.keys() >= set(names), f"No usage_metadata in {found!r}.")
            counts.append(tuple(usage[name] for name in names))
        prompt, (stopped, cut, full) = counts[0][0], (count[1] for count in counts)
        message = f"(input, output, total) of a stopped, cut and whole answer: {counts!r}."
        sums = all(count == (prompt, count[1], prompt + count[1]) for count in counts)
        _check(prompt > 0 and sums and cut == SHORT and 0 < stopped < full, message)

    def test_metadata_of_a_stream(self) -> None:
        """A stream's chunks add up to the metadata of `invoke` too."""
        names = ("finish_reason", "stop_reason", "model_name", "usage_metadata")
        for (invoked, *_), (streamed, *_) in zip(self.ends(), self.ends("stream"), strict=True):
            came, expected = ({n: f.get(n) for n in names} for f in (streamed, invoked))
            _check(bool(expected["finish_reason"]), f"No finish_reason in {invoked!r}.")
            _same(came, expected, "The metadata of a stream")

    # --- cancellation and errors

    @pytest.mark.parametrize("how", ["close", "aclose", "error in a callback", "error in the loop"])
    def test_cancel_stream(self, how: str) -> None:
        """A stream that is broken off ends its work; an error arrives as itself.

        No thread may go on, and where `steps` can be counted, none but those under way are taken.
        The next call is right.
        """
        model, prompt, whole = self.make(), self.prompts[0], self.first()
        if how == "aclose":  # a pool that awaited calls run in may keep its idle thread
            asyncio.run(model.ainvoke(prompt))
        threads, counts = set(threading.enumerate()), []

        def mark(error: type[Exception] | None = None) -> None:
            counts.append(self.steps(model))
            if error:
                raise error

        async def aclose() -> None:
            stream = model.astream(prompt)
            await anext(stream)
            mark()
            await stream.aclose()

        if how == "close":
            stream = model.stream(prompt)
            next(stream)
            mark()
            stream.close()
        elif how == "aclose":
            asyncio.run(aclose())
        else:
            listener = Listener(partial(mark, _Bang if "callback" in how else None))
            with pytest.raises(_Bang):
                for _ in model.stream(prompt, {"callbacks": [listener]}):
                    if "loop" in how:
                        mark(_Bang)
        until = time.monotonic() + PATIENCE
        while others := [t.name for t in threading.enumerate() if t not in threads]:
            _check(time.monotonic() < until, f"{others!r} still run {PATIENCE} s after {how}.")
            time.sleep(0.01)
        begin, end = counts[-1], self.steps(model)
        if begin is not None and end is not None:
            _check(end - begin <= SLACK, f"{end - begin} more steps after {how}.")
        _same(self.answer("invoke", model), whole, f"The next call after {how}")

    # --- cache

    @pytest.mark.parametrize("path", ["invoke", "ainvoke"])
    def test_cache_hit(self, path: str) -> None:
        """The same call again, by an equal model, is answered from the cache."""
        cache, stop = CountingCache(), stops_in(self.first(), "word")
        first, second = (self.answer(path, self.make(cache=cache), stop=stop) for _ in range(2))
        _same(second, first, f"{path} with stop={stop!r} and a cache, the second time")
        _same(cache.hits, 1, f"Hits of the cache after {path} twice")

    @pytest.mark.parametrize("place", ["constructor", "call"])
    def test_cache_knows_stops(self, place: str) -> None:
        """Models or calls with other stops have answers of their own in one cache."""

        def ask(cache: CountingCache | bool, stop: list[str]) -> str:
            if place == "call":
                return self.answer("invoke", self.make(cache=cache), stop=stop)
            return self.answer("invoke", self.with_stop(stop, cache=cache))

        cache, stops = CountingCache(), [stops_in(self.first(), "word", s) for s in (0.2, 0.4)]
        came, expected = [ask(cache, stop) for stop in stops], [ask(False, stop) for stop in stops]
        _same(came, expected, f"The stops {stops!r} ({place}) with one cache")

    @pytest.mark.parametrize("place", ["constructor", "call"])
    def test_cache_knows_the_budget(self, place: str) -> None:
        """Models or calls with other options, such as a budget, have answers of their own."""
        cache, answers = CountingCache(), []
        for tokens in (SHORT, 2 * SHORT):
            params, call = self.budget(tokens), self.call_budget(tokens)
            model = self.make(cache=cache, **(params if place == "constructor" else {}))
            answers.append(self.answer("invoke", model, **(call if place == "call" else {})))
        _check(answers[0] != answers[1], f"Two budgets ({place}) both gave {answers[0]!r}.")


class StopLLMTests(StopTests):
    """Tests of an LLM: subclass it, give `model_class` and `model_params`, and let pytest run it.

    Metadata is read from `generation_info`, token counts from "usage_metadata" in it.
    """

    @property
    def prompts(self) -> list[str]:
        """Beginnings for the model to go on with; see `StopTests`."""
        return ["The history of Paris begins", "To cook rice, first", "Once upon a time"]

    def metadata(self, path: str, model: Any, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """The `generation_info` that callbacks get; a stream of strings brings none itself."""
        listener = Listener()
        run(path, model, [prompt], config={"callbacks": [listener]}, **kwargs)
        return listener.ends[0].generations[0][0].generation_info or {}


class StopChatModelTests(StopTests):
    """Tests of a chat model: subclass it, give `model_class` and `model_params`.

    Metadata is read from the message: `response_metadata` and `usage_metadata`.
    """

    def metadata(self, path: str, model: Any, prompt: str, **kwargs: Any) -> dict[str, Any]:
        """The metadata of the message; of a stream, that of the sum of its chunks."""
        (message,) = run(path, model, [prompt], **kwargs)
        return {**message.response_metadata, "usage_metadata": message.usage_metadata}
