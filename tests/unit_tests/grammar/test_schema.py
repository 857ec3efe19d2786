"""JSON schemas into grammars: what is a schema in them, and what only looks like one."""

import json

import jsonschema
import pytest

from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.grammar.completion import grammar_tokens
from langchain_llama_stop.grammar.schema import Grammar, json_grammar, violation
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


def fits(schema, text):
    """Whether an answer is allowed."""
    place = json_grammar(schema).parser.begin().after(text.encode().decode("latin-1"))
    return place is not None and place.accepting


@pytest.mark.slow
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
    jsonschema.validate(answer(schema), schema)


@pytest.mark.parametrize(
    ("around", "inside"),
    [
        (lambda s: {"$defs": {"x": s}, "$ref": "#/$defs/x"}, "%s"),
        (lambda s: {"type": "object", "patternProperties": {"x": s}}, '{"x": %s}'),
        (lambda s: {"type": "array", "items": s}, "[%s]"),
        (lambda s: {"type": "array", "prefixItems": [s]}, "[%s]"),
        (lambda s: {"anyOf": [s, {"type": "null"}]}, "%s"),
        (lambda s: {"allOf": [s]}, "%s"),
        (lambda s: {"type": "object", "additionalProperties": s}, '{"y": %s}'),
    ],
)
def test_objects_are_closed_wherever_they_stand(around, inside):
    plain, more = inside % '{"a": 1}', inside % '{"a": 1, "z": 2}'
    for schema in (A, A | {"additionalProperties": False}):
        assert fits(around(schema), plain) and not fits(around(schema), more)
    assert fits(around(A | {"additionalProperties": True}), more)


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
    assert answer(schema)["x"].keys() == {"a"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (
            {"type": "colour"},
            "`json_schema` has to be a schema .* but `type` has to be .*'colour': correct",
        ),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "`\\$ref: #/\\$defs/b` points to nothing"),
        ({"allOf": [{"$ref": "#"}]}, "leads back to itself"),
        ({"type": "string", "minLength": -1}, "`minLength` has to be 0, 1, 2"),
        ({"minimum": "3"}, "`minimum` has to be a number"),
        ({"enum": []}, "some value fits, but none does"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "some value fits, but none does"),
        ({"x": {1, 2}}, "`json_schema` has to be JSON .*not JSON serializable"),
        ({"not": {"multipleOf": 2}}, "`not` cannot be enforced for"),
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


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "string", "format": "x"}, ['"a"'], ["1"]),
        ({**object_of(a={}), "required": ["a", "b"]}, ['{"a": 1, "b": []}'], ['{"a": 1}']),
        (
            {"type": "object", "propertyNames": {"enum": ["x", "y"]}},
            ['{"y": 1, "x": 2}'],
            ['{"z": 1}'],
        ),
        ({"type": "array", "contains": {"const": 2}}, ["[1, 2, 3]", "[2]"], ["[]", "[1]"]),
        ({"not": {"type": "string"}}, ["1", "{}"], ['"a"']),
        ({"not": {"type": "integer"}}, ["1.5", "-0.25", '"a"', "[]"], ["1", "0", "1.0", "-2.00"]),
        ({"type": "number", "not": {"type": "integer"}}, ["0.5"], ["5", '"a"']),
        ({"not": {"type": ["integer", "null"]}, "minimum": 2}, ["2.5", "{}"], ["null", "3", "1.5"]),
        ({"type": "integer", "not": {"type": "integer", "minimum": 5}}, ["4"], ["5"]),
        ({"const": 2.0}, ["2.0", "2"], ["3", "2.5"]),
        ({"enum": [0.5, -1.0, "1.0"]}, ["0.5", "-1", "-1.0", '"1.0"'], ["1", '"1"']),
        (
            {"prefixItems": [{"type": "string"}], "items": True, "unevaluatedItems": False},
            ['["a", 1]'],
            ["[1]"],
        ),
        (
            {"allOf": [{"prefixItems": [{}]}], "items": {}, "unevaluatedItems": {"type": "null"}},
            ["[1, 2]"],
            [],
        ),
        (
            {"oneOf": [{"type": "string", "pattern": "^a"}, {"type": "string", "pattern": "^b"}]},
            ['"a"', '"bx"'],
            ['"c"', "1"],
        ),
        ({"type": "number", "maximum": 1e308, "minimum": -1e300}, ["1.5", "-7"], ['"a"']),
        ({"type": "number", "exclusiveMinimum": 1e-300}, ["0.5"], ["0", "-1"]),
        ({"type": "string", "not": {"enum": ["a", "b"]}}, ['"c"', '"ab"'], ['"a"']),
        ({"type": "string", "not": {"pattern": "^a|b$"}}, ['"c"', '"ba"'], ['"a"', '"cb"']),
        ({"pattern": "a", "not": {"pattern": "aa"}}, ['"aba"'], ['"baa"', '"b"', "1"]),
        ({"not": {"minLength": 2}}, ['"a"', '""'], ['"ab"', "1"]),
        ({"type": "array", "not": {"maxItems": 1}}, ["[1, 2]"], ["[]", "[1]"]),
        ({"type": "object", "not": {"maxProperties": 0}}, ['{"a": 1}'], ["{}"]),
        (
            {
                "properties": {"kind": {"enum": ["a", "b"]}, "n": {"type": "integer"}},
                "required": ["kind"],
                "if": {"properties": {"kind": {"const": "a"}}},
                "then": {"required": ["n"]},
            },
            ['{"kind": "a", "n": 1}', '{"kind": "b"}'],
            ['{"kind": "a"}'],
        ),
        (
            {"dependentRequired": {"a": ["b"]}, "properties": {"a": {}, "b": {}}},
            ['{"b": 1}', "{}", '{"a": 1, "b": 2}'],
            ['{"a": 1}'],
        ),
        (
            {
                "allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}],
                "unevaluatedProperties": False,
            },
            ['{"a": 1, "b": 2}'],
            ['{"c": 1}'],
        ),
        (
            {
                "type": "object",
                "patternProperties": {"^n": {"type": "null"}, "x$": {"const": None}},
            },
            ['{"nx": null, "q": 1}'],
            ['{"nx": 1}', '{"n": 2}'],
        ),
        ({"type": "object", "minProperties": 1, "maxProperties": 2}, ['{"a": 1}'], ["{}"]),
        ({"const": {"a": [1, "é"]}}, ['{"a": [1, "é"]}'], ['{"a": [1]}']),
        ({"enum": [{"a": 1}, [], "x"], "type": ["object", "string"]}, ['{"a": 1}'], ["[]"]),
    ],
    ids=lambda v: json.dumps(v)[:30],
)
def test_keywords(schema, right, wrong):
    for text in right:
        assert fits(schema, text), text
        jsonschema.validate(json.loads(text), schema)
    for text in wrong:
        assert not fits(schema, text), text


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, "0.5", "0"),
        ({"type": "string", "nullable": True}, "null", "1"),
        ({"type": "array", "items": [{"const": 1}], "additionalItems": False}, "[1]", "[1, 2]"),
        ({"dependencies": {"a": ["b"]}, "properties": {"a": {}, "b": {}}}, "{}", '{"a": 1}'),
        ({"definitions": {"x": {"type": "null"}}, "$ref": "#/definitions/x"}, "null", "1"),
    ],
)
def test_older_spellings(schema, right, wrong):
    assert fits(schema, right) and not fits(schema, wrong)


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"type": "array", "items": {"type": "string"}, "uniqueItems": True}, "uniqueItems"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"type": "string", "pattern": r"\bfoo"}, "pattern"),
        ({"type": "array", "contains": {"const": 1}, "minContains": 2}, "minContains"),
    ],
)
def test_what_is_not_enforced_is_told(schema, keyword, caplog):
    grammar = json_grammar(schema, f"`{keyword}_test`")
    assert any(told.startswith(keyword) for told in grammar.unchecked)
    assert f"decoding does not enforce `{keyword}" in caplog.text


