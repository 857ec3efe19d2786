"""The stop suite: correct fakes pass all tests, and each test can fail."""

import ast
import itertools
import threading
import uuid
from pathlib import Path

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import BaseLLM
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    ChatResult,
    Generation,
    GenerationChunk,
    LLMResult,
)
from pydantic import BaseModel

from langchain_llama_stop import testing
from langchain_llama_stop.testing import StopChatModelTests, StopLLMTests, _paths
from langchain_llama_stop.testing._paths import BROKEN, KINDS, before_stop, stops_in

ANSWER = "The quick brown fox jumps over the lazy dog, while eleven clever cats only watch it. "
WIDTH = 5
STEPS: list[str] = []
RELEASED = threading.Event()


class Fake(BaseModel):
    """A model whose tokens are `WIDTH` characters; `defect` names what is wrong with it."""

    max_tokens: int = 24
    stop: list[str] | None = None
    defect: str = ""

    def pieces(self, prompt, stop, max_tokens=None):
        """Yields pieces of an answer, and last the rest with its metadata."""
        budget = max_tokens or self.max_tokens
        whole = (ANSWER[3 * (len(prompt) % 7) :] + ANSWER)[: budget * WIDTH]
        if self.defect == "leaves state" and STEPS[-1:] == ["broken off"]:
            whole = whole[1:]
        stops = [*(self.stop or ()), *(stop or ())]
        if self.defect == "call replaces constructor" and stop:
            stops = stop
        if self.defect == "ignores stops":
            stops = []
        if self.defect == "only whole tokens":
            stops = [s for s in stops if len(s) == WIDTH]
        searched = prompt if self.defect == "searches the prompt" else ""
        text = prompt if self.defect == "echoes the prompt" else ""
        emitted, count, reason = 0, 0, None
        try:
            for count in range(1, budget + 1):
                STEPS.append("step")
                text += whole[(count - 1) * WIDTH : count * WIDTH]
                if match := self.match(searched + text, stops):
                    reason, start, end = match
                    end = end if self.defect == "keeps the stop" else start
                    text = (searched + text)[:end][len(searched) :]
                    break
                begun = [n for s in stops for n in range(len(s)) if text.endswith(s[:n])]
                kept = 0 if self.defect == "holds nothing back" else max(begun, default=0)
                if len(text) - kept > emitted:
                    yield text[emitted : len(text) - kept], None
                    emitted = len(text) - kept
        except GeneratorExit:
            if self.defect == "works on":
                STEPS.extend(["step"] * (budget - count))
            if self.defect == "leaves a thread":
                threading.Thread(target=RELEASED.wait).start()
            STEPS.append("broken off")
            raise
        if self.defect == "trims afterwards":
            STEPS.extend(["step"] * (budget - count))
        if self.defect == "counts the budget":
            count = budget
        usage = {"input_tokens": len(prompt), "output_tokens": count}
        usage["total_tokens"] = len(prompt) + count
        info = {
            "finish_reason": "stop" if reason else "length",
            "stop_reason": reason,
            "model_name": "fake",
            "usage_metadata": usage,
        }
        yield text[emitted:], {} if self.defect == "no metadata" else info

    def match(self, text, stops):
        """The stop that completes first, its position and its end."""
        if self.defect == "first in the list":
            stops = [next((stop for stop in stops if stop in text), BROKEN)]
        for end in range(len(text) + 1):
            for stop in stops:
                if text[:end].endswith(stop):
                    return stop, end - len(stop), end
        return None

    def reply(self, prompt, stop, **kwargs):
        pieces = list(self.pieces(prompt, stop, **kwargs))
        return "".join(text for text, _ in pieces), pieces[-1][1]

    def streamed(self, prompt, stop, manager, as_chunk, **kwargs):
        stop = [] if self.defect == "stream ignores stops" else stop
        for text, info in self.pieces(prompt, stop, **kwargs):
            if self.defect == "loses the tail" and info is not None:
                text = ""
            if self.defect == "stream without metadata":
                info = info and {}
            chunk = as_chunk(text, info)
            if manager:
                try:
                    manager.on_llm_new_token(text, chunk=chunk)
                except Exception:
                    if self.defect != "swallows errors":
                        raise
            yield chunk

    @property
    def _identifying_params(self):
        if self.defect == "empty cache key":
            return {}
        if self.defect == "new cache key each time":
            return {"id": uuid.uuid4().hex}
        return {"max_tokens": self.max_tokens, "own_stop": self.stop}

    @property
    def _llm_type(self):
        return "fake"


