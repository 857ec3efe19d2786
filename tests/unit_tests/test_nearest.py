"""An unknown name comes with the one that was meant, before the list of all."""

from dataclasses import fields

import pytest

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM
from langchain_llama_stop._checks import nearest
from langchain_llama_stop.options import ALIASES, OPTIONS
from langchain_llama_stop.training.options import FinetuneOptions
from tests.fakes.generation import tiny

MEANT = {
    "max_new_token": "max_new_tokens",
    "temp": "temperature",
    "tempreature": "temperature",
    "stop_sequences": "stop",
    "stop_words": "stop",
    "max_length": "max_tokens",
    "num_predict": "max_tokens",
    "do_sample": "temperature",
    "repeat_penalty": "repetition_penalty",
    "load_in_4bit": "quantization",
    "device": "device_map",
    "json_shema": "json_schema",
}


@pytest.mark.parametrize("name", MEANT)
@pytest.mark.parametrize("kind", [LlamaStopLLM, ChatLlamaStop])
def test_the_nearest_option_comes_first(kind, name):
    with pytest.raises(ValueError) as caught:
        kind(pipeline=tiny(), **{name: 1})
    said = str(caught.value)
    start = f"Unknown option {name!r}. Did you mean {MEANT[name]!r}? Known: "
    assert start in said and said.index("Did you mean") < said.index("Known: ")


@pytest.mark.parametrize("name", ["xyz", "q", "", "🦙", "wwwwwwww"])
def test_nothing_is_near(name):
    assert nearest(name, [*OPTIONS, *ALIASES]) == []


@pytest.mark.parametrize("name", ["lora_r", "lora_rank", "rank"])
def test_the_rank_of_lora_is_found(name):
    assert nearest(name, [f.name for f in fields(FinetuneOptions)]) == ["r"]


def test_a_name_with_one_letter_less_is_found():
    known = [*OPTIONS, *ALIASES]
    for name in known:
        for place in range(len(name)):
            wrong = name[:place] + name[place + 1 :]
            if wrong not in known and len(name) > 5:
                assert nearest(wrong, known) == [name]