def test_a_schema_is_read_once_and_told_of_once_under_all_names(caplog):
    schema = {"type": "array", "items": {"type": "number"}, "uniqueItems": True}
    one, other = json_grammar(schema, "`schema`"), json_grammar(schema)
    assert one.parser is other.parser and caplog.text.count("does not enforce") == 1
    assert (one.argument, other.argument) == ("`schema`", "`json_schema`")
    with pytest.raises(ValueError, match="^`mine` has to be"):
        json_grammar({"type": "x"}, "`mine`")
    with pytest.raises(ValueError, match="^`other` has to be"):
        json_grammar({"type": "x"}, "`other`")


def test_few_grammars_are_kept():
    first = json_grammar({"const": "kept"})
    assert json_grammar({"const": "kept"}).parser is first.parser
    for number in range(40):
        json_grammar({"const": number})
    assert json_grammar({"const": "kept"}).parser is not first.parser


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "array", "items": [{"type": "string"}], "uniqueItems": True}, ["a"], ["a", "a"]),
        ({"type": "array", "items": {"type": "string", "nullable": True}, "uniqueItems": True},
         ["a", None], [None, None]),
        ({"type": "array", "items": {"minimum": 1, "exclusiveMinimum": True}, "uniqueItems": True},
         [2, 3], [2, 2]),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "uniqueItems": True}, [1], [1, 1]),
    ],
)  # fmt: skip
def test_answers_are_checked_in_their_own_draft(schema, right, wrong):
    assert violation(schema, right, "`x`") == ""
    assert "non-unique" in violation(schema, wrong, "`x`")


def test_a_pattern_that_nobody_knows_is_no_violation():
    schema = {"type": "string", "pattern": r"^\p{Emoji}+$"}
    assert json_grammar(schema).unchecked and violation(schema, "a", "`x`") == ""


def test_one_of_that_cannot_overlap_is_enforced():
    tagged = [object_of(kind={"const": kind}, x={"type": "integer"}) for kind in "ab"]
    texts = [{"type": "string", "format": name} for name in ("date", "date-time", "uuid", "email")]
    for one_of in (tagged, texts, [{"type": "string"}, {"type": "null"}, A]):
        assert json_grammar({"oneOf": one_of}).unchecked == ()


