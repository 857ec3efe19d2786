"""Lark grammars that users write: their rules are read as llguidance reads them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.grammar.completion import grammar_tokens
from langchain_llama_stop.grammar.read_lark import UnknownLark, lark_parser
from langchain_llama_stop.grammar.schema import Grammar
from langchain_llama_stop.grammar.state import begin
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import TOKENIZERS, ScriptedLlama, hashed_scores, make_pipeline

GRAMMARS = [
    'start: "yes" | "no" -> other | ("may" "be"?)',
    'start: /[a-z ]+/ /[0-9]{2}/ "END" // a comment\n# another',
    'start: "a"+ | "b(" inner ")"\ninner: "c"{30} | "d" "(" inner ")"',
    'start: "y" /[0-9]{80}/ | "zo" | /x(a|b{40})y/',
    'start: "- " LINE ("\\n- " LINE){2}\nLINE: /[^\\n]{1,9}/',
    'start: item ("," item)*\nitem: NAME "=" [NUMBER]\nNAME: LETTER (LETTER | "_")~0..3\n'
    "%import common (LETTER, NUMBER)",
    'start: expr\n?expr: expr "+" term\n | term\n!term: INT | "(" expr ")"\n%import common.INT',
    'start: "SELECT"i WORD "from"i WORD\n%import common.WORD\n%import common.WS_INLINE -> SPACE\n'
    "%ignore SPACE",
    "start: a{2,3} b{,2} c{1,}\na: /x/\nb: \"y\"\nc: 'z'".replace("'", '"'),
    'start: ("a".."f"){3} | /\\d\\x41\\x{42}[^\\n"]/ | /(?i:ab)(?s:.)/s',
    "start: TEXT\nTEXT: /[a-z]*/ & ~/.*(ab|ba).*/",
    'start: /[a-z]+/ /[a-z0-9]{3}/ | "if" /i+/ "!"',
    'start: head "=" /[0-9]+/ "</f>"\nhead[lazy]: TEXT "<f"\nTEXT: /(.|\\n)*/',
    'start: word /!+/\nword[capture="w", suffix="."]: /[a-z]*/',
    'start: <|im_start|> /[a-z]+/ <[256]> | "plain"',
    '%llguidance {}\nstart: "" "é" "ü".."ž" | /\\p{Greek}?[α-ω]{2}/'.replace("\\p{Greek}?", ""),
]
UNREAD = {
    'start: %json {"type": "boolean"}': "%json",
    'start: word "."\nword[stop="."]: /[a-z]*/': "'stop'",
    "start: word\nword[max_tokens=3]: /[a-z]*/": "'max_tokens'",
    "start: <[256-258]>": "<[256-258]>",
    'start: %regex {"substring_chars": "abc"}': "%regex",
    'start: perm::0x0\nperm::_: "" %if is_ones([0:2])\n  | "a" perm::set_bit(0) %if bit_clear(0)\n'
    '  | "b" perm::set_bit(1) %if bit_clear(1)': '_: "" %if',
}


@settings(max_examples=150, deadline=None)
@given(
    lark=st.sampled_from(GRAMMARS),
    name=st.sampled_from(sorted(TOKENIZERS)),
    seed=st.integers(0, 10**6),
)
def test_rules_are_read_as_llguidance_reads_them(lark, name, seed):
    tokens = grammar_tokens(TOKENIZERS[name])
    try:
        parser = lark_parser(lark, tokens.vocabulary.special)
    except UnknownLark:
        assert "<|im_start|>" in lark and tokens.vocabulary.special("<|im_start|>") is None
        return
    random, matcher = np.random.default_rng(seed), tokens.compiled(lark).deep_copy()
    state = begin(tokens, Grammar(lark), 1000)
    assert state.place.parser.alternatives and parser.alternatives
    for _ in range(25):
        assert state.place is not None
        assert state.place.accepting == matcher.is_accepting()
        text = state.place.completion
        ids = tokens.vocabulary.ids(text)
        assert state.completion == ids or not matcher.validate_tokens(ids) == len(ids)
        bits = np.unpackbits(tokens.mask(matcher).view(np.uint8), bitorder="little")
        eos = TOKENIZERS[name].eos_token_id
        allowed = [i for i in np.flatnonzero(bits) if tokens.vocabulary.texts[i] and i != eos]
        if not allowed:
            break
        token = int(random.choice(allowed))
        matcher.consume_token(token)
        state = state.after((token,))


@pytest.mark.slow
@pytest.mark.parametrize("lark", GRAMMARS)
@pytest.mark.parametrize("seed", range(3))
def test_an_answer_is_complete_within_every_budget_that_suffices(lark, seed):
    tokenizer = TOKENIZERS["bytes"]
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    pipeline = make_pipeline(ScriptedLlama(size, hashed_scores(size, seed), eos, eos), tokenizer)
    least = begin(grammar_tokens(tokenizer), Grammar(lark), 1000).length + 1
    for budget in (least, least + 1, least + 7, least + 30):
        options = GenerationOptions.parse({"grammar": lark, "max_new_tokens": budget, "seed": seed})
        response = generate(pipeline, ["go"], options)[0]
        assert (response.finish_reason, response.eos_source) == ("stop", "model")
    if least > 1:
        options = options.updated({"max_new_tokens": least - 1})
        with pytest.raises(ValueError, match=f"`max_new_tokens` has to be {least} or more"):
            generate(pipeline, ["go"], options)


@pytest.mark.parametrize(("lark", "what"), UNREAD.items())
def test_what_is_not_read_is_named_and_searched(lark, what):
    tokenizer = TOKENIZERS["bytes"]
    with pytest.raises(UnknownLark) as problem:
        lark_parser(lark, grammar_tokens(tokenizer).vocabulary.special)
    assert what in str(problem.value)
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    pipeline = make_pipeline(ScriptedLlama(size, hashed_scores(size, 1), eos, eos), tokenizer)
    options = GenerationOptions.parse({"grammar": lark, "max_new_tokens": 12})
    assert generate(pipeline, ["go"], options)[0].finish_reason == "stop"
