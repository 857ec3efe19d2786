"""Faults in an answer: its own call gets the error, nothing is left, the next call is right."""

import threading
import warnings

import pytest
import torch
from langchain_core.callbacks import BaseCallbackHandler
from transformers import LogitsProcessor

from langchain_llama_stop import LlamaStopLLM
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.engine.prefix_cache import prefix_cache_of
from tests.fakes.generation import options, tiny
from tests.fakes.threads import at_rest

ODD = {
    "NaN": lambda scores: scores.fill_(float("nan")),
    "one NaN": lambda scores: scores[:, -1:].fill_(float("nan")),
    "all forbidden": lambda scores: scores.fill_(-float("inf")),
}
SAMPLED = {"temperature": 1.0, "seed": 1}


class From(LogitsProcessor):
    """Does something to the scores from a length on."""

    def __init__(self, length, change):
        self.length, self.change = length, change

    def __call__(self, input_ids, scores):
        if input_ids.shape[1] >= self.length:
            self.change(scores)
        return scores


def spoiled(pipeline, change, passes):
    """A model whose scores are changed in one pass, the n-th."""
    count = []

    def hook(module, args, output):
        count.append(1)
        if len(count) == passes:
            change(output.logits[:1, -1])

    return pipeline.model.register_forward_hook(hook)


def other_threads():
    return {t for t in threading.enumerate() if t.name != "llama-stop engine"}


@pytest.fixture
def quiet():
    """No thread is left but the engines' own, and none has raised unseen."""
    before = other_threads()
    yield
    assert other_threads() <= before


@pytest.mark.parametrize("passes", [1, 2, 9])
@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kind", ODD)
def test_scores_that_are_no_numbers(kind, sampling, passes, quiet):
    pipeline = tiny()
    longer = {"pipeline_kwargs": {"min_new_tokens": 20}}
    opts = options(eos_reward=False, **sampling, **longer)
    prompts = ["A question that is long enough to be kept, I should say", "Hi"]
    expected = [generate(pipeline, [prompt], opts) for prompt in prompts]
    prefix_cache_of(pipeline.model).clear()
    hook = spoiled(pipeline, ODD[kind], passes)
    with pytest.raises(FloatingPointError, match="not numbers, or forbid every token, after"):
        generate(pipeline, prompts[:1], opts)
    hook.remove()
    assert at_rest(pipeline)
    assert [generate(pipeline, [prompt], opts) for prompt in prompts] == expected
    hook = spoiled(pipeline, ODD[kind], passes)
    with pytest.raises(FloatingPointError):
        list(stream_generate(pipeline, "Another one", opts))
    hook.remove()
    assert at_rest(pipeline)


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
def test_infinite_scores(sampling):
    """One infinite score is a choice, greedily; drawn from it is nothing."""
    pipeline = tiny()
    opts = options(eos_reward=False, **sampling)
    hook = spoiled(pipeline, lambda scores: scores[:, 65].fill_(float("inf")), 3)
    if sampling:
        with pytest.raises(FloatingPointError):
            generate(pipeline, ["Hi"], opts)
    else:
        assert generate(pipeline, ["Hi"], opts)[0].token_ids[2] == 65
    hook.remove()


def test_a_processor_of_the_users_own_is_named_not_the_model():
    pipeline = tiny()
    opts = options(logits_processor=[From(5, ODD["NaN"])])
    with pytest.raises(FloatingPointError, match=r"^The scores .* your own `logits_processor`"):
        generate(pipeline, ["Hi"], opts)
    forbidding = From(5, lambda scores: scores.fill_(-float("inf")))
    with pytest.raises(FloatingPointError, match=r"^The settings leave no token to choose after 5"):
        generate(pipeline, ["Hi"], options(logits_processor=[forbidding]))


@pytest.mark.parametrize("passes", [1, 2, 9])
@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), SystemExit(3)])
def test_a_model_that_raises(error, passes, quiet):
    pipeline = tiny()
    expected = generate(pipeline, ["Hi"], options(eos_reward=False))
    count = []

    def fail(module, args):
        count.append(1)
        if len(count) == passes:
            raise error

    hook = pipeline.model.model.layers[-1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(type(error)):
        generate(pipeline, ["A long question, so that it is not in the cache"], options())
    count.clear()
    with pytest.raises(type(error)):
        list(stream_generate(pipeline, "Another long question that is not in the cache", options()))
    hook.remove()
    assert at_rest(pipeline) and generate(pipeline, ["Hi"], options(eos_reward=False)) == expected


def test_a_tokenizer_that_fails_to_decode(monkeypatch, quiet):
    pipeline = tiny()
    expected = generate(pipeline, ["Hi"], options(stop=["zz"]))
    decode, count = type(pipeline.tokenizer).decode, []

    def fail(self, ids, **kwargs):
        count.append(1)
        if len(count) == 4:
            raise OSError("no decoding")
        return decode(self, ids, **kwargs)

    monkeypatch.setattr(type(pipeline.tokenizer), "decode", fail)
    with pytest.raises(OSError, match="no decoding"):
        list(stream_generate(pipeline, "Hi", options(stop=["zz"])))
    assert at_rest(pipeline)
    monkeypatch.undo()
    assert generate(pipeline, ["Hi"], options(stop=["zz"])) == expected


class Raising(BaseCallbackHandler):
    raise_error = True

    def __init__(self, after):
        self.after = after

    def on_llm_new_token(self, token, **kwargs):
        self.after -= 1
        if not self.after:
            raise RuntimeError("a callback")


def test_a_callback_that_raises(quiet):
    llm = LlamaStopLLM(pipeline=tiny(), max_new_tokens=30, temperature=0)
    expected = llm.invoke("Hi")
    for after in (1, 3):
        with pytest.raises(RuntimeError, match="a callback"):
            list(llm.stream("Hi", config={"callbacks": [Raising(after)]}))
        assert at_rest(llm.pipeline) and llm.invoke("Hi") == expected


def test_a_consumer_that_stops_reading(quiet):
    pipeline = tiny()
    expected = generate(pipeline, ["Hi"], options())
    for _ in range(20):
        stream = stream_generate(pipeline, "Hi", options(eos_reward=False))
        next(stream)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del stream
    assert at_rest(pipeline) and generate(pipeline, ["Hi"], options()) == expected


def test_memory_is_back_after_faults():
    pipeline = tiny()
    opts = options(prefix_cache=0, logits_processor=[From(60, ODD["NaN"])])
    import gc

    def tensors():
        gc.collect()
        return sum(x.numel() for x in gc.get_objects() if issubclass(type(x), torch.Tensor))

    sizes = []
    for _ in range(6):
        with pytest.raises(FloatingPointError):
            generate(pipeline, ["x" * 50] * 4, opts)
        assert at_rest(pipeline)  # the other rows leave after the step that runs
        sizes.append(tensors())
    assert sizes[-1] <= sizes[1]