class FakeLLM(Fake, BaseLLM):
    def with_options(self, stop, max_tokens):
        """Call options have to become part of the cache key, as LangChain leaves them out."""
        if self.defect == "empty cache key":
            return self.model_copy(update={"stop": [*(self.stop or ()), *(stop or ())]}), None
        return self.model_copy(update={"max_tokens": max_tokens or self.max_tokens}), stop

    def generate(self, prompts, stop=None, callbacks=None, *, max_tokens=None, **kwargs):
        model, stop = self.with_options(stop, max_tokens)
        return BaseLLM.generate(model, prompts, stop, callbacks, **kwargs)

    async def agenerate(self, prompts, stop=None, callbacks=None, *, max_tokens=None, **kwargs):
        model, stop = self.with_options(stop, max_tokens)
        return await BaseLLM.agenerate(model, prompts, stop, callbacks, **kwargs)

    def _generate(self, prompts, stop=None, run_manager=None, **kwargs):
        replies = [self.reply(prompt, stop, **kwargs) for prompt in prompts]
        if self.defect == "one row ends all":
            shortest = min(len(text) for text, _ in replies)
            replies = [(text[:shortest], info) for text, info in replies]
        return LLMResult(generations=[[Generation(text=t, generation_info=i)] for t, i in replies])

    def _stream(self, prompt, stop=None, run_manager=None, **kwargs):
        def as_chunk(text, info):
            return GenerationChunk(text=text, generation_info=info)

        yield from self.streamed(prompt, stop, run_manager, as_chunk, **kwargs)


def message(cls, text, info):
    fields = dict(info or {})
    usage = fields.pop("usage_metadata", None)
    return cls(content=text, response_metadata=fields, usage_metadata=usage)


class FakeChat(Fake, BaseChatModel):
    def _get_llm_string(self, stop=None, **kwargs):
        empty = self.defect == "empty cache key"
        return "" if empty else super()._get_llm_string(stop, **kwargs)

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        text, info = self.reply(messages[-1].text, stop, **kwargs)
        return ChatResult(generations=[ChatGeneration(message=message(AIMessage, text, info))])

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        def as_chunk(text, info):
            return ChatGenerationChunk(message=message(AIMessageChunk, text, info))

        yield from self.streamed(messages[-1].text, stop, run_manager, as_chunk, **kwargs)


class WithFake:
    defect = ""

    @property
    def model_params(self):
        return {"max_tokens": 24, "defect": self.defect}

    @property
    def prompts(self):
        return ["Tell me a story.", "What is it about?", "And then what?"]

    def steps(self, model):
        return len(STEPS)


class TestRightLLM(WithFake, StopLLMTests):
    @property
    def model_class(self):
        return FakeLLM


class TestRightChatModel(WithFake, StopChatModelTests):
    @property
    def model_class(self):
        return FakeChat


def failing(suite, defect):
    """The names of the tests that fail on a model with a defect."""
    suite = type(f"With{defect.title()}", (suite,), {"defect": defect})()
    names = set()
    for name in (name for name in dir(suite) if name.startswith("test_")):
        test = getattr(suite, name)
        marks = [mark.args for mark in getattr(test, "pytestmark", [])]
        for values in itertools.product(*(values for _, values in marks)):
            try:
                test(**dict(zip((argument for argument, _ in marks), values, strict=True)))
            except (Exception, pytest.fail.Exception):
                names.add(name)
                break
    return {name.removeprefix("test_") for name in names}


