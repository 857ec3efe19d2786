"""The hint for brevity goes into any prompt, whatever the chat template wants."""

import pytest

from langchain_llama_stop.engine.hint import add_hint
from tests.fakes import byte_tokenizer
from tests.fakes.templates import OURS

QUESTION = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("name", OURS)
def test_a_hint_goes_into_the_turn_or_before_the_text(name):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = OURS[name]
    hinted = add_hint(tokenizer, QUESTION, "Be brief.")
    inside = QUESTION.replace("Why?", "Why?\n\nBe brief.")
    before = f"Be brief.\n\n{QUESTION}"
    assert hinted in ([before] if name == "a list of tools" else [inside, before])
