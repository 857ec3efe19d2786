"""JSON of a schema, whatever the model prefers, within the budget."""

import json
import time
from dataclasses import replace

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.chat.tool_formats import call_grammar, parse_tool_calls
from langchain_llama_stop.chat.tool_formats.hermes import HERMES
from langchain_llama_stop.chat.tool_formats.llama3 import LLAMA_3
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.grammar.processor import GrammarProcessor
from langchain_llama_stop.grammar.schema import Grammar, json_grammar
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import TOKENIZERS, ScriptedLlama, hashed_scores, make_pipeline

ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
    "required": ["street", "city"],
}
SCHEMAS = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 2},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "address": ADDRESS,
        },
        "required": ["name", "age"],
    },
    {"type": "array", "items": {"type": "number"}, "minItems": 2},
    {"enum": ["red", "green"]},
    {"type": "object"},
    {"anyOf": [ADDRESS, {"type": "boolean"}]},
    {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["value", "next"],
            }
        },
        "$ref": "#/$defs/node",
    },
]


def pipeline(name, seed):
    tokenizer = TOKENIZERS[name]
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    return make_pipeline(ScriptedLlama(size, hashed_scores(size, seed), eos, eos), tokenizer)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    schema=st.sampled_from(SCHEMAS),
    name=st.sampled_from(sorted(TOKENIZERS)),
    seed=st.integers(0, 10**6),
    budget=st.integers(1, 90),
)
def test_an_answer_fits_its_schema_and_its_budget(schema, name, seed, budget):
    opts = GenerationOptions.parse({"json_schema": schema, "max_new_tokens": budget})
    pipe = pipeline(name, seed)
    try:
        response = generate(pipe, ["go", "on"], opts)[0]
    except ValueError as error:
        assert "`max_new_tokens` has to be" in str(error) and budget < 40
        return
    assert len(response.token_ids) <= budget and response.finish_reason == "stop"
    assert response.token_ids[-1] == TOKENIZERS[name].eos_token_id
    jsonschema.validate(json.loads(response.text), schema)
    assert "".join(c.text for c in stream_generate(pipe, "go", opts)) == response.text


def test_a_budget_that_just_suffices():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    opts = {"json_schema": schema, "max_new_tokens": len('{"a": 0}') + 1}
    response = generate(pipeline("bytes", 1), ["go"], GenerationOptions.parse(opts))[0]
    assert json.loads(response.text).keys() == {"a"}
    opts["max_new_tokens"] -= 1
    with pytest.raises(
        ValueError,
        match="has to be 9 or more for the smallest .*`json_schema`, but is 8",
    ):
        generate(pipeline("bytes", 1), ["go"], GenerationOptions.parse(opts))


def test_a_schema_that_cannot_be_compiled_is_refused():
    with pytest.raises(ValueError, match="`json_schema` has to be a schema .*colour"):
        opts = GenerationOptions.parse({"json_schema": {"type": "colour"}})
        generate(pipeline("bytes", 1), ["go"], opts)


def test_the_processor_keeps_no_state_that_matters():
    tokenizer = TOKENIZERS["bytes"]
    make = {"prompt_length": 1, "max_new_tokens": 40, "eos_token_ids": [tokenizer.eos_token_id]}
    one = GrammarProcessor(tokenizer, json_grammar(SCHEMAS[0]), **make)
    scores = torch.zeros(1, len(tokenizer))
    texts = ['{"name": "ab', '{"', '{"name": "abc", "age": 1', ""]
    for text in [*texts, *texts[::-1]]:
        ids = torch.tensor([[0, *text.encode()]])
        fresh = GrammarProcessor(tokenizer, json_grammar(SCHEMAS[0]), **make)
        assert torch.equal(one(ids, scores), fresh(ids, scores))


