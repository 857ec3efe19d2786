"""What a model is told of a schema: the form of the answer, and no word that is no part of it."""

import json
from enum import StrEnum
from typing import Literal, Optional

import pytest
from hypothesis import given, settings
from pydantic import BaseModel, Field, TypeAdapter

from langchain_llama_stop._langchain.schema_text import schema_text
from tests.fakes.schemas import SCHEMAS


class Colour(StrEnum):
    red, green = "red", "grün"


class Address(BaseModel):
    """Where somebody lives."""

    street: str
    city: str = Field(description="Größe egal")


class Person(BaseModel):
    """Somebody."""

    name: str = Field(description="The full name")
    colour: Colour
    home: Address
    tags: list[str] = []
    scores: dict[str, int] = {}
    note: str | None = None
    kind: Literal["a", 3]
    share: float = Field(gt=0, le=1)


class Node(BaseModel):
    name: str
    kids: list["Node"] = []


class Employee(BaseModel):
    name: str
    boss: Optional["Employee"] = None  # noqa: UP045


class Pair(BaseModel):
    one: Person
    two: Person
    tree: Node


def told(kind):
    return schema_text(TypeAdapter(kind).json_schema())


def test_a_form():
    assert told(Address) == (
        "Answer with JSON. Fill in this form with values that answer the user's message:\n"
        '{"street": text, "city": text (Größe egal)} (Where somebody lives.)'
    )


@pytest.mark.parametrize(
    "kind", [Person, Address, Node, Employee, list[Address], dict[str, Colour]]
)
def test_no_name_and_no_word_of_a_schema_is_told(kind):
    text = told(kind)
    for word in ("title", "type", "properties", "additionalProperties", "$ref", "$defs", "anyOf",
                 "Colour", "Address", "Person", "default", "\\u"):  # fmt: skip
        assert word not in text


def test_what_is_told():
    text = told(Person)
    for part in ('"red" or "grün"', "The full name", "Größe egal", '"a" or 3', "[text, …]",
                 "text: whole number, …", "text or null", "over 0", "at most 1"):  # fmt: skip
        assert part in text, part
    required = json.dumps(sorted(TypeAdapter(Person).json_schema()["required"]))
    for name in ("tags", "scores", "note"):
        assert name not in required
    assert text.count("may be left out") == 3


@pytest.mark.parametrize("kind", [Node, Employee])
def test_a_circle_is_told_once(kind):
    text = told(kind)
    assert text.count('"name": text') <= 2 and len(text) < 250


def test_long_parts_that_are_used_often_are_told_once():
    assert told(Pair).count("Größe egal") == 1


def test_the_text_grows_with_the_schema():
    def size(count):
        parts = {f"D{i}": {"type": "object", "properties": {
            "a": {"$ref": f"#/$defs/D{i + 1}"}, "b": {"$ref": f"#/$defs/D{i + 1}"}}}
            for i in range(count)}  # fmt: skip
        return len(schema_text({"$ref": "#/$defs/D0", "$defs": {**parts, f"D{count}": {}}}))

    assert size(40) < 3 * size(20)


@settings(max_examples=150, deadline=None)
@given(schema=SCHEMAS)
def test_every_schema_has_a_text(schema):
    assert schema_text(schema).startswith("Answer with JSON")


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/none"},
        {"$ref": "#"},
        {"properties": {"a": {"$ref": "#"}, "b": True, "c": False}},
        {"items": [{"type": "string"}, {"type": "integer"}]},
        {"type": ["string", "null"], "enum": ["ä", None]},
        {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {"const": "é"}}}]},
        {"type": "string", "pattern": "a" * 500},
        # Circles: through `allOf`, through two parts, of a part that is itself.
        {"properties": {"x": {"allOf": [{"$ref": "#"}]}}},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
        {
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {"allOf": [{"$ref": "#/$defs/b"}]},
                "b": {"properties": {"x": {"allOf": [{"$ref": "#/$defs/a"}, {"type": "object"}]}}},
            },
        },
    ],
    ids=lambda schema: json.dumps(schema)[:30],
)
def test_odd_schemas(schema):
    text = schema_text(schema)
    assert "$" not in text and "\\u" not in text and len(text) < 300
