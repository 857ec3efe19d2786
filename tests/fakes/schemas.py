"""Random JSON schemas of every kind that is supported."""

from hypothesis import strategies as st

NUMBERS = st.integers(-20, 20) | st.sampled_from([0.5, -1.5, 2.25])
PATTERNS = ["^a+$", "b", "^[a-z]{2,4}$", r"\d", "^(x|y)", "[^q]$", "^(?!a)"]
FORMATS = ["email", "date", "date-time", "uuid", "ipv4", "uri", "duration", "somebody's own"]
VALUES = ["a", "bb", 1, 2.5, None, True, [], [1, "x"], {}, {"k": 1}]
NAMES = ["a", "b", "c", "dd", "e f"]


def _some(words, **choices):
    """A schema of some words, and of any of some others."""
    optional = {word: strategy for word, strategy in choices.items()}
    return st.fixed_dictionaries(words, optional=optional)


STRINGS = st.one_of(
    _some({"type": st.just("string")}, minLength=st.integers(0, 3), maxLength=st.integers(3, 6)),
    _some({"type": st.just("string"), "pattern": st.sampled_from(PATTERNS)}),
    _some({"type": st.just("string"), "format": st.sampled_from(FORMATS)}),
)
NUMERIC = st.one_of(
    _some(
        {"type": st.sampled_from(["integer", "number"])}, minimum=NUMBERS, exclusiveMaximum=NUMBERS
    ),
    _some(
        {"type": st.sampled_from(["integer", "number"])},
        exclusiveMinimum=NUMBERS,
        multipleOf=st.sampled_from([1, 2, 3, 7, 0.5, 0.25]),
    ),
)
PLAIN = st.one_of(
    STRINGS,
    NUMERIC,
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"type": ["string", "null"]}]),
    st.lists(st.sampled_from(VALUES), min_size=1, max_size=3).map(lambda v: {"enum": v}),
    st.sampled_from(["a", 3, None, [1], {"z": "é"}]).map(lambda v: {"const": v}),
)


def _grown(parts):
    objects = _some(
        {
            "type": st.just("object"),
            "properties": st.dictionaries(st.sampled_from(NAMES), parts, max_size=3),
        },
        required=st.lists(st.sampled_from([*NAMES, "zz"]), max_size=3, unique=True),
        additionalProperties=st.booleans() | parts,
        minProperties=st.integers(0, 3),
        maxProperties=st.integers(2, 4),
        patternProperties=st.dictionaries(
            st.sampled_from(["^x", "d", "^[a-c]$"]), parts, max_size=2
        ),
        propertyNames=st.sampled_from(
            [{"maxLength": 2}, {"enum": ["a", "b", "q"]}, {"pattern": "^[a-z]+$"}]
        ),
        dependentRequired=st.just({"a": ["b"]}),
    )
    arrays = _some(
        {"type": st.just("array")},
        items=parts,
        prefixItems=st.lists(parts, min_size=1, max_size=2),
        minItems=st.integers(0, 3),
        maxItems=st.integers(2, 4),
        contains=parts,
    )
    several = st.lists(parts, min_size=1, max_size=3)
    return st.one_of(
        objects,
        arrays,
        several.map(lambda s: {"anyOf": s}),
        several.map(lambda s: {"oneOf": s}),
        st.tuples(parts, parts).map(lambda s: {"allOf": list(s)}),
        st.tuples(parts, st.sampled_from(VALUES)).map(lambda s: {**s[0], "not": {"const": s[1]}}),
    )


SCHEMAS = st.recursive(PLAIN, _grown, max_leaves=6)
