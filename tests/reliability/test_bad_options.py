"""Wrong options, in the constructor and in calls: each is refused, by name, rule and value."""

import pytest

from langchain_llama_stop import ChatLlamaStop, EosReward, LlamaStopLLM
from tests.fakes import TOKENIZERS
from tests.fakes.generation import tiny

NAN, INF = float("nan"), float("inf")
BAD = {
    "max_new_tokens": [0, -1, 1.5, "many", True, [8]],
    "max_tokens": [0, -5, 2.5, "few"],
    "temperature": [-0.1, NAN, INF, "hot", True],
    "top_p": [0, -0.5, 1.1, NAN, "most"],
    "top_k": [-1, 0.5, "all", True],
    "repetition_penalty": [0, -1.0, NAN, INF, "some"],
    "seed": [-1, 1.5, "x", 2**63, True],
    "stop": [[""], [3], 7, ["a", None], [b"a"], {"a": 1}],
    "stop_token_ids": [[-1], ["a"], 5, [[]], [[1, "b"]], [1.5], [10**9]],
    "eos_reward": [3, "maybe", [True], {"start": 2}, {"strenght": 1}],
    "on_length": ["stop", "KEEP", 1],
    "thinking_tokens": [-1, 1.5, "few", 10**9],
    "json_schema": ["{}", [1], {"type": "nonsense"}, {"not": {"multipleOf": 2}}, {"type": {1}}],
    "grammar": ["", "nonsense", 5, "start: /(/", ["start: /a/"]],
    "return_full_text": ["yes please", 2, None.__class__],
    "split_special_tokens": ["no thanks", 2, [1]],
    "logprobs": ["all of them", 2, [1]],
    "top_logprobs": [-1, 1.5, "five", True],
    "answer_hint": ["", "  ", 5, "{words} words", "{0}", "{sentences.real.x}", "{"],
    "logits_processor": [[3], "x", [None]],
    "stopping_criteria": [[3], "x", [None]],
    "batch_size": [0, -1, 1.5, "many", True],
    "prefix_cache": [-1, 1.5, "on", True],
    "prompt_lookup_num_tokens": [-1, 1.5, "some", True],
    "timeout": [0, -1, NAN, INF, "soon", True],
    "on_timeout": ["stop", "CUT", 0],
    "max_calls": [0, -1, 1.5, "all", True],
    "pipeline_kwargs": ["x", [1], {"num_beams": 4}, {"num_return_sequences": 2}, {"nonsense": 1}],
}
CASES = [(name, value) for name, values in BAD.items() for value in values]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"


@pytest.fixture(scope="module")
def pipeline():
    made = tiny()
    TOKENIZERS["bytes"].chat_template, before = TEMPLATE, TOKENIZERS["bytes"].chat_template
    yield made
    TOKENIZERS["bytes"].chat_template = before


def test_the_table_is_large_enough():
    assert len(CASES) >= 100


@pytest.mark.parametrize("kind", [LlamaStopLLM, ChatLlamaStop])
@pytest.mark.parametrize(("name", "value"), CASES, ids=lambda item: repr(item)[:40])
def test_a_wrong_value_is_refused(pipeline, kind, name, value):
    asks = {
        "constructor": lambda: kind(pipeline=pipeline, **{name: value}),
        "call": lambda: kind(pipeline=pipeline).invoke("Hi", **{name: value}),
        "bind": lambda: kind(pipeline=pipeline).bind(**{name: value}).invoke("Hi"),
        "stream": lambda: list(kind(pipeline=pipeline).stream("Hi", **{name: value})),
    }
    for where, ask in asks.items():
        with pytest.raises(ValueError) as caught:
            ask()
        text = str(caught.value)
        own = {"max_tokens": "max_new_tokens", "pipeline_kwargs": "num_"}.get(name, name)
        named = own in text or name in text or (name == "pipeline_kwargs" and "nonsense" in text)
        assert named or (isinstance(value, dict) and next(iter(value)) in text), (where, text)


@pytest.mark.parametrize("kind", [LlamaStopLLM, ChatLlamaStop])
@pytest.mark.parametrize("name", ["max_new_token", "Temperature", "stops", "n", "best_of", ""])
def test_an_unknown_name_is_refused(pipeline, kind, name):
    for ask in (
        lambda: kind(pipeline=pipeline, **{name: 1}),
        lambda: kind(pipeline=pipeline).invoke("Hi", **{name: 1}),
    ):
        with pytest.raises(ValueError, match="Unknown.*Known: .*max_new_tokens"):
            ask()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"start": 1.4}, "`start` has to be between 0 and 1"),
        ({"start": -0.1}, "`start` has to be between 0 and 1"),
        ({"start": "late"}, "`start` has to be a number"),
        ({"strength": -1}, "`strength` has to be"),
        ({"strength": NAN}, "`strength` has to be"),
        ({"strength": None}, "`strength` has to be a number"),
        ({"boundary": "word"}, "`boundary` has to be one of"),
        ({"close_sentence": 1}, "`close_sentence` has to be True or False"),
        ({"force_eos": "yes"}, "`force_eos` has to be True or False"),
        ({"hindsight": None}, "`hindsight` has to be True or False"),
    ],
)
def test_a_wrong_reward_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        EosReward(**values)
