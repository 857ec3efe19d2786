"""Every path reads an answer as what follows its prompt, whatever its tokenizer does at a start."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from transformers import StoppingCriteriaList

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM
from langchain_llama_stop.ending import boundaries
from langchain_llama_stop.ending.logits_processor import EosTokenRewardLogitsProcessor
from langchain_llama_stop.ending.stopping_criteria import StopSequenceCriteria
from langchain_llama_stop.engine.generate import generate
from tests.fakes import ScriptedLlama, make_pipeline, scripted_answers
from tests.fakes.generation import decoded, options, oracle, streamed
from tests.fakes.tokenizers import FAMILIES

SPACED = sorted(FAMILIES.keys() - {"bytes", "words"})  # with tokens that begin with a space
PROMPTS = [
    "The capital of France is",
    "Q:\nA:",
    "Hi\n",
    "é is",
    "[INST] Hi[/INST]",
    "x</s>",
    "</s>",
]
ANSWERS = [" Paris.", "Paris is", " ", "  - a\n  - b", "\n Paris", " é", "a", ""]
STOPS = [" Paris", "Paris", "\n", " ", "  -", " é", "</s>", "."]
TEMPLATE = (
    "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}\n{% endif %}{% endfor %}"
)


def after(tokenizer, text):
    """The ids of a text as they follow another one: the first piece keeps its space."""
    first = tokenizer("a", add_special_tokens=False)["input_ids"]
    return tokenizer("a" + text, add_special_tokens=False)["input_ids"][len(first) :]


def answering(tokenizer, answers):
    """A pipeline whose model answers prompts, given as ids."""
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    scores = scripted_answers({tuple(p): ids for p, ids in answers.items()}, size, eos)
    return make_pipeline(ScriptedLlama(size, scores, eos, eos), tokenizer)


PIPELINES = {name: answering(tokenizer, {}) for name, tokenizer in FAMILIES.items()}


@settings(max_examples=6, deadline=None, phases=[Phase.generate])
@given(data=st.data())
@pytest.mark.parametrize("name", FAMILIES)
def test_one_text_on_every_path(name, data):
    tokenizer, pipeline = FAMILIES[name], PIPELINES[name]
    prompts = data.draw(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=2, unique=True))
    prompts = [prompt for prompt in prompts if tokenizer(prompt)["input_ids"]]
    stops = data.draw(st.lists(st.sampled_from(STOPS), max_size=2, unique=True))
    said = {}
    for prompt in prompts:
        ids = after(tokenizer, data.draw(st.sampled_from(ANSWERS)))
        ids += data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=3))
        key = tuple(tokenizer(prompt)["input_ids"])
        said[key] = [i for i in ids if i != tokenizer.eos_token_id]
    size, eos = len(tokenizer), tokenizer.eos_token_id
    pipeline.model.next_scores = scripted_answers(said, size, eos)
    full = data.draw(st.booleans())
    settings = {"eos_reward": False, "max_new_tokens": 30, "prefix_cache": 0}
    opts = options(stop=stops, return_full_text=full, **settings)
    expected = []
    for prompt, (ids, answer) in zip(prompts, said.items(), strict=True):
        text, reason = oracle(tokenizer, ids, answer, stops)
        expected.append((prompt * full + text, reason))
    responses = generate(pipeline, prompts, opts)
    assert [(r.text, r.stop_reason) for r in responses] == expected
    for prompt, response in zip(prompts, responses, strict=True):
        assert streamed(pipeline, prompt, opts) == (response.text, response)


@pytest.mark.parametrize("name", SPACED)
def test_the_full_text_is_that_of_the_whole(name):
    tokenizer, prompt = FAMILIES[name], "The capital of France is"
    ids, answer = tokenizer(prompt)["input_ids"], after(tokenizer, " Paris")
    llm = LlamaStopLLM(pipeline=answering(tokenizer, {tuple(ids): answer}), eos_reward=False)
    whole = decoded(tokenizer, [*ids, *answer])
    assert llm.invoke(prompt, return_full_text=True) == prompt + " Paris"
    if decoded(tokenizer, ids) == prompt:  # with no space before it
        assert whole == prompt + " Paris"
    (generation,) = llm.generate([prompt], stop=[" Paris"]).generations[0]
    assert (generation.text, generation.generation_info["stop_reason"]) == ("", " Paris")
    assert llm.invoke(prompt, logprobs=True) == " Paris"


@pytest.mark.parametrize("name", SPACED)
def test_the_tokens_of_logprobs_add_up_to_the_text(name):
    tokenizer, prompt = FAMILIES[name], "The capital of France is"
    answer = after(tokenizer, " Paris is a")
    pipeline = answering(tokenizer, {tuple(tokenizer(prompt)["input_ids"]): answer})
    opts = options(eos_reward=False, logprobs=True, max_new_tokens=len(answer))
    (response,) = generate(pipeline, [prompt], opts)
    assert "".join(entry["token"] for entry in response.logprobs) == response.text == " Paris is a"


@pytest.mark.parametrize("name", SPACED)
def test_a_chat_answer_continues_what_the_conversation_ends_with(name, monkeypatch):
    tokenizer, begun = FAMILIES[name], "The capital of France is"
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    talk, seen = [("human", "Where?"), ("ai", begun)], []
    pipeline = answering(tokenizer, {})

    def next_scores(history):
        seen.append(history)
        return scripted_answers({seen[0]: after(tokenizer, " Paris")}, len(tokenizer), eos)(history)

    eos, pipeline.model.next_scores = tokenizer.eos_token_id, next_scores
    chat = ChatLlamaStop(pipeline=pipeline, max_tokens=20, eos_reward=False, prefix_cache=0)
    tool = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
    readable = name.startswith(("byte", "legacy", "meta", "mistral", "phi"))  # by llguidance
    for more in [{}, *[{"tools": [tool]}] * readable]:
        seen.clear()
        message = chat.invoke(talk, continue_final_message=True, **more)
        assert begun + message.content == "The capital of France is Paris"
        chunks = list(chat.stream(talk, continue_final_message=True, **more))
        assert "".join(chunk.content for chunk in chunks) == message.content


@pytest.mark.parametrize("name", SPACED)
@pytest.mark.parametrize("padding", [0, 40])
def test_a_criterion_of_plain_generate_finds_a_stop_that_begins_with_a_space(name, padding):
    tokenizer, prompt = FAMILIES[name], "The capital of France is"
    ids, answer = tokenizer(prompt)["input_ids"], after(tokenizer, " Paris is a")
    rows = torch.tensor([[tokenizer.eos_token_id] * padding + ids])
    criteria = StopSequenceCriteria(tokenizer, stop=[" Paris"], prompt_length=rows.shape[1])
    made = answering(tokenizer, {tuple(ids): answer}).model.generate(
        input_ids=rows,
        attention_mask=torch.tensor([[0] * padding + [1] * len(ids)]),
        max_new_tokens=20,
        stopping_criteria=StoppingCriteriaList([criteria]),
    )
    assert decoded(tokenizer, made[0, rows.shape[1] :].tolist(), prompt=ids) == " Paris"


@pytest.mark.parametrize("name", SPACED)
@pytest.mark.parametrize("hindsight", [True, False])
def test_the_end_of_an_answer_is_sought_in_the_same_text(name, hindsight, monkeypatch):
    tokenizer, prompt, read = FAMILIES[name], "The capital is", []
    may_end = boundaries.may_end
    monkeypatch.setattr(boundaries, "may_end", lambda *a: read.append(a[0]) or may_end(*a))
    answer = after(tokenizer, " Paris. The end is a Paris is a Paris is a Paris is")
    pipeline = answering(tokenizer, {tuple(tokenizer(prompt)["input_ids"]): answer})
    reward = {"start": 0.1, "hindsight": hindsight}
    opts = options(eos_reward=reward, max_new_tokens=len(answer) - 2)
    (response,) = generate(pipeline, [prompt], opts)
    assert response.text.startswith(" Paris.") and read
    assert all(text.startswith(" Paris") for text in read if len(text) > 6)


def test_a_server_row_is_read_after_its_prompt(monkeypatch):
    tokenizer, read = FAMILIES["metaspace"], []
    monkeypatch.setattr(boundaries, "may_end", lambda *a: bool(read.append(a[0])))
    processor = EosTokenRewardLogitsProcessor(tokenizer, max_new_tokens=9, prompt_length=0)
    answer = processor.answer(tokenizer("It is")["input_ids"])
    answer.grow(after(tokenizer, " Paris."))
    processor.row_edit(0, answer)
    assert read == [" Paris."]


@pytest.mark.parametrize("name", ["metaspace", "legacy_llama", "gemma", "byte_bpe"])
def test_an_answer_is_one_that_its_grammar_allows(name):
    pytest.importorskip("llguidance")
    tokenizer, prompt = FAMILIES[name], "The capital is"
    answer = after(tokenizer, " Paris")
    pipeline = answering(tokenizer, {tuple(tokenizer(prompt)["input_ids"]): answer})
    llm = LlamaStopLLM(pipeline=pipeline, max_new_tokens=20)
    assert llm.invoke(prompt, grammar='start: " Paris"') == " Paris"
