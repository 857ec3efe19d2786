"""References: a `$ref` leads where the specification says, from wherever it stands."""

import json

import pytest

from langchain_llama_stop.grammar.references import prepared, without_nulls
from langchain_llama_stop.grammar.schema import json_grammar, violation

INTEGER, TEXT = {"type": "integer"}, {"type": "string"}


def takes(schema, value):
    """Whether decoding allows a value, and the check after the answer too."""
    text = json.dumps(value, ensure_ascii=False).encode().decode("latin-1")
    place = json_grammar(schema).parser.begin().after(text)
    return place is not None and place.accepting and not violation(schema, value, "`x`")


RELATIVE = {
    "$id": "https://a.b/root.json",
    "$defs": {"n": {"$id": "n.json", **INTEGER}},
    "properties": {"x": {"$ref": "n.json"}, "y": {"$ref": "https://a.b/n.json"}},
}
NESTED = {
    "$id": "https://a.b/root",
    "$ref": "inner",
    "$defs": {
        "z": TEXT,
        "inner": {"$id": "inner", "$defs": {"z": INTEGER}, "items": {"$ref": "#/$defs/z"}},
    },
}
FOLDERS = {
    "$id": "https://a.b/c/root",
    "properties": {"x": {"$ref": "/d/n"}, "y": {"$ref": "../d/n#/$defs/t"}},
    "$defs": {"n": {"$id": "https://a.b/d/n", "$defs": {"t": TEXT}, **INTEGER}},
}
URN = {
    "$id": "urn:uuid:12345678-1234-1234-1234-1234567890ab",
    "properties": {"x": {"$ref": "urn:uuid:12345678-1234-1234-1234-1234567890ab#/$defs/n"}},
    "$defs": {"n": INTEGER},
}
ANCHORS = {
    "$id": "https://a.b/root",
    "properties": {"x": {"$ref": "#here"}, "y": {"$ref": "other#here"}},
    "$defs": {
        "here": {"$anchor": "here", **INTEGER},
        "other": {"$id": "other", "$defs": {"here": {"$anchor": "here", **TEXT}}},
    },
}
ESCAPED = {
    "$defs": {"a b": INTEGER, "c/d": TEXT, "e%f": TEXT, "g~h": TEXT, 'i"j': TEXT},
    "prefixItems": [
        {"$ref": "#/$defs/a%20b"},
        {"$ref": "#/$defs/c~1d"},
        {"$ref": "#/$defs/e%25f"},
        {"$ref": "#/$defs/g~0h"},
        {"$ref": "#/$defs/i%22j"},
    ],
}
OLD = {
    "$schema": "http://json-schema.org/draft-04/schema#",
    "id": "http://a.b/",
    "items": {"id": "deep/", "$ref": "n.json"},
    "definitions": {"n": {"id": "n.json", **INTEGER}, "t": {"id": "deep/n.json", **TEXT}},
}
ODD_IDS = {  # as people write them in old drafts: they mean the root
    "definitions": {"n": {"id": "n", **INTEGER}},
    "properties": {"x": {"id": "x", "items": {"$ref": "#/definitions/n"}}},
}
RECURSIVE = {
    "$schema": "https://json-schema.org/draft/2019-09/schema",
    "$id": "https://a.b/root",
    "properties": {"x": {"$ref": "tree"}},
    "$defs": {"tree": {"$id": "tree", "type": "array", "items": {"$recursiveRef": "#"}}},
}
DYNAMIC = {
    "$dynamicAnchor": "node",
    "type": "object",
    "properties": {"kids": {"type": "array", "items": {"$dynamicRef": "#node"}}},
}
NAMES = {
    "properties": {"$ref": TEXT, "$id": TEXT, "default": {"$ref": "#/$defs/n"}},
    "$defs": {"n": {"enum": [{"$ref": "#/nowhere"}, {"$id": "x"}]}},
}


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (RELATIVE, {"x": 1, "y": 2}, [{"x": "a"}, {"y": "a"}]),
        (NESTED, [1], [["a"]]),
        (FOLDERS, {"x": 1, "y": "a"}, [{"x": "a"}, {"y": 1}]),
        (URN, {"x": 1}, [{"x": "a"}]),
        (ANCHORS, {"x": 1, "y": "a"}, [{"x": "a"}, {"y": 1}]),
        (ESCAPED, [1, "a", "b", "c", "d"], [["a"], [1, 1], [1, "a", 1]]),
        (OLD, [1], [["a"]]),
        (ODD_IDS, {"x": [1]}, [{"x": ["a"]}]),
        (RECURSIVE, {"x": [[], [[]]]}, [{"x": [1]}]),
        (DYNAMIC, {"kids": [{"kids": []}]}, [{"kids": [1]}]),
        (NAMES, {"$ref": "a", "$id": "b", "default": {"$id": "x"}}, [{"$ref": 1}]),
    ],
)
def test_references(schema, right, wrong):
    assert takes(schema, right)
    assert [value for value in wrong if takes(schema, value)] == []


@pytest.mark.parametrize("reference", ["other.json", "#/$defs/none", "#none", "https://a.b/c#/x"])
def test_a_reference_to_nothing_is_refused_as_it_was_written(reference):
    with pytest.raises(ValueError, match=f"`\\$ref: {reference.replace('$', '.')}` points"):
        json_grammar({"properties": {"x": {"$ref": reference}}})


def test_a_dynamic_reference_that_may_mean_several_parts_is_told_and_checked():
    schema = {
        "$id": "https://a.b/strict",
        "$dynamicAnchor": "node",
        "$ref": "tree",
        "unevaluatedProperties": False,
        "$defs": {
            "tree": {
                "$id": "tree",
                "$dynamicAnchor": "node",
                "type": "object",
                "properties": {"kids": {"items": {"$dynamicRef": "#node"}}},
            }
        },
    }
    assert json_grammar(schema).unchecked == ("$dynamicRef",)
    assert takes(schema, {"kids": [{"kids": []}]}) and not takes(schema, {"kids": [{"x": 1}]})


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        ({"type": "object", "properties": {"a": TEXT}, "required": None}, {}, {"a": 1}),
        ({"type": "object", "properties": None, "required": ["a"]}, {"a": 1}, {}),
        ({"type": "string", "enum": None, "pattern": None, "maxLength": None}, "a", 1),
        ({"items": {"type": "integer", "minimum": None}, "$ref": None}, [1], ["a"]),
        ({"const": None}, None, 1),
        ({"enum": ["a", None]}, None, "b"),
    ],
)
def test_a_keyword_that_is_null_says_nothing(schema, right, wrong):
    assert takes(schema, right) and not takes(schema, wrong)


def test_values_keep_their_nulls_and_the_schema_is_not_changed():
    schema = {"const": {"a": None}, "default": {"b": None}, "title": None, "$ref": "#/x", "x": {}}
    before = json.dumps(schema)
    assert without_nulls(schema) == {k: v for k, v in schema.items() if k != "title"}
    prepared(schema)
    assert json.dumps(schema) == before