STOPPED = {"stop_on_every_path", "stop_of_every_kind", "stop_in_every_row"}
STOPPED |= {"stop_of_the_constructor", "stream_holds_stops_back"}
ENDS = {"metadata_of_an_end", "metadata_token_counts", "metadata_of_a_stream"}
CACHED = {"cache_knows_stops", "cache_knows_the_budget"}
DEFECTS = {
    "ignores stops": STOPPED
    | {"stop_ends_the_work", "metadata_of_an_end", "metadata_token_counts"},
    "only whole tokens": STOPPED
    | {"stop_ends_the_work", "metadata_of_an_end", "metadata_token_counts"},
    "keeps the stop": STOPPED,
    "first in the list": {"stop_of_every_kind", "metadata_of_an_end"},
    "one row ends all": {"stop_in_every_row"},
    "searches the prompt": {"stop_that_does_not_match"},
    "call replaces constructor": {"stop_of_the_constructor"},
    "trims afterwards": {"stop_ends_the_work"},
    "echoes the prompt": {"trim_of_the_prompt"},
    "stream ignores stops": STOPPED - {"stop_in_every_row"}
    | {"stream_is_invoke", "metadata_of_a_stream"},
    "holds nothing back": STOPPED,
    "loses the tail": {"stop_of_every_kind", "stop_that_does_not_match"},
    "no metadata": ENDS,
    "counts the budget": {"metadata_token_counts"},
    "stream without metadata": {"metadata_of_a_stream"},
    "works on": {"cancel_stream"},
    "leaves a thread": {"cancel_stream"},
    "leaves state": {"cancel_stream"},
    "swallows errors": {"cancel_stream"},
    "empty cache key": CACHED,
    "new cache key each time": {"cache_hit"},
}
# LangChain batches chats by single calls, and calls the callbacks of a stream itself.
IMPOSSIBLE_FOR_CHAT = {"one row ends all", "swallows errors"}


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("suite", [TestRightLLM, TestRightChatModel])
def test_a_defect_fails_its_checks_and_no_others(suite, defect, monkeypatch):
    monkeypatch.setattr(testing, "PATIENCE", 0.05)
    impossible = suite is TestRightChatModel and defect in IMPOSSIBLE_FOR_CHAT
    RELEASED.clear()
    try:
        assert failing(suite, defect) == (set() if impossible else DEFECTS[defect])
    finally:
        RELEASED.set()


@pytest.mark.parametrize("suite", [StopLLMTests, StopChatModelTests])
def test_every_check_can_fail(suite):
    checks = {name.removeprefix("test_") for name in dir(suite) if name.startswith("test_")}
    assert checks == set().union(*DEFECTS.values())


def test_a_failure_says_what_came_instead():
    class Suite(TestRightLLM):
        defect = "keeps the stop"

    with pytest.raises(pytest.fail.Exception, match=r"^stream with stop=.*: came '.*', but it has"):
        Suite().test_stop_on_every_path("stream")


def test_missing_features_are_skipped():
    class Suite(TestRightLLM):
        constructor_stop = None

        def steps(self, model):
            return None

    for call in (Suite().test_stop_ends_the_work, lambda: Suite().with_stop(["x"])):
        with pytest.raises(pytest.skip.Exception):
            call()
    Suite().test_cancel_stream("close")


@pytest.mark.parametrize("suite", [StopLLMTests, StopChatModelTests])
def test_a_class_is_required(suite):
    with pytest.raises(NotImplementedError):
        suite().make()


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ([], "abcabd"),
        (["x"], "abcabd"),
        (["abd"], "abc"),
        (["abcab", "ca"], "ab"),
        (["ca", "abcab"], "ab"),
        (["bc", "abc"], ""),
        (["a"], ""),
    ],
)
def test_the_stop_that_completes_first_counts(stops, expected):
    assert before_stop("abcabd", stops) == expected


@pytest.mark.parametrize("kind", [*KINDS, "never complete"])
def test_stops_are_taken_from_the_answer(kind):
    stops = stops_in(ANSWER, kind)
    assert all((stop in ANSWER) is (kind != "never complete") for stop in stops)
    assert len(stops) == 1 + (kind in ("several", "never complete"))
    if kind not in ("at the beginning", "never complete"):
        assert before_stop(ANSWER, stops) not in ("", ANSWER)
        with pytest.raises(ValueError, match="give other `prompts`"):
            stops_in("Yes.", kind)


def test_the_suite_imports_nothing_else_of_this_package():
    for module, own in ((testing, "langchain_llama_stop.testing._paths"), (_paths, None)):
        for node in ast.walk(ast.parse(Path(module.__file__).read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("langchain_llama_stop"):
                assert node.module == own