def test_many_definitions_take_linear_room():
    def size(count):
        parts = {f"f{i}": {"$ref": f"#/$defs/D{i}"} for i in range(count)}
        defs = {f"D{i}": object_of(v={"type": "string"}) for i in range(count)}
        return len(json_grammar({"properties": parts, "$defs": defs}).lark)

    assert size(200) < 3 * size(100)


def test_a_schema_that_is_nested_too_deeply_is_refused():
    schema = {"type": "string"}
    for _ in range(400):
        schema = {"type": "object", "properties": {"c": schema}}
    with pytest.raises(ValueError, match="has to be at most 100 levels deep"):
        GenerationOptions.parse({"json_schema": schema})


@pytest.mark.parametrize(
    ("schema", "keyword", "right", "wrong"),
    [
        ({"contains": {"const": 1}, "minContains": 0, "maxContains": 1}, "maxContains",
         [1, 2], [1, 1]),
        ({"contains": {"const": 1}, "minContains": 1, "maxContains": 2}, "maxContains",
         [1, 1], [1, 1, 1]),
        ({"not": {"const": {"a": 1}}}, "not", {"a": 2}, {"a": 1}),
        ({"type": "array", "not": {"enum": [[1], []]}}, "not", [2], [1]),
        ({"properties": {"a": {}}, "not": {"not": {"properties": {"b": {}}, "required": ["b"]}},
          "unevaluatedProperties": False}, "unevaluatedProperties", {}, {"a": 1, "b": 1}),
        ({"prefixItems": [{}], "not": {"not": {"prefixItems": [{}, {}]}},
          "unevaluatedItems": False}, "unevaluatedItems", [1], [1, 2]),
        ({"oneOf": [{"type": "string", "format": "date"}, {"type": "string"}]}, "oneOf",
         "a", "2024-05-31"),
    ],
)  # fmt: skip
def test_what_is_told_is_checked(schema, keyword, right, wrong):
    assert keyword in json_grammar(schema).unchecked
    assert violation(schema, wrong, "`x`")
    if "not" not in schema or keyword == "not":
        assert violation(schema, right, "`x`") == ""


@pytest.mark.parametrize("low", [1e64, 1e300])
def test_bounds_beyond_the_digits_that_numbers_have(low):
    with pytest.raises(ValueError, match="some value fits, but none does"):
        json_grammar({"type": "number", "exclusiveMinimum": low})


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"^\ud83d\ude00$", '"😀"', '"😁"'),
        (r"^[\ud83d\ude00-\ud83d\ude02]$", '"😁"', '"😃"'),
        (r"^\uD83C\uDF55+x$", '"🍕🍕x"', '"x"'),
    ],
)
def test_two_halves_in_a_pattern_are_one_character(pattern, right, wrong):
    schema = {"type": "string", "pattern": pattern}
    assert fits(schema, right) and not fits(schema, wrong)


@pytest.mark.parametrize(
    ("pattern", "right", "wrong"),
    [
        (r"^[\d-x]$", "5-x", "a,"),
        (r"^[\w-.]$", "a-.", " +"),
        (r"^[a-z\s-_]$", "- _b", "A"),
    ],
)
def test_a_hyphen_after_a_class_is_one(pattern, right, wrong):
    schema = {"type": "string", "pattern": pattern}
    assert all(fits(schema, f'"{c}"') for c in right)
    assert not any(fits(schema, f'"{c}"') for c in wrong)


def test_half_a_character_in_a_pattern_is_told():
    grammar = json_grammar({"type": "string", "pattern": r"^[\ud800-\udbff]+$"})
    assert "half of a character" in grammar.unchecked[0]


KINDS = [
    ({"type": "object"}, {"a": {"b": [1, {"c": []}]}, "d": {}}),
    ({"const": {"a": [1, 2], "b": {"c": None}}}, {"a": [1, 2], "b": {"c": None}}),
    ({"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}, ["b", "a"]),
    ({"type": "array", "contains": {"const": 3}}, [1, 3, 2]),
    ({"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}]}, ["a", None]),
    ({"properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "type": "object"},
     {"a": 1, "b": "x\ny"}),
    ({"type": "object", "additionalProperties": {"type": "array"}, "minProperties": 2},
     {"a": [], "b": [[2]]}),
]  # fmt: skip


@pytest.mark.parametrize("layout", [{}, {"indent": 2}, {"indent": 4}], ids=str)
@pytest.mark.parametrize(("schema", "value"), KINDS)
def test_the_model_may_lay_out_its_answer(schema, value, layout):
    grammar, text = json_grammar(schema), json.dumps(value, **layout)
    assert fits(schema, text) and not fits(schema, text[:1] + " " * 30 + text[1:])
    matcher = grammar_tokens(TOKENIZERS["bytes"]).compiled(grammar.lark).deep_copy()
    assert matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()
    assert "\n" not in grammar.parser.begin().completion  # the shortest answer
