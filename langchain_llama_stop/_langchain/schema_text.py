"""What a model is told of the schema of its answer: its form, in words that are no values."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from langchain_llama_stop.grammar.references import prepared, resolve

_INLINE = 200
"""Characters of a definition that is told wherever it is used; a longer one is told once. Not
tuned: it keeps the text linear in the schema."""
_LONGEST_PATTERN = 60
"""Characters under which a pattern is told. Not tuned: longer ones tell nobody anything."""
_ASK = "Answer with JSON. Fill in this form with values that answer the user's message:"
"""Of 14 wordings one of the best five on the tasks of `make bench-objects` that are for tuning."""
_WORDS = {"string": "text", "integer": "whole number", "number": "number", "null": "null",
          "boolean": "true or false", "array": "list", "object": "object"}  # fmt: skip
_FORMATS = {
    "email": "email address",
    "uri": "URL",
    "date": "date such as 2024-05-31",
    "time": "time such as 13:05:00Z",
    "date-time": "date and time such as 2024-05-31T13:05:00Z",
    "duration": "duration such as PT1H30M",
    "uuid": "UUID",
    "ipv4": "IPv4 address",
    "ipv6": "IPv6 address",
    "hostname": "host name",
}
_BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "over",
    "maximum": "at most",
    "exclusiveMaximum": "under",
    "multipleOf": "a multiple of",
}
_COUNTS = {"minLength": "at least {} characters", "maxLength": "at most {} characters",
           "minItems": "at least {}", "maxItems": "at most {}"}  # fmt: skip


def schema_text(schema: Mapping[str, Any]) -> str:
    """Tells the model, in a system message, which form its answer has to have.

    Args:
        schema: A JSON schema. Names of classes and JSON schema's own words are not told, since
            small models write them as values.

    Returns:
        The text. It grows with the schema's length, also where parts are used many times.
    """
    schema = prepared(schema)
    told, about = _Told(schema), str(schema.get("description") or "").strip()
    form = told.form(schema) + (f" ({about})" if about else "")
    return "\n".join([_ASK, form, *told.definitions()])


class _Told:
    """Tells the parts of one schema."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._uses = Counter(re.findall(r'"\$ref": "([^"]*)"', _json(root)))
        self._open: list[str] = []
        self._known: dict[str, str] = {}
        self._named: dict[str, None] = {}

    def definitions(self) -> list[str]:
        """What the parts that are told by name look like."""
        lines = list[str]()
        for reference in self._named:  # grows as it is read
            self._open = [reference]
            lines.append(f"{_name(reference)}: {self.form(self._target(reference))}")
        return lines

    def form(self, schema: Any) -> str:
        """How a value of a schema is written."""
        if not isinstance(schema, Mapping):
            return "any value"
        if "$ref" in schema:
            return self._reference(str(schema["$ref"]))
        if "const" in schema:
            return _json(schema["const"])
        if isinstance(schema.get("enum"), list):
            return " or ".join(map(_json, schema["enum"]))
        for keyword in ("anyOf", "oneOf"):
            if isinstance(schema.get(keyword), list) and "properties" not in schema:
                return " or ".join(dict.fromkeys(map(self.form, schema[keyword])))
        if isinstance(schema.get("allOf"), list):
            return self._all_of(schema)
        kinds = schema.get("type")
        if isinstance(kinds, list):
            return " or ".join(self.form({**schema, "type": kind}) for kind in kinds)
        if kinds == "object" or "properties" in schema:
            return self._object(schema)
        if kinds == "array" or "items" in schema:
            return self._list(schema)
        word = _FORMATS.get(str(schema.get("format")), _WORDS.get(str(kinds), "any value"))
        limits = [f"{words} {_json(schema[k])}" for k, words in _BOUNDS.items() if k in schema]
        limits += [words.format(schema[k]) for k, words in _COUNTS.items() if k in schema]
        if len(str(schema.get("pattern", ""))) in range(1, _LONGEST_PATTERN):
            limits.append(f"matches {schema['pattern']}")
        return " ".join([word, ", ".join(limits)]).strip()

    def _reference(self, reference: str) -> str:
        if reference in self._open:  # a circle
            self._named[reference] = None
            return _name(reference)
        if reference not in self._known:
            self._open.append(reference)
            self._known[reference] = self.form(self._target(reference))
            self._open.pop()
        text = self._known[reference]
        if reference in self._named or (self._uses[reference] > 1 and len(text) > _INLINE):
            self._named[reference] = None
            return _name(reference)
        return text

    def _target(self, reference: str) -> Any:
        try:
            return resolve(reference, self._root)
        except ValueError:
            return True

    def _all_of(self, schema: Mapping[str, Any]) -> str:
        """The parts of `allOf` as one form, as far as telling needs it."""
        joined = {k: v for k, v in schema.items() if k != "allOf"}
        before = len(self._open)
        for part in schema["allOf"]:
            while isinstance(part, Mapping) and "$ref" in part:
                reference = str(part["$ref"])
                if reference in self._open:  # a circle
                    del self._open[before:]
                    return self._reference(reference)
                self._open.append(reference)
                part = self._target(reference)
            if isinstance(part, Mapping):
                both = {k: {**v, **joined.get(k, {})} for k, v in part.items() if k == "properties"}
                joined = {**part, **joined, **both}
        text = self.form(joined)
        del self._open[before:]
        return text

    def _object(self, schema: Mapping[str, Any]) -> str:
        required = schema.get("required", ())
        members = list[str]()
        for name, part in schema.get("properties", {}).items():
            text = f"{_json(name)}: {self.form(part)}"
            notes = [] if name in required else ["may be left out"]
            if isinstance(part, Mapping) and part.get("description"):
                notes.insert(0, str(part["description"]).strip())
            members.append(text + (f" ({'; '.join(notes)})" if notes else ""))
        others = schema.get("additionalProperties")
        if isinstance(others, Mapping) or (others is True and not members):
            members.append(f"text: {self.form(others)}, …")
        return "{" + ", ".join(members) + "}"

    def _list(self, schema: Mapping[str, Any]) -> str:
        prefix = [self.form(part) for part in schema.get("prefixItems", ())]
        items = schema.get("items", True)
        if items is not False and (items is not True or not prefix):
            prefix += [self.form(items), "…"]
        return f"[{', '.join(prefix)}]"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _name(reference: str) -> str:
    """How a part that is told once is named."""
    return reference.rpartition("/")[2] if reference != "#" else "whole"
