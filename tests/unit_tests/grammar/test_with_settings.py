"""A grammar goes before settings that forbid the only token it allows; its caches are bounded."""

import ctypes
import gc
import json
import resource
from pathlib import Path

import pytest
import torch

from langchain_llama_stop import LlamaStopLLM
from langchain_llama_stop.engine.generate import generate
from tests.fakes.generation import encode, options, tiny

ALL = list(range(32, 127))
SETTINGS = {
    "min_new_tokens": {"min_new_tokens": 38},
    "min_length": {"min_length": 40},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
    "bad_words_ids": {"bad_words_ids": [[t] for t in encode("bytes", '"a[]tf1,{}')]},
    "suppress_tokens": {"suppress_tokens": [*ALL, 258]},
    "begin_suppress_tokens": {"begin_suppress_tokens": ALL},
    "sequence_bias": {"sequence_bias": [[[t], -float("inf")] for t in ALL]},
    "remove_invalid_values": {"suppress_tokens": ALL, "remove_invalid_values": True},
    "repetition_penalty": {"repetition_penalty": 9.0, "no_repeat_ngram_size": 2},
    "exponential_decay": {"exponential_decay_length_penalty": [2, 5.0], "min_new_tokens": 30},
}
SCHEMAS = {
    "boolean": ({"type": "boolean"}, lambda value: value in (True, False)),
    "list": (
        {"type": "array", "items": {"enum": ["aa"]}, "minItems": 2, "maxItems": 2},
        lambda value: value == ["aa", "aa"],
    ),
    "object": (
        {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
        lambda value: isinstance(value["a"], int),
    ),
    "const": ({"const": {"aaa": None}}, lambda value: value == {"aaa": None}),
}


HOW = [{"temperature": 0}, {"temperature": 0.7, "seed": 1}]


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_the_answer_fits_whatever_the_settings_forbid(settings, schema):
    how = HOW[len(settings + schema) % 2]
    given, fits = SCHEMAS[schema]
    opts = options(json_schema=given, pipeline_kwargs=SETTINGS[settings], **how)
    for response in generate(tiny(), ["x"], opts):
        assert fits(json.loads(response.text)), response.text
        assert response.finish_reason == "stop"


@pytest.mark.parametrize("grammar", ['start: "ab" "ab"', "start: /a{3,9}b/", 'start: "yes" | "no"'])
@pytest.mark.parametrize("settings", ["no_repeat_ngram_size", "suppress_tokens", "min_new_tokens"])
def test_so_does_an_answer_of_a_lark_grammar(grammar, settings):
    opts = options(grammar=grammar, temperature=0, pipeline_kwargs=SETTINGS[settings])
    response = generate(tiny(), ["x"], opts)[0]
    assert response.text in ("abab", "yes", "no", *("a" * n + "b" for n in range(3, 10)))
    assert response.eos_source == "model"


def test_a_processor_of_the_users_cannot_forbid_it_either():
    opts = options(
        json_schema={"type": "boolean"},
        logits_processor=[lambda ids, scores: torch.full_like(scores, -torch.inf)],
    )
    assert generate(tiny(), ["x"], opts)[0].text in ("true", "false")


def test_scores_that_are_no_numbers_are_still_an_error():
    opts = options(
        json_schema={"type": "boolean"},
        logits_processor=[lambda ids, scores: torch.full_like(scores, torch.nan)],
    )
    with pytest.raises(FloatingPointError):
        generate(tiny(), ["x"], opts)


def megabytes():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_schemas_are_not_kept_for_ever():
    model = LlamaStopLLM(pipeline=tiny(), max_new_tokens=24, temperature=0, eos_reward=False)

    def ask(number):
        item = {"type": "object", "properties": {f"v{number}": {"type": "null"}}}
        schema = {"type": "array", "minItems": 1, "maxItems": 1, "items": item}
        assert json.loads(model.invoke("x", json_schema=schema)) in ([{}], [{f"v{number}": None}])

    for number in range(36):
        ask(number)
    before = megabytes()
    for number in range(36, 66):
        ask(number)
    assert megabytes() - before < 3  # kept, these 30 take 5
