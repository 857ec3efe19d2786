"""The shortest completion: of any schema, from any place, and truly the shortest."""

import json
import os

import jsonschema
import llguidance.hf
import llguidance.numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from langchain_llama_stop.grammar.keys import Keys, shortest_completion
from langchain_llama_stop.grammar.schema import json_grammar
from langchain_llama_stop.grammar.vocabulary import Vocabulary
from tests.fakes.schemas import SCHEMAS

EXAMPLES = 3000 if os.environ.get("LLAMA_STOP_LONG") else 150


class Tokens:
    """A tokenizer of some texts, for llguidance."""

    bos_token_id = None

    def __init__(self, texts):
        self.tokens = [*(text.encode("latin-1") for text in texts), b"</s>"]
        self.eos_token_id = len(texts)
        self.special_token_ids = [len(texts)]

    def __call__(self, text):
        return [self.tokens.index(bytes([b])) for b in text]


BYTES = LLTokenizer(TokenizerWrapper(Tokens([chr(i) for i in range(256)])))


def matcher_of(grammar, tokenizer=BYTES):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(grammar.lark), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def allowed(matcher):
    mask = llguidance.numpy.allocate_token_bitmask(1, 257)
    llguidance.numpy.fill_next_token_bitmask(matcher, mask, 0)
    return [i for i in range(256) if mask[0][i >> 5] >> (i & 31) & 1]


def once(pairs):
    assert len(dict(pairs)) == len(pairs), f"a key is written twice: {pairs}"
    return dict(pairs)


@settings(max_examples=EXAMPLES, deadline=None)
@given(schema=SCHEMAS, data=st.data())
def test_any_beginning_can_be_completed(schema, data):
    """Whatever is written, the completion is allowed, valid, and known before it is needed."""
    try:
        grammar = json_grammar(schema)
    except ValueError as error:
        assert "none does" in str(error) or "cannot be enforced" in str(error)
        return
    matcher, place, keys = matcher_of(grammar), grammar.parser.begin(), Keys()
    written = ""
    for _ in range(data.draw(st.integers(0, 20), "steps")):
        following = [
            chr(b)
            for b in allowed(matcher)
            if (after := place.after(chr(b))) is not None
            and shortest_completion(after, keys.after(chr(b))) is not None
        ]
        if not following:
            break
        likely = [c for c in following if c in '{}[]",: abxdq0123.-'] or following
        symbol = data.draw(st.sampled_from(likely))
        written += symbol
        place, keys = place.after(symbol), keys.after(symbol)
        assert matcher.consume_token(ord(symbol))
    assert place.accepting == matcher.is_accepting()
    completion = shortest_completion(place, keys)
    assert matcher.consume_tokens([ord(c) for c in completion]) and matcher.is_accepting()
    answer = (written + completion).encode("latin-1").decode()
    value = json.loads(answer, object_pairs_hook=once)
    if not grammar.unchecked:
        checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(value)


SMALL = [
    ({"enum": ["abba", "b"]}, ["a", "b", '"', "ab", 'ba"', 'b"']),
    ({"type": "string", "pattern": "^a+b$"}, ["a", "b", '"', '"a', "aab", 'b"', "aa"]),
    ({"type": "integer", "minimum": 12, "maximum": 321}, ["1", "2", "3", "0", "21", "99", "-"]),
    ({"type": "integer", "multipleOf": 7, "minimum": 1}, [*"0123456789", "33"]),
    (
        {"type": "array", "items": {"enum": [1, 12]}, "minItems": 2},
        ["[", "]", "1", "2", ", ", ", 1"],
    ),
    ({"anyOf": [{"const": "aaaa"}, {"const": "bb"}]}, ['"', "a", "b", "aa", "aaa", '"aa']),
    ({"type": "string", "minLength": 3, "maxLength": 4}, ['"', "a", "aa", 'a"', "\\", "n"]),
    ({"type": "object", "properties": {"a": {"enum": [1, None]}}, "required": ["a"]},
     ["{", "}", '"a"', ": ", "1", "null", '{"', 'a"', ": n", "ull", "1}"]),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "texts"), SMALL, ids=lambda v: json.dumps(v)[:40])
def test_no_sequence_of_tokens_is_shorter(schema, texts):
    """Brute force over all sequences of tokens, from every beginning of up to two."""
    everything = [*texts, *map(chr, range(256))]
    tokenizer = LLTokenizer(TokenizerWrapper(Tokens(everything)))
    grammar, vocabulary = json_grammar(schema), Vocabulary(tokenizer)
    used = [i for i, text in enumerate(everything) if set(text) <= set("".join(texts))]

    def fewest(matcher, limit):
        level = [matcher]
        for length in range(limit + 1):
            if any(m.is_accepting() for m in level):
                return length
            following = []
            for before in level:
                for token in used:  # a mask holds one token where the text is forced
                    if before.validate_tokens([token]):
                        after = before.deep_copy()
                        after.consume_token(token)
                        following.append(after)
            level = following
        return None

    for begun in [(), *((i,) for i in range(len(texts)))]:
        matcher = matcher_of(grammar, tokenizer)
        place = grammar.parser.begin().after("".join(texts[t] for t in begun))
        if matcher.validate_tokens(list(begun)) < len(begun):
            assert place is None
            continue
        matcher.consume_tokens(list(begun))
        found = vocabulary.fewest(place, 12)
        assert found is not None and len(found) == fewest(matcher, len(found))
        assert vocabulary.length(place.completion) >= len(found)
        matcher.consume_tokens(found)
        assert matcher.is_accepting()
        if found:
            assert vocabulary.fewest(place, len(found) - 1) is None


@pytest.mark.parametrize("text", ["", "a", '{"a": 1}', "aaaa", "abba"])
def test_a_text_in_the_fewest_tokens(text):
    texts = ["a", "aa", "aaa", "ab", "ba", '{"', '"', ": ", "1", "}"]
    vocabulary = Vocabulary(LLTokenizer(TokenizerWrapper(Tokens([*texts, *map(chr, range(256))]))))
    ids = vocabulary.ids(text)
    assert "".join(vocabulary.texts[i] for i in ids) == text and len(ids) == vocabulary.length(text)

    def fewest(rest):
        ends = [n for n in range(1, len(rest) + 1) if n == 1 or rest[:n] in texts]
        return min((1 + fewest(rest[n:]) for n in ends), default=0)

    assert len(ids) == fewest(text)


def test_a_key_that_is_taken_is_not_written_again():
    grammar = json_grammar(
        {"type": "object", "minProperties": 4, "additionalProperties": {"type": "integer"}}
    )
    for begun in ("", "{", '{"": 1', '{"": 1, "', '{"a": 1, "b": 2, "a', '{"0": 1, "'):
        completion = shortest_completion(grammar.parser.begin().after(begun), Keys().after(begun))
        assert len(json.loads(begun + completion, object_pairs_hook=once)) >= 4
    twice = '{"a": 1, "a"'
    assert Keys().after(twice).repeated and not Keys().after(twice).after(": ").repeated
    assert shortest_completion(grammar.parser.begin().after(twice), Keys().after(twice)) is None


def test_names_that_run_out():
    schema = {"type": "object", "propertyNames": {"enum": ["x", "y"]}, "minProperties": 3}
    with pytest.raises(ValueError, match="has to be a schema that some value fits, but none does"):
        json_grammar(schema)
    assert json_grammar({**schema, "minProperties": 2}).parser.has_names
