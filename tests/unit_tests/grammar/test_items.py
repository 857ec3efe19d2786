"""Lists end: no item is written over and over, and lists of different items have different ones."""

import itertools
import json

import jsonschema
import pytest
import torch

from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.grammar.items import Items
from langchain_llama_stop.grammar.schema import json_grammar
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import TOKENIZERS, ScriptedLlama, make_pipeline

LISTS = {"type": "array", "items": {"type": "string"}}


def answer(schema, likes, budget=400):
    """The answer of a model of bytes that writes the JSON of `likes` items for ever."""
    tokenizer = TOKENIZERS["bytes"]
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    prompt = len(tokenizer("go")["input_ids"])

    def next_scores(history):
        written = bytes(t for t in history[prompt:] if t < 256).decode(errors="replace")
        scores = torch.zeros(size)
        wanted = likes(written)
        for rank, character in enumerate(wanted):
            scores[ord(character)] = 9 - rank
        return scores

    pipe = make_pipeline(ScriptedLlama(size, next_scores, eos, eos), tokenizer)
    opts = GenerationOptions.parse({"json_schema": schema, "max_new_tokens": budget})
    response = generate(pipe, ["go"], opts)[0]
    return json.loads(response.text), response


def cycle(*items):
    """Likes a list of some items over and over, and its end next."""
    text = "[" + ", ".join(json.dumps(item) for item in items) + ", "
    loop = text[1:]

    def likes(written):
        inside = written[written.index("[") + 1 :] if "[" in written else None
        return text[0] if inside is None else loop[len(inside) % len(loop)] + "]"

    return likes


@pytest.mark.parametrize(
    ("items", "most"),
    [
        (["L"], 16),
        (["red", "green"], 16),
        (["a", "b", "c"], 16),
        (["é", "\\", '"', ","], 16),
        ([3], 64),
        ([True, None], 64),
        ([[1, 2]], 16),
        ([{"k": "v, ]"}], 16),
    ],
)
def test_a_list_in_a_loop_ends(items, most):
    found, response = answer({"type": "array"}, cycle(*items), budget=1200)
    assert found == list(itertools.islice(itertools.cycle(items), most))
    assert response.finish_reason == "stop" and len(response.token_ids) < 1000


def test_the_rest_of_the_object_follows():
    schema = {
        "type": "object",
        "properties": {"tags": LISTS, "size": {"type": "integer"}},
        "required": ["tags", "size"],
    }
    loop = cycle("L")
    found, _ = answer(schema, lambda text: loop(text) if "[" in text else '["{')
    assert found["tags"] == ["L"] * 16 and isinstance(found["size"], int)


@pytest.mark.parametrize("items", [["L"] * 15 + ["M"] * 15, [0, 1] * 31, list("abcdefgh") * 9])
def test_other_lists_are_left_alone(items):
    text = json.dumps(items)
    state = Items().after(text)
    assert state.looped == -1
    split = Items()
    for character in text:
        split = split.after(character)
        assert split.looped == -1
    assert split.open == ()


def test_a_list_that_has_to_go_on_does():
    schema = {**LISTS, "minItems": 20}
    found, _ = answer(schema, cycle("L"))
    assert found == ["L"] * 20


def test_commas_and_brackets_in_strings_are_text():
    text = json.dumps(["a, b]", {"k": ["\\", '",']}, "x"])
    for cut in range(len(text)):
        whole = Items().after(text[:cut]).after(text[cut:])
        assert whole.open == () and not whole.in_string
    inner = Items().after('["a, b]", "')
    assert inner.open[-1].items == ('"a, b]"',) and inner.in_string


@pytest.mark.parametrize(
    "schema",
    [
        {"items": {"enum": ["a", "b", "c"]}},
        {"items": {"enum": [1, 2.5, None]}, "minItems": 2},
        {"items": {"const": "a"}},
        {"items": {"$ref": "#/$defs/E"}, "$defs": {"E": {"enum": ["x", "y"]}}, "maxItems": 1},
        {"items": {"enum": ["a", 3, "b"], "type": "string"}},
    ],
)
def test_different_items_of_an_enum_are_enforced(schema):
    schema = {"type": "array", "uniqueItems": True, **schema}
    grammar = json_grammar(schema)
    assert grammar.unchecked == ()
    checker = jsonschema.Draft202012Validator(schema)
    values = ["a", "b", "c", 1, 2.5, None, "x", "y", 3]
    for size in range(4):
        for items in itertools.product(values, repeat=size):
            place = grammar.parser.begin().after(json.dumps(list(items)))
            assert (place is not None and place.accepting) is checker.is_valid(list(items))


def test_more_different_items_than_there_are_values():
    schema = {"type": "array", "uniqueItems": True, "items": {"enum": ["a", "b"]}, "minItems": 3}
    with pytest.raises(ValueError, match="some value fits, but none does"):
        json_grammar(schema)


def test_other_lists_of_different_items_are_checked_afterwards():
    for items in ({"type": "string"}, {"enum": list("abcdefg")}, {}):
        schema = {"type": "array", "uniqueItems": True, "items": items}
        assert json_grammar(schema).unchecked == ("uniqueItems",)