TOOLS = [
    {"type": "function", "function": {"name": "add", "parameters": ADDRESS}},
    {
        "type": "function",
        "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
    },
]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    fmt=st.sampled_from([HERMES, LLAMA_3]),
    choice=st.sampled_from(["any", "add", "now", "auto", None]),
    schema=st.sampled_from([None, SCHEMAS[0]]),
    name=st.sampled_from(sorted(TOKENIZERS)),
    seed=st.integers(0, 10**6),
    budget=st.integers(90, 140),
)
def test_a_call_is_one_of_the_tools_and_complete(fmt, choice, schema, name, seed, budget):
    grammar = call_grammar(TOOLS, fmt, choice=choice, schema=schema)
    opts = GenerationOptions.parse({"grammar": grammar, "max_new_tokens": budget})
    response = generate(pipeline(name, seed), ["go"], opts)[0]
    assert len(response.token_ids) <= budget
    found = parse_tool_calls(response.text, {"add", "now"})
    assert found.invalid == [] and (found.calls or choice in ("auto", None))
    for called, arguments in found.calls:
        assert choice not in ("add", "now") or called == choice
        parameters = next(t["function"] for t in TOOLS if t["function"]["name"] == called)
        jsonschema.validate(arguments, parameters["parameters"])
    if not found.calls and schema:
        jsonschema.validate(json.loads(response.text), schema)


@pytest.mark.parametrize(
    ("fmt", "begun", "unconstrained"),
    [
        (HERMES, 'I see "<tool', True),
        (HERMES, 'I see "<tool_call>', False),
        (LLAMA_3, "{", True),
        (LLAMA_3, '{"age": 3}', True),
        (LLAMA_3, '{"name": ', False),
        (LLAMA_3, 'So {"name": ', True),
    ],
)
def test_an_answer_is_unconstrained_until_a_call_begins(fmt, begun, unconstrained):
    tokenizer = TOKENIZERS["bytes"]
    grammar = call_grammar(TOOLS, fmt, choice=None)
    processor = GrammarProcessor(
        tokenizer,
        grammar,
        prompt_length=0,
        max_new_tokens=200,
        eos_token_ids=[tokenizer.eos_token_id],
    )
    scores = processor(torch.tensor([list(begun.encode())]), torch.zeros(1, len(tokenizer)))
    assert processor.unconstrained
    assert scores[0, tokenizer.eos_token_id].isfinite().item() is unconstrained
    assert (scores[0].isfinite().sum() > 100).item() is unconstrained


def test_a_grammar_of_ones_own():
    opts = GenerationOptions.parse({"grammar": 'start: "yes" | "no"', "max_new_tokens": 8})
    assert generate(pipeline("bytes", 3), ["go"], opts)[0].text in ("yes", "no")
    with pytest.raises(ValueError, match="`grammar` has to be a Lark grammar"):
        GenerationOptions.parse({"grammar": 3})
    with pytest.raises(ValueError, match="say the same"):
        GenerationOptions.parse({"grammar": "start: /a/", "json_schema": {"type": "object"}})
    with pytest.raises(ValueError, match="has to be 4 or more for the smallest .*`grammar`, but"):
        opts = opts.updated({"grammar": 'start: "yes"', "max_new_tokens": 2})
        generate(pipeline("bytes", 3), ["go"], opts)


@settings(max_examples=40, deadline=None)
@given(
    grammar=st.sampled_from(
        [
            "start: (/[A-Za-z,]+ /)*",
            'start: "no" | "y " /[0-9]{60}/',
            'start: "a"+ | "b(" inner ")"\ninner: "c"{30} | "d" "(" inner ")"',
            'start: /[A-Za-z ,]+/ "."',
            'start: "y" /[0-9]{80}/ | "zo"',
            'start: /[a-z ]+/ /[0-9]{2}/ "END"',
            'start: "- " /[^\\n]+/ ("\\n- " /[^\\n]+/){2}',
        ]
    ),
    name=st.sampled_from(sorted(TOKENIZERS)),
    seed=st.integers(0, 10**6),
    budget=st.integers(12, 90),
    temperature=st.sampled_from([0, 2]),
)
def test_a_grammar_of_ones_own_is_complete_within_the_budget(
    grammar, name, seed, budget, temperature
):
    options = {
        "grammar": grammar,
        "max_new_tokens": budget,
        "temperature": temperature,
        "seed": seed,
    }
    opts = GenerationOptions.parse(options)
    response = generate(pipeline(name, seed), ["go"], opts)[0]
    assert len(response.token_ids) <= budget
    assert (response.finish_reason, response.eos_source) == ("stop", "model")
    answer = torch.tensor([response.token_ids[:-1]], dtype=torch.long)  # (1, tokens)
    tokenizer = TOKENIZERS[name]
    eos = tokenizer.eos_token_id
    processor = GrammarProcessor(
        tokenizer, opts.grammar, prompt_length=0, max_new_tokens=budget, eos_token_ids=[eos]
    )
    assert processor(answer, torch.zeros(1, len(tokenizer)))[0, eos].isfinite()


