"""An answer's text is what follows its prompt: `decode(prompt + answer)` without the prompt's."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from langchain_llama_stop.tokens.detokenizer import TextBuilder, detokenizer
from langchain_llama_stop.tokens.masks import after_prompt
from tests.fakes.generation import decoded
from tests.fakes.tokenizers import FAMILIES

PROMPTS = ["The capital of France is", "Q:\nA:", "Hi\n", "Hi ", "é", "日本\n", " ", "</s>", "x</s>"]
PROMPTS += ["[INST] Hi[/INST]", "<|user|>\nHi<|end|>\n", "</s>\n", "a<b>", "<|tool|>", "", "  -"]
PIECES = [" Paris", "Paris", " ", "    ", "\n", " - x", "é", " é", "日", ".", "</s>", "[INST]"]


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def random_ids(tokenizer, data):
    """An answer: pieces, and any tokens before and after them, such as "▁Paris"."""
    tokens = st.lists(st.integers(0, len(tokenizer) - 1), max_size=4)
    text = "".join(data.draw(st.lists(st.sampled_from(PIECES), max_size=8)))
    return [*data.draw(tokens), *encode(tokenizer, text), *data.draw(tokens)]


@settings(max_examples=70, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_what_decoding_the_whole_adds_to_the_prompt(name, data):
    tokenizer = FAMILIES[name]
    prompt = tokenizer(data.draw(st.sampled_from(PROMPTS)))["input_ids"]
    ids = random_ids(tokenizer, data)
    after = detokenizer(tokenizer).after(prompt)
    builder, settled = TextBuilder(after), ""
    for n in range(1, len(ids) + 1):
        builder.push(ids[n - 1])
        assert builder.text == after.decode(ids[:n])
        assert builder.text.startswith(settled)  # a stream takes nothing back
        settled = builder.text[: builder.settled]
        tail = after.tail(ids[:n], 3)
        assert tail[-3:] == builder.text[-3:]
    # Half a character after bytes of the prompt makes these unreadable too.
    for special in [False, *[True] * after.follows_text]:
        before = decoded(tokenizer, prompt, not special)
        assume(decoded(tokenizer, [*prompt, *ids], not special).startswith(before))
        assert after.decode(ids, special=special) == decoded(
            tokenizer, ids, not special, prompt=prompt
        )


@pytest.mark.parametrize("name", ["metaspace", "legacy_llama", "mistral_v3", "phi3"])
@pytest.mark.parametrize("prompt", ["日本", "日本\n", "\n", "</s>\n", "</s>日"])
def test_half_a_character_of_the_answer_does_not_reach_into_the_prompt(name, prompt):
    tokenizer = FAMILIES[name]
    after = detokenizer(tokenizer).after(tokenizer(prompt)["input_ids"])
    first, second, third = tokenizer.convert_tokens_to_ids(["<0xE6>", "<0x97>", "<0xA5>"])
    assert after.decode([first]) == "\ufffd"
    assert after.decode([first, second, third]) == "日"
    space = tokenizer.convert_tokens_to_ids("▁")
    assert after.decode([space, first, second, third]) == " 日"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("specials", [0, 3, 40])
def test_the_visible_end_of_a_padded_prompt_is_found_in_a_row(name, specials):
    tokenizer = FAMILIES[name]
    pad, answer = [tokenizer.eos_token_id] * specials, encode(tokenizer, "a Paris is")
    for text in ("The", ""):
        prompt = [*pad, *encode(tokenizer, text), *pad]
        row = torch.tensor([*prompt, *answer], dtype=torch.long)
        after = after_prompt(detokenizer(tokenizer), row, len(prompt))
        assert after.decode(answer) == decoded(tokenizer, answer, prompt=prompt)
        assert after.follows_text == bool(text)
