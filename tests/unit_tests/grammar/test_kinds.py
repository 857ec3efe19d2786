"""Schemas of each kind that people write: what they take, what they do not, the shortest answer."""

import json

import jsonschema
import pytest

from langchain_llama_stop.grammar.keys import Keys, shortest_completion
from langchain_llama_stop.grammar.schema import json_grammar, violation


def string(**words):
    return {"type": "string", **words}


def an_object(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


KINDS = [
    ("format", string(format="email"), ["o'brien+x@sub.example.co"], ["a/b@c.de", "a@b"]),
    ("format", string(format="time"), ["09:30:00Z", "23:59:59.5+01:00"], ["9:30"]),
    ("format", string(format="ipv6"), ["::", "fe80::1"], [":"]),
    (
        "format",
        string(format="uri"),
        ["urn:a:b", "https://a.b/c?d=e#f", "mailto:x@y.z", "file:///etc/x"],
        ["a b"],
    ),
    (
        "format",
        string(format="uuid4"),
        ["c0ffee00-1234-4321-9abc-0123456789ab"],
        ["c0ffee00-1234-1321-9abc-0123456789ab", "c0ffee00-1234-4321-cabc-0123456789ab"],
    ),
    ("format", string(format="hostname"), ["x-y.example"], ["-x"]),
    ("format", string(format="idn-email"), ["é@x"], []),
    ("format", string(format="date", pattern="^20"), ["2024-01-01"], ["1999-01-01"]),
    ("pattern", string(pattern="[A-Z]{2}\\d+"), ["xxAB12yy"], ["ab12"]),
    ("pattern", string(pattern="^(?=.*\\d)(?=.*[a-z]).{4,8}$"), ["abc1"], ["abcd"]),
    ("pattern", string(pattern="^\\S+$"), ["aé"], ["a b", ""]),
    (
        "pattern",
        string(pattern="^(\\+\\d{1,3})?[ -]?\\(?\\d{3}\\)?[ -]?\\d{4}$"),
        ["+1 (555) 1234", "555-1234"],
        ["5"],
    ),
    (
        "pattern",
        string(pattern='^[^\\n"]*\\.(jpe?g|png)$', maxLength=12),
        ["a.jpg"],
        ["a.gif", "aaaaaaaaaaaa.png"],
    ),
    ("pattern", string(pattern="\\A[a-c]+\\Z"), ["abc"], ["abd"]),
    ("pattern", string(pattern="^[]a]+$"), ["]", "a]"], ["b"]),
    ("pattern", string(pattern="^a{,3}$"), ["", "aaa"], ["aaaa", "a{,3}"]),
    ("pattern", string(pattern="^\\W+$"), ["!- ", "😀"], ["a", "é", "_", "٣", "日"]),
    ("pattern", string(pattern="^[^\\w\\s]+$"), ["!?"], ["é", "ª", " ", "\u0085"]),
    ("pattern", string(pattern="^\\D+$"), ["aé"], ["1", "٣"]),
    ("pattern", string(pattern="^[^\\D]+$"), ["12"], ["a", "٣"]),
    ("pattern", string(pattern="^[\\S]+$"), ["aé"], ["a\u0085b", "\ufeff", " "]),
    ("pattern", string(pattern="^[^\\W_]+$"), ["ab1"], ["_", "é", "!"]),
    ("pattern", string(pattern="^x{,1}y{2,}$"), ["yy", "xyyy"], ["xxyy"]),
    ("pattern", string(pattern="^$|^x$"), ["", "x"], ["y"]),
    ("range", {"type": "number", "exclusiveMinimum": -1, "maximum": -0.5}, [-0.75, -0.5], [-1, 0]),
    ("range", {"type": "number", "minimum": 0, "maximum": 1e300}, [5], [-1]),
    ("range", {"type": "integer", "minimum": 1.5, "maximum": 3.2}, [2, 3], [1, 4]),
    ("range", {"type": "number", "minimum": 1e-7}, [1], [0]),
    ("range", {"type": "integer", "minimum": -5, "exclusiveMaximum": 0}, [-5, -1], [0, -6]),
    ("range", {"type": "number", "minimum": 1e20}, [100000000000000000000], [5]),
    ("range", {"type": "number", "minimum": 0, "maximum": 0}, [0], [1]),
    ("multipleOf", {"type": "integer", "multipleOf": 12, "minimum": 100}, [108], [100, 96]),
    ("multipleOf", {"type": "number", "multipleOf": 0.05}, [0.15, 2], [0.12]),
    ("multipleOf", {"type": "integer", "multipleOf": 2.5}, [5, 10], [2, 3]),
    ("multipleOf", {"type": "number", "multipleOf": 1e-3, "minimum": 0}, [0.125], [0.1255]),
    ("multipleOf", {"type": "integer", "multipleOf": 1000000}, [3000000, 0], [3]),
    ("short", {"anyOf": [string(minLength=500), {"type": "integer", "minimum": 10}]}, [10], ["a"]),
    ("short", {"enum": ["x" * 300, "y"]}, ["y"], ["z"]),
    (
        "short",
        {"oneOf": [an_object(a=string(minLength=90)), an_object(b={"type": "null"})]},
        [{"b": None}],
        [{}],
    ),
    (
        "short",
        an_object(p={"anyOf": [string(format="uuid"), {"const": ""}]}),
        [{"p": ""}],
        [{"p": "x"}],
    ),
    (
        "minProps",
        {"type": "object", "minProperties": 2, "propertyNames": {"pattern": "^k\\d$"}},
        [{"k1": 1, "k2": 2}],
        [{"k1": 1}, {"a": 1, "b": 2}],
    ),
    (
        "minProps",
        {
            "type": "object",
            "properties": {"a": {}, "b": {}, "c": {}},
            "minProperties": 2,
            "additionalProperties": False,
        },
        [{"a": 1, "c": 1}],
        [{"b": 1}],
    ),
    (
        "minProps",
        {
            "type": "object",
            "patternProperties": {"^x": {"type": "integer"}},
            "additionalProperties": False,
            "minProperties": 1,
        },
        [{"x1": 1}],
        [{}],
    ),
    ("required", {"type": "object", "required": ["z"]}, [{"z": 1}], [{}]),
    (
        "required",
        {
            "type": "object",
            "properties": {"a": string()},
            "required": ["b"],
            "additionalProperties": {"type": "integer"},
        },
        [{"b": 3}, {"a": "x", "b": 3}],
        [{"b": "x"}, {}],
    ),
    (
        "required",
        {"type": "object", "patternProperties": {"^n": {"type": "number"}}, "required": ["n1"]},
        [{"n1": 2}],
        [{"n1": "x"}],
    ),
    (
        "required",
        {"allOf": [{"required": ["q"]}, an_object(a=string())]},
        [{"a": "x", "q": 1}],
        [{"a": "x"}],
    ),
    (
        "names",
        {"type": "object", "propertyNames": {"maxLength": 3}, "additionalProperties": string()},
        [{"abc": "x"}],
        [{"abcd": "x"}],
    ),
    (
        "names",
        {"type": "object", "propertyNames": {"format": "email"}, "additionalProperties": True},
        [{"a@b.co": 1}],
        [{"a": 1}],
    ),
    (
        "names",
        {"type": "object", "propertyNames": {"anyOf": [{"const": "a"}, {"pattern": "^x-"}]}},
        [{"a": 1, "x-b": 2}],
        [{"b": 1}],
    ),
    (
        "names",
        {"type": "object", "propertyNames": {"not": {"enum": ["id"]}}},
        [{"a": 1}],
        [{"id": 1}],
    ),
    (
        "annot",
        string(format="binary", contentEncoding="base64", examples=["x"], deprecated=True),
        ["x"],
        [1],
    ),
    (
        "annot",
        {"type": "array", "items": string(), "uniqueItems": False, "x-order": 3},
        [["a", "a"]],
        [[1]],
    ),
    (
        "annot",
        {"type": "integer", "format": "int32", "enumNames": ["a"], "x-enum": ["a"]},
        [3],
        ["a"],
    ),
    (
        "annot",
        {
            "type": "object",
            "properties": {"a": {"$comment": "x", "title": "T"}},
            "unevaluatedProperties": False,
        },
        [{"a": [1]}],
        [{"b": 1}],
    ),
    (
        "cond",
        {
            "type": "object",
            "properties": {"k": {"enum": ["a", "b"]}, "v": {}},
            "required": ["k"],
            "allOf": [
                {
                    "if": {"properties": {"k": {"const": "a"}}},
                    "then": {"properties": {"v": {"type": "string"}}, "required": ["v"]},
                }
            ],
        },
        [{"k": "a", "v": "x"}, {"k": "b"}],
        [{"k": "a"}, {"k": "a", "v": 1}],
    ),
    (
        "cond",
        {
            "type": "object",
            "properties": {"a": {}, "b": {}},
            "dependentSchemas": {"a": {"required": ["b"]}},
        },
        [{"a": 1, "b": 1}, {}],
        [{"a": 1}],
    ),
    (
        "cond",
        {"not": {"required": ["a"]}, "type": "object", "properties": {"a": {}, "b": {}}},
        [{"b": 1}],
        [{"a": 1}],
    ),
    (
        "contains",
        {
            "type": "array",
            "contains": {"type": "integer"},
            "items": {"type": ["integer", "string"]},
        },
        [["a", 1]],
        [["a"]],
    ),
    (
        "rec",
        {
            "$defs": {
                "n": {
                    "anyOf": [
                        {"type": "integer"},
                        {"type": "array", "items": {"$ref": "#/$defs/n"}},
                    ]
                }
            },
            "$ref": "#/$defs/n",
        },
        [[1, [2, []]], 3],
        ["x"],
    ),
    (
        "rec",
        {
            "$id": "https://x.y/t",
            "type": "object",
            "properties": {"c": {"type": "array", "items": {"$ref": "#"}}},
            "additionalProperties": False,
        },
        [{"c": [{"c": []}]}],
        [{"d": 1}],
    ),
    (
        "rec",
        {"type": "object", "properties": {"v": {"$ref": "#/properties/w"}, "w": string()}},
        [{"v": "a", "w": "b"}],
        [{"v": 1}],
    ),
    (
        "uniq",
        {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
        [["b", "a"], []],
        [["a", "a"]],
    ),
    ("uniq", {"type": "array", "items": string(), "uniqueItems": True}, [["a", "b"]], [["a", "a"]]),
    (
        "uniq",
        {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
        [[True, False]],
        [[True, True]],
    ),
]


@pytest.mark.parametrize(("kind", "schema", "right", "wrong"), KINDS)
def test_kinds(kind, schema, right, wrong):
    parser = json_grammar(schema).parser

    def takes(value):
        text = json.dumps(value, ensure_ascii=False).encode().decode("latin-1")
        place = parser.begin().after(text)
        allowed = place is not None and place.accepting
        return allowed and not violation(schema, value, "`json_schema`")

    assert [value for value in right if not takes(value)] == []
    assert [value for value in wrong if takes(value)] == []
    shortest = shortest_completion(parser.begin(), Keys())
    jsonschema.validate(json.loads(shortest.encode("latin-1").decode()), schema)