@pytest.mark.parametrize(
    ("digits", "budget", "least"),
    [(1500, 1100, "1501 or more"), (3000, 1500, "3001 or more"), (5000, 4990, "over 4096")],
)
def test_a_grammar_whose_smallest_answer_is_too_long_is_refused_quickly(digits, budget, least):
    opts = {"grammar": f"start: /[0-9]{{{digits}}}/", "max_new_tokens": budget}
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"`max_new_tokens` has to be {least}"):
        generate(pipeline("bytes", 1), ["go"], GenerationOptions.parse(opts))
    assert time.monotonic() - began < 20


def test_an_answer_is_begun_though_the_favourite_is_not_allowed():
    """An empty answer may be complete, but says nothing."""
    tokenizer = TOKENIZERS["bytes"]
    eos = tokenizer.eos_token_id
    grammar = Grammar("start: /[a-z]*/")
    processor = GrammarProcessor(
        tokenizer, grammar, prompt_length=0, max_new_tokens=9, eos_token_ids=[eos]
    )
    scores = torch.zeros(1, len(tokenizer))
    scores[0, ord("!")] = 5
    begun, empty = torch.tensor([[*b"ab"]]), torch.zeros(1, 0, dtype=torch.long)  # (1, generated)
    assert processor(begun, scores).isfinite().nonzero()[:, 1].tolist() == [eos]
    assert processor(empty, scores).isfinite().nonzero()[:, 1].tolist() == [*range(97, 123), eos]


def test_control_tokens_of_a_prompt_are_text_on_demand():
    tokenizer = TOKENIZERS["byte_bpe"]
    prompt = f"a{tokenizer.eos_token}b"
    counts = [
        generate(
            pipeline("byte_bpe", 1),
            [prompt],
            GenerationOptions(split_special_tokens=value, max_new_tokens=2),
        )[0].prompt_tokens
        for value in (None, True)
    ]
    assert counts[1] > counts[0]


@pytest.mark.parametrize("pattern", ["^(no|y[0-9]{60})$", "^a?(b{30})?$", "^(x|(ab){20}c)+$"])
@pytest.mark.parametrize("name", sorted(TOKENIZERS))
@pytest.mark.parametrize("seed", range(4))
def test_a_long_choice_inside_a_pattern_is_made_only_if_it_fits(pattern, name, seed):
    schema = {
        "type": "object",
        "properties": {"a": {"pattern": pattern, "type": "string"}},
        "required": ["a"],
    }
    for budget in (14, 24, 45):
        options = {"json_schema": schema, "max_new_tokens": budget, "seed": seed}
        options["temperature"] = 1.5 * (seed % 2)
        response = generate(pipeline(name, seed), ["go"], GenerationOptions.parse(options))[0]
        assert response.finish_reason == "stop", response.text
        jsonschema.validate(json.loads(response.text), schema)


def test_a_grammar_on_which_llguidance_gives_up_is_an_error_and_no_wrong_answer():
    schema = {"type": "integer"}
    bounds = {"minimum": -(10**15) + 1, "maximum": 10**15 - 1}
    words = {**schema, **bounds, "multipleOf": 99991}  # too many states for its lexer
    lark = f"start: r0\nr0: t0\nt0: %json {json.dumps(words)}"
    grammar = replace(json_grammar(schema), lark=lark)
    tokenizer = TOKENIZERS["bytes"]
    make = {"prompt_length": 1, "max_new_tokens": 40, "eos_token_ids": [tokenizer.eos_token_id]}
    processor = GrammarProcessor(tokenizer, grammar, **make)
    with pytest.raises(RuntimeError, match="`json_schema` has to be .* llguidance can follow"):
        for digits in ("", "7", "73", "731", "7319", "73190"):
            processor(torch.tensor([[0, *digits.encode()]]), torch.zeros(1, len(tokenizer)))
