"""JSON schemas into grammars: what is a schema in them, and what only looks like one."""

import json

import jsonschema
import pytest

from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.grammar.schema import (
    Grammar,
    compile_error,
    json_grammar,
    json_rule,
    strict,
)
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import TOKENIZERS, ScriptedLlama, hashed_scores, make_pipeline

KEYWORDS = (
    "type enum const anyOf oneOf allOf items prefixItems properties patternProperties required "
    "additionalProperties default examples title description $ref $defs definitions"
).split()


def object_of(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


A, B = object_of(a={"type": "integer"}), object_of(b={"type": "integer"})


def answer(schema, seed=0, budget=60):
    """The answer of a model with random scores under a schema."""
    tokenizer = TOKENIZERS["bytes"]
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    pipe = make_pipeline(ScriptedLlama(size, hashed_scores(size, seed), eos, eos), tokenizer)
    opts = GenerationOptions.parse({"json_schema": schema, "max_new_tokens": budget})
    return json.loads(generate(pipe, ["go"], opts)[0].text)


@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("value", [{"type": "string"}, {"enum": ["cat", "dog"]}])
def test_a_property_may_be_named_like_a_keyword(keyword, value):
    schema = object_of(**{keyword: value})
    found = answer(schema)
    assert found.keys() == {keyword}
    jsonschema.validate(found, schema)
    nested = object_of(a={"type": "array", "items": schema, "minItems": 1})
    jsonschema.validate(answer(nested), nested)


@pytest.mark.parametrize("keyword", ["default", "examples", "const", "enum"])
def test_values_are_no_schemas(keyword):
    value = {"properties": {"a": 1}, "type": "cat", "items": [3]}
    field = {keyword: value if keyword in ("default", "const") else [value]}
    schema = {"type": "object", "properties": {"a": {"type": "string"}}} | field
    if keyword in ("const", "enum"):
        schema = field
    assert strict(schema)[keyword] == field[keyword]
    jsonschema.validate(answer(schema), schema)


@pytest.mark.parametrize(
    "around",
    [
        lambda s: {"$defs": {"x": s}},
        lambda s: {"patternProperties": {"x": s}},
        lambda s: {"items": s},
        lambda s: {"prefixItems": [s]},
        lambda s: {"anyOf": [s, {"type": "null"}]},
        lambda s: {"allOf": [s]},
        lambda s: {"additionalProperties": s},
    ],
)
def test_objects_are_closed_wherever_they_stand(around):
    closed = around(A | {"additionalProperties": False})
    assert strict(around(A)) == closed and strict(closed) == closed
    open_ = around(A | {"additionalProperties": True})
    assert strict(open_) == open_


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [A, B]},
        {**A, "anyOf": [B]},
        {"allOf": [A, {"anyOf": [B]}]},
        {"$defs": {"A": A, "B": B}, "allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]},
        {"$defs": {"A": A}, "$ref": "#/$defs/A", **B},
    ],
)
def test_what_several_schemas_describe_together_stays_open(schema):
    found = answer(schema)
    assert found.keys() >= {"a", "b"}
    jsonschema.validate(found, schema)


def test_one_schema_in_all_of_is_closed():
    """As Pydantic v1 writes a field that is a model."""
    schema = {"definitions": {"A": A}} | object_of(x={"allOf": [{"$ref": "#/definitions/A"}]})
    assert strict(schema)["definitions"]["A"]["additionalProperties"] is False
    assert answer(schema)["x"].keys() == {"a"}


def test_every_part_that_a_token_may_begin_is_known():
    parts = json_grammar(object_of(a=A, b={"type": "array", "items": B})).parts
    for rule in (A, B, {"type": "integer"}, object_of(a=A)):
        assert f"start: {json_rule(rule)}" in parts
    assert all(compile_error(part) == "" for part in parts)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"type": "colour"},
            r"`json_schema` has to be a schema .*\(Invalid type: colour\): correct",
        ),
        ({"x": {1, 2}}, "`json_schema` has to be JSON .*not JSON serializable"),
        ({"not": {"type": "string"}}, 'Unimplemented keys: \\["not"\\]'),
    ],
)
def test_a_schema_that_cannot_be_used_is_refused(schema, message):
    with pytest.raises(ValueError, match=message) as caught:
        json_grammar(schema)
    assert "x-guidance" not in str(caught.value)


def test_a_grammar_of_ones_own_is_compiled_at_once():
    with pytest.raises(ValueError, match="`grammar` has to be in llguidance's Lark form"):
        GenerationOptions.parse({"grammar": "start: ("})
    assert Grammar.parse('start: "a"') == Grammar('start: "a"')
