"""References in JSON schemas: `$ref` and its kin as pointers from the root."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin

VALUES = ("const", "enum", "default", "examples", "example")
"""Keywords that hold values, where nothing is a schema."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas",
          "dependencies")  # fmt: skip
"""Keywords that hold schemas by names, which are no keywords."""
ANY_OF_SEVERAL = "#several"
"""Stands for a dynamic reference whose target depends on the way that leads to it."""


class _Part(NamedTuple):
    """A dict in a schema: its keys, the pointer to it, the base of its references."""

    words: dict[str, Any]
    pointer: str
    base: str


def prepared(schema: Any) -> Any:
    """A copy of a schema as `resolve` and `read` take it.

    Its references are pointers from the root, also those by `$id` (relative ones too), `$anchor`,
    `$dynamicAnchor` and `$recursiveAnchor`; those that point to nothing stay as they are. Keywords
    that are null are left out: some programs write them for all that is not set.
    """
    root = without_nulls(schema)
    old = isinstance(root, dict) and "/draft-0" in str(root.get("$schema"))
    parts = list(_parts(root, "", "", old))
    named = (part for part in reversed(parts) if _id(part.words, old))
    places = {"": ""} | {part.base: part.pointer for part in named}
    names, dynamic = dict[tuple[str, str], str](), Counter[str]()
    for words, pointer, base in parts:
        for keyword in ("$anchor", "$dynamicAnchor", "$id", "id"):
            name = words.get(keyword)
            if isinstance(name, str) and keyword.endswith("d") and not name.startswith("#"):
                continue
            if isinstance(name, str):
                names[base, name.removeprefix("#")] = pointer
        dynamic.update([str(words.get("$dynamicAnchor")), str(words.get("$recursiveAnchor"))])

    def pointer_of(reference: str, base: str) -> str | None:
        whole = base + reference if reference.startswith("#") else urljoin(base, reference)
        document, fragment = urldefrag(whole)
        if not fragment.startswith("/") and fragment:
            return names.get((document, fragment))
        for start in (places.get(document), "" if reference.startswith("#") else None):
            if start is not None and _at(root, start + fragment) is not None:
                return start + fragment
        return None

    for words, _, base in parts:
        for keyword in ("$ref", "$dynamicRef", "$recursiveRef"):
            reference = words.get(keyword)
            place = pointer_of(reference, base) if isinstance(reference, str) else None
            if place is None:
                continue
            target = _at(root, place)
            anchor = {"$dynamicRef": "$dynamicAnchor", "$recursiveRef": "$recursiveAnchor"}
            name = target.get(anchor.get(keyword)) if isinstance(target, Mapping) else None
            is_dynamic = name is True or (name and str(reference).endswith(f"#{name}"))
            several = is_dynamic and dynamic[str(name)] > 1
            words[keyword] = ANY_OF_SEVERAL if several else f"#{place}"
    return root


def resolve(reference: str, root: Any) -> Any:
    """The part of a schema that a pointer leads to (`#`, `#/$defs/a`).

    Raises:
        ValueError: If it is no pointer, or leads to nothing.
    """
    if not reference.startswith("#"):
        raise ValueError(f"`$ref: {reference}` points out of the schema")
    is_pointer = reference == "#" or reference.startswith("#/")
    target = _at(root, reference[1:]) if is_pointer else None
    if not isinstance(target, Mapping | bool):
        raise ValueError(f"`$ref: {reference}` points to nothing")
    return target


def without_nulls(part: Any, by_name: bool = False) -> Any:
    """A copy of a schema, or of schemas by names, without keywords that are null."""
    if isinstance(part, list | tuple):
        return [without_nulls(inner) for inner in part]
    if not isinstance(part, Mapping):
        return part
    if by_name:
        return {name: without_nulls(inner) for name, inner in part.items()}
    return {
        key: value if key in VALUES else without_nulls(value, key in _NAMED)
        for key, value in part.items()
        if value is not None or key == "const"
    }


def _id(words: Mapping[str, Any], old: bool) -> str:
    """The name of a part; "" if it has none, or one that is an anchor.

    In the `old` drafts, those before 2019, nothing counts beside `$ref`.
    """
    name = "" if old and "$ref" in words else words.get("$id", words.get("id"))
    return name if isinstance(name, str) and not name.startswith("#") else ""


def _parts(part: Any, pointer: str, base: str, old: bool, by_name: bool = False) -> Iterator[_Part]:
    """All schemas in a schema, or in schemas by names, each before those in it."""
    if isinstance(part, list):
        for index, inner in enumerate(part):
            yield from _parts(inner, f"{pointer}/{index}", base, old)
    if not isinstance(part, dict):
        return
    if not by_name:
        base = urldefrag(urljoin(base, _id(part, old)))[0]
        yield _Part(part, pointer, base)
    for key, inner in part.items():
        if by_name or key not in VALUES:
            escaped = key.replace("~", "~0").replace("/", "~1").replace("%", "%25")
            named = key in _NAMED and not by_name
            yield from _parts(inner, f"{pointer}/{escaped}", base, old, named)


def _at(root: Any, pointer: str) -> Any:
    """What stands at a JSON pointer; None if nothing does."""
    target = root
    for key in pointer.split("/")[1:]:
        plain = unquote(key).replace("~1", "/").replace("~0", "~")
        if isinstance(target, Mapping):
            target = target.get(plain, target.get(key))
        elif isinstance(target, list) and plain.isdecimal() and int(plain) < len(target):
            target = target[int(plain)]
        else:
            return None
    return target
