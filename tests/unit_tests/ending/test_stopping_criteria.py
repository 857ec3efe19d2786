"""Stop sequences as a stopping criterion."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.ending.stopping_criteria import StopSequenceCriteria
from tests.fakes import (
    TOKENIZERS,
    ScriptedLlama,
    scripted_answers,
)
from tests.fakes.generation import decoded

STOPS = ["\nObservation:", "😀", "Observation", " the", "END", "日本", "</s>", "\n\n", "a"]
TEXT = st.lists(
    st.sampled_from([*STOPS, "Thought: look", " in", "\n", "é", "E", "N", "😁", "本", "x "]),
    max_size=10,
).map("".join)


@settings(max_examples=250, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", TOKENIZERS)
def test_stops_at_the_first_token_that_completes_a_stop(name, data):
    tokenizer = TOKENIZERS[name]
    stops = data.draw(st.lists(st.sampled_from(STOPS), min_size=1, max_size=3))
    ids = tokenizer(data.draw(TEXT), add_special_tokens=False)["input_ids"]
    ids = ids + data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=5))
    prompt = tokenizer("Say END and \nObservation:", add_special_tokens=False)["input_ids"]
    criteria = StopSequenceCriteria(tokenizer, stop=stops, prompt_length=len(prompt))
    for n in range(1, len(ids) + 1):
        text = decoded(tokenizer, ids[:n], True, prompt)
        full = decoded(tokenizer, ids[:n], False, prompt)
        stopped = bool(criteria(torch.tensor([prompt + ids[:n]]), None)[0])
        assert stopped == (any(s in text for s in stops) or ("</s>" in stops and "</s>" in full))
        if stopped:
            break


def test_rows_stop_on_their_own():
    tokenizer = TOKENIZERS["bytes"]
    criteria = StopSequenceCriteria(
        tokenizer, stop=["ab"], stop_token_ids=[[1, 2], 7], prompt_length=1
    )
    a, b = 97, 98
    rows = torch.tensor([[b, a, b], [a, b, a], [5, 1, 2], [7, 5, 5], [5, 5, 7]])
    assert criteria(rows, None).tolist() == [True, False, True, False, True]


def test_before_the_first_token_nothing_stops():
    criteria = StopSequenceCriteria(TOKENIZERS["bytes"], stop=["a"], prompt_length=2)
    assert criteria(torch.tensor([[97, 97]]), None).tolist() == [False]


def test_usable_with_plain_generate():
    tokenizer = TOKENIZERS["metaspace"]
    inputs = tokenizer("Question: what?\nThought:", return_tensors="pt")
    prompt = inputs["input_ids"][0].tolist()
    answer = tokenizer("use the tool\nObservation: 42", add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    model = ScriptedLlama(
        len(tokenizer), scripted_answers({tuple(prompt): answer}, len(tokenizer), eos), eos, eos
    )
    criteria = StopSequenceCriteria(tokenizer, stop=["\nObservation:"], prompt_length=len(prompt))
    ids = model.generate(
        **inputs, max_new_tokens=50, do_sample=False, stopping_criteria=[criteria]
    )[0, len(prompt) :]
    assert tokenizer.decode(ids) == "use the tool\nObservation:"


@pytest.mark.parametrize(
    "kwargs",
    [{"stop": [""]}, {"stop": "END"}, {"stop_token_ids": [[]]}, {"prompt_length": -1}],
)
def test_wrong_arguments_are_refused(kwargs):
    with pytest.raises(ValueError, match="`(stop|stop_token_ids|prompt_length)`"):
        StopSequenceCriteria(TOKENIZERS["bytes"], **{"prompt_length": 0, **kwargs})
