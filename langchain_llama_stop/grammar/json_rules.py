"""JSON schemas as context-free rules."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from langchain_llama_stop.grammar.facets import (
    Facets,
    Schema,
    canonical,
    forbids,
    item_schemas,
    property_schemas,
    subsets,
    text_regexes,
    type_of,
)
from langchain_llama_stop.grammar.json_text import mark_terminal, number_terminal, string_regex
from langchain_llama_stop.grammar.multiple import is_enforceable
from langchain_llama_stop.grammar.pattern import parse_pattern
from langchain_llama_stop.grammar.read_schema import (
    ANNOTATIONS,
    fitting,
    read,
    require_shallow,
)
from langchain_llama_stop.grammar.references import prepared, resolve
from langchain_llama_stop.grammar.regex import (
    ANYTHING,
    EVERY,
    Regex,
    both,
    chars,
    either,
    literal,
    no,
    repeat,
)
from langchain_llama_stop.grammar.rules import Rules
from langchain_llama_stop.grammar.terminal import Terminal, regex_terminal, text_terminal

_MOST_COUNTED = 1000
"""Items or characters that a rule counts; a larger bound is checked after the answer."""
_MOST_STATES = 4000
"""Rules of one object whose properties are counted."""
_MOST_DIFFERENT = 6
"""Values of which lists of different ones are written as rules: 64 of them for six."""

_Alternative = list[int | Terminal]


class JsonRules:
    """Adds the rules of JSON schemas to some rules.

    Attributes:
        unchecked: Keywords that decoding does not enforce, with what they ask for.
    """

    def __init__(self, rules: Rules) -> None:
        """Begins with some rules, which grow."""
        self.unchecked: dict[str, None] = {}
        self._rules = rules
        self._known: dict[str, int] = {}
        self._waiting: list[tuple[int, Schema]] = []
        self._terminals: dict[object, Terminal] = {}
        self._root: Schema = True

    def add(self, schema: Mapping[str, Any]) -> int:
        """Adds the rules of a schema; returns the number of the one for its values.

        Raises:
            ValueError: If a keyword cannot be read, or cannot be enforced at all; it is named.
        """
        require_shallow(schema)
        self._root, self._known = prepared(schema), {}
        number = self._value(self._root)
        self._add_waiting()
        return number

    def _add_waiting(self) -> None:
        while self._waiting:
            rule, part = self._waiting.pop()
            self._rules.alternatives[rule] += [tuple(a) for a in self._alternatives(part)]

    def _value(self, schema: Schema) -> int:
        """The rule of a schema's values; its alternatives come later."""
        key = canonical(schema) if schema is not self._root else ""
        if key not in self._known:
            self._known[key] = self._rules.new()
            self._waiting.append((self._known[key], schema))
        return self._known[key]

    def _all(self, schemas: tuple[Schema, ...]) -> int:
        """The rule of the values that fit several schemas."""
        if len(schemas) < 2:
            return self._value(schemas[0] if schemas else True)
        return self._value({"allOf": list(schemas)})

    def _alternatives(self, schema: Schema) -> list[_Alternative]:
        if isinstance(schema, Mapping):
            told = schema.keys() - ANNOTATIONS
            if told == {"$ref"}:
                return [[self._value(resolve(str(schema["$ref"]), self._root))]]
            if told == {"anyOf"} and isinstance(schema["anyOf"], list):
                return [[self._value(part)] for part in schema["anyOf"]]
        found: list[_Alternative] = []
        for facets in read(schema, self._root):
            if facets.values is not None and any(isinstance(v, list | dict) for v in facets.values):
                facets = replace(facets, values=fitting(schema, facets.values, self._root))
            found += self._facets(facets)
        return found

    def _facets(self, facets: Facets) -> list[_Alternative]:
        different = None
        if "uniqueItems" in facets.unchecked:
            listed = facets.values is None and "array" in facets.types
            different = self._different(facets) if listed else []
            if different is not None:
                facets = replace(facets, unchecked=facets.unchecked - {"uniqueItems"})
        self.unchecked.update(dict.fromkeys(sorted(facets.unchecked)))
        if facets.values is not None:
            return [self._constant(v) for v in facets.values if self._fits(v, facets)]
        if any(isinstance(v, list | dict) and type_of(v) & facets.types for v in facets.forbidden):
            self.unchecked["not"] = None
        found: list[_Alternative] = []
        for value in (None, True, False):
            if type_of(value) & facets.types and not forbids(facets, value):
                found.append([self._literal(value)])
        for kind in ("integer", "number"):
            if kind in facets.types and not (facets.fractional and kind == "integer"):
                found.append([self._number(facets, integer=kind == "integer")])
        if "string" in facets.types:
            found.append(self._string(facets))
        if "array" in facets.types:
            found += self._array(facets) if different is None else different
        if "object" in facets.types:
            found += self._object(facets)
        return found

    def _text(self, text: str) -> Terminal:
        return self._terminals.setdefault(text, text_terminal(text))

    def _mark(self, mark: str) -> Terminal:
        return mark_terminal(mark)

    def _regex(self, regex: Regex) -> Terminal:
        if regex not in self._terminals:
            self._terminals[regex] = regex_terminal(regex)
        return self._terminals[regex]

    def _number(self, facets: Facets, *, integer: bool) -> Terminal:
        if any("number" in type_of(v) for v in facets.forbidden):
            self.unchecked["not"] = None
        multiples = [m for m in facets.multiples if is_enforceable(m, integer)]
        if len(multiples) > 1 or len(multiples) < len(facets.multiples):
            self.unchecked["multipleOf"] = None
        if multiples and facets.fractional:
            self.unchecked["not"] = None
        settings: dict[str, Any] = {
            "integer": integer,
            "low": facets.low,
            "low_excluded": facets.low_excluded,
            "high": facets.high,
            "high_excluded": facets.high_excluded,
            "multiple": max(multiples, default=None),
            "fractional": facets.fractional and not multiples,
        }
        key = tuple(settings.values())
        if key not in self._terminals:
            self._terminals[key] = number_terminal(**settings)
        return self._terminals[key]

    def _text_of(self, facets: Facets) -> Regex:
        """The texts of strings, without quotes and escapes."""
        length = repeat(chars(EVERY), facets.fewest_chars, facets.most_chars)
        return both(*self._patterns(facets), length)

    def _patterns(self, facets: Facets) -> list[Regex]:
        """What a string's text has to match."""
        parts, unknown = text_regexes(facets)
        self.unchecked |= {f"pattern {p!r} ({problem})": None for p, problem in unknown.items()}
        return parts

    def _constant(self, value: Any) -> _Alternative:
        """A value as JSON, in the pieces in which other values are written."""
        if isinstance(value, Mapping):
            pieces: _Alternative = [self._mark("{")]
            for i, (key, part) in enumerate(value.items()):
                pieces += [self._mark(",")] * (i > 0) + [self._key(str(key)), self._text(": ")]
                pieces += self._constant(part)
            return [*pieces, self._mark("}")]
        if isinstance(value, list | tuple):
            pieces = [self._mark("[")]
            for i, part in enumerate(value):
                pieces += [self._mark(",")] * (i > 0) + self._constant(part)
            return [*pieces, self._mark("]")]
        return [self._literal(value)]

    def _literal(self, value: Any) -> Terminal:
        text = json.dumps(value, ensure_ascii=False)
        if isinstance(value, float) and text.endswith(".0"):  # 1.0 is 1
            return self._regex(either(literal(text), literal(text[:-2])))
        return self._text(text)

    def _string(self, facets: Facets) -> _Alternative:
        lengths = (facets.fewest_chars, facets.most_chars)
        return [self._regex(string_regex(self._patterns(facets), *lengths))]

    def _key(self, name: str) -> Terminal:
        return self._literal(name)

    def _keys(self, names: Regex, *, some: bool) -> Terminal:
        """Any key of a name that matches; `some` if these may run out."""
        return regex_terminal(string_regex([names]), "name" if some else "key")

    def _pairs(self, key: Terminal, schemas: tuple[Schema, ...]) -> list[_Alternative]:
        """A key with a value that fits some schemas."""
        return [[key, self._text(": "), self._all(schemas)]]

    def _braces(self) -> tuple[_Alternative, _Alternative, _Alternative]:
        """What stands before, between and after the members of the object that is being added."""
        return [self._mark("{")], [self._mark(",")], [self._mark("}")]

    def _fits(self, value: Any, facets: Facets) -> bool:
        """Whether one of the values that are allowed has what else is asked."""
        if not type_of(value) & facets.types or forbids(facets, value):
            return False
        if isinstance(value, str):
            return self._text_of(facets).matches(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            terminal = self._number(facets, integer=isinstance(value, int))
            text = json.dumps(value)
            return "e" in text or terminal.regex.matches(text)
        return True

    def _array(self, facets: Facets) -> list[_Alternative]:
        fewest, most = facets.fewest_items, facets.most_items
        if most is not None and most > _MOST_COUNTED:
            self.unchecked["maxItems"], most = None, None
        if fewest > _MOST_COUNTED:
            raise ValueError(f"`minItems` has to be at most {_MOST_COUNTED}, but is {fewest}")
        if most is not None and most < fewest:
            return []
        begin, comma, end = self._mark("["), self._mark(","), self._mark("]")
        if facets.contains:
            if facets.prefix or most is not None or fewest > 1:
                self.unchecked["contains"] = None
            else:
                item = self._all(facets.items or ())
                certain = self._all((*(facets.items or ()), *facets.contains))
                before = self._rules.new()
                self._rules.alternatives[before] = [(), (before, item, comma)]
                return [[begin, before, certain, self._more(item, [comma]), end]]
        # After the items that have to be there come those that may be: each one opens the next.
        counted = max(len(facets.prefix), fewest) if most is None else most
        items = [self._all(item_schemas(facets, i)) for i in range(counted)]
        rest = list[int]()
        if most is None:
            rest = [self._more(self._all(facets.items or ()), [comma])]
        for i in range(counted - 1, max(fewest, 1) - 1, -1):
            rest = [self._rules.new([], [comma, items[i], *rest])]
        found: list[_Alternative] = []
        if not fewest:
            found.append([begin, end])
        if counted or most is None:
            first = items[0] if items else self._all(facets.items or ())
            needed = [piece for item in items[1:fewest] for piece in (comma, item)]
            found.append([begin, first, *needed, *rest, end])
        return found

    def _different(self, facets: Facets) -> list[_Alternative] | None:
        """Lists of different items; None where the items may have many values."""
        if facets.prefix or facets.contains or not facets.items:
            return None
        values: dict[str, Any] = {}
        for part in read({"allOf": list(facets.items)}, self._root):
            if part.values is None or any(isinstance(v, list | dict) for v in part.values):
                return None
            values.update((canonical(v), v) for v in part.values if self._fits(v, part))
        if len(values) > _MOST_DIFFERENT:
            return None
        states = [self._rules.new() for _ in range(1 << len(values))]  # by the values that are used
        most = len(values) if facets.most_items is None else facets.most_items
        for used, rule in enumerate(states):
            if facets.fewest_items <= used.bit_count() <= most:
                self._rules.alternatives[rule].append((self._mark("]"),))
            between: _Alternative = [self._mark(",")] if used else []
            for i, value in enumerate(values.values()):
                if not used >> i & 1 and used.bit_count() < most:
                    one = (*between, *self._constant(value), states[used | 1 << i])
                    self._rules.alternatives[rule].append(one)
        return [[self._mark("["), states[0]]]

    def _more(self, item: int, comma: _Alternative) -> int:
        """Any number of further items."""
        more = self._rules.new()
        self._rules.alternatives[more] = [(), (more, *comma, item)]
        return more

    def _object(self, facets: Facets) -> list[_Alternative]:
        others = facets.others
        if others is None:  # an object holds what its schema names, unless it says otherwise
            others = (False,) if facets.named and not facets.by_pattern else ()
        names = [self._name(part) for part in facets.names]
        members: list[tuple[int, bool]] = []  # a member's rule, and whether it has to be there
        listed = dict.fromkeys([*facets.properties, *facets.required])
        for name in listed:
            schemas = property_schemas(facets, name)
            allowed = False not in schemas and all(part.matches(name) for part in names)
            if allowed:
                pairs = self._pairs(self._key(name), schemas)
                members.append((self._rules.new(*pairs), name in facets.required))
            elif name in facets.required:
                return []
        free = self._free_members(facets, others, names, list(listed))
        return self._members(members, free, facets.fewest_properties, facets.most_properties)

    def _free_members(
        self, facets: Facets, others: tuple[Schema, ...], names: list[Regex], listed: list[str]
    ) -> int | None:
        """The rule of a member whose name is not listed; None if there is none."""
        taken = [no(literal(name)) for name in listed]
        pairs: list[_Alternative] = []
        patterns = [(parse_pattern(p), schema) for p, schema in facets.by_pattern]
        for chosen in subsets(len(patterns)):
            schemas = tuple(patterns[i][1] for i in chosen) or others
            if False in schemas:
                continue
            matching = [
                regex if i in chosen else no(regex) for i, (regex, _) in enumerate(patterns)
            ]
            name = both(ANYTHING, *matching, *names, *taken)
            pairs += self._pairs(self._keys(name, some=bool(chosen or names)), schemas)
        return self._rules.new(*pairs) if pairs else None

    def _name(self, schema: Schema) -> Regex:
        """The texts of names that fit a schema."""
        options = []
        for facets in read(schema, self._root):
            self.unchecked.update(dict.fromkeys(sorted(facets.unchecked)))
            if facets.values is not None:
                texts = [v for v in facets.values if isinstance(v, str) and self._fits(v, facets)]
                options.append(either(*map(literal, texts)))
            elif "string" in facets.types:
                options.append(self._text_of(facets))
        return either(*options)

    def _members(
        self, members: list[tuple[int, bool]], free: int | None, fewest: int, most: int | None
    ) -> list[_Alternative]:
        """Objects of some members in their order, then any number of free ones.

        A state is the number of members that were passed, and how many of them were written, as
        far as that matters.
        """
        required = sum(needed for _, needed in members)
        least = fewest if fewest > required else 0
        counted = max(least, 0 if most is None else most)
        if counted * len(members) > _MOST_STATES or counted > _MOST_COUNTED:
            self.unchecked["minProperties" if most is None else "maxProperties"] = None
            least, most, counted = 0, None, 0
        if most is not None and required > most:
            return []
        begin, comma, end = self._braces()
        states: dict[tuple[int, int, bool], int] = {}

        def state(passed: int, written: int) -> int:
            """The rule of what follows; `written` is 0, or up to what counts."""
            number = min(written, max(counted, 1))
            key = (passed, number, written > 0)
            if key not in states:
                states[key] = self._rules.new()
                queue.append((states[key], passed, number))
            return states[key]

        queue: list[tuple[int, int, int]] = []
        start = state(0, 0)
        for rule, passed, written in queue:  # grows as it is read
            alternatives = self._rules.alternatives[rule]
            between = comma if written else []
            room = most is None or written < most
            if passed < len(members):
                member, needed = members[passed]
                if room:
                    alternatives.append((*between, member, state(passed + 1, written + 1)))
                if not needed:
                    alternatives.append((state(passed + 1, written),))
                continue
            if written >= least:
                alternatives.append((*end,))
            if free is None or not room:
                continue
            if written < counted:
                alternatives.append((*between, free, state(passed, written + 1)))
            else:  # nothing is counted any more
                alternatives.append((*between, free, self._more(free, comma), *end))
        return [[*begin, start]]
