"""The promises of the package, on a real model."""

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading

import pytest
from langchain_core.caches import BaseCache
from langchain_core.load import dumpd
from langchain_core.messages import convert_to_messages
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import Generation
from langchain_core.prompts import PromptTemplate

from langchain_llama_stop import (
    ChatLlamaStop,
    EosTokenRewardLogitsProcessor,
    LlamaStopLLM,
    StopSequenceCriteria,
    find_stop,
)
from langchain_llama_stop.ending.boundaries import may_end
from tests.integration_tests.conftest import QUESTIONS, chat


def info(llm, prompt, **kwargs):
    generation = llm.generate([prompt], **kwargs).generations[0][0]
    return generation.text, generation.generation_info


def test_plain_answers_are_cut_and_ours_land(demo_pipeline):
    prompt = chat(demo_pipeline, QUESTIONS[0])
    for tokens in (64, 59, 54):  # on some machine a sentence ends at one of them
        llm = LlamaStopLLM(pipeline=demo_pipeline, max_new_tokens=tokens, temperature=0)
        cut, plain = info(llm, prompt, eos_reward=False)
        assert plain["finish_reason"] == "length" and plain["eos_source"] is None
        if not may_end(cut):
            break
    assert not may_end(cut)
    landed, ours = info(llm, prompt)
    assert (ours["finish_reason"], ours["eos_source"]) == ("stop", "reward")
    assert may_end(landed) and cut.startswith(landed[:100])
    assert ours["usage_metadata"]["output_tokens"] <= 64


def test_the_plain_tokens_are_those_of_generate(demo_pipeline):
    prompt = chat(demo_pipeline, QUESTIONS[0])
    inputs = demo_pipeline.tokenizer(prompt, return_tensors="pt")
    ids = demo_pipeline.model.generate(**inputs, max_new_tokens=40, do_sample=False)
    expected = demo_pipeline.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :])
    llm = LlamaStopLLM(pipeline=demo_pipeline, max_new_tokens=40, eos_reward=False)
    assert llm.invoke(prompt) == expected


@pytest.mark.slow
@pytest.mark.parametrize("cut", [(0, 1), (12, 13), (30, 44), (50, 53)])
async def test_a_stop_is_one_on_every_path(demo_pipeline, cut):
    llm = LlamaStopLLM(pipeline=demo_pipeline, max_new_tokens=60, eos_reward=False)
    prompt = chat(demo_pipeline, QUESTIONS[0])
    whole = llm.invoke(prompt)
    stop = whole[slice(*cut)]  # letters, parts of words, across words: whatever it says
    expected = whole.partition(stop)[0]
    assert expected != whole
    assert llm.invoke(prompt, stop=[stop]) == expected
    assert "".join(llm.stream(prompt, stop=[stop])) == expected
    assert llm.bind(stop=[stop]).batch([prompt]) == [expected]
    assert "".join([t async for t in llm.astream(prompt, stop=[stop])]) == expected
    chain = PromptTemplate.from_template("{x}") | llm.bind(stop=[stop]) | StrOutputParser()
    assert await chain.ainvoke({"x": prompt}) == expected


@pytest.mark.slow
def test_batch_stream_and_single_answers_are_equal(demo_pipeline_float32):
    llm = LlamaStopLLM(pipeline=demo_pipeline_float32, max_new_tokens=32)
    prompts = [chat(demo_pipeline_float32, q) for q in QUESTIONS]
    single = [llm.invoke(p) for p in prompts]
    assert llm.batch(prompts) == single
    assert ["".join(llm.stream(p)) for p in prompts] == single
    for options in ({"prompt_lookup_num_tokens": 5}, {"prefix_cache": 500}, {"prefix_cache": 0}):
        assert [llm.invoke(p, **options) for p in prompts] == single


@pytest.mark.slow
def test_a_conversation_reads_only_what_is_new(demo_pipeline_float32):
    widths = []
    hook = demo_pipeline_float32.model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    facts = " ".join(f"House {i} has {i + 2} windows." for i in range(60))
    turns = [("human", facts + " How many has house 3?")]
    kept = ChatLlamaStop(pipeline=demo_pipeline_float32, temperature=0, max_tokens=16)
    plain = kept.model_copy(update={"prefix_cache": 0, "prompt_lookup_num_tokens": 0})
    for question in ("And house 9?", "And which has 20 windows?"):
        expected = plain.invoke(turns)
        widths.clear()
        answer = kept.invoke(turns)
        assert answer.content == expected.content
        turns += [answer, ("human", question)]
    assert max(widths) < 40
    length = kept.get_num_tokens_from_messages(convert_to_messages(turns))
    assert length > 500
    widths.clear()
    assert kept.invoke(turns).usage_metadata["input_tokens"] == length
    assert max(widths) < 40
    hook.remove()


@pytest.mark.slow
def test_answers_from_threads_and_tasks_are_those_of_single_calls(demo_pipeline_float32):
    llm = LlamaStopLLM(pipeline=demo_pipeline_float32, max_new_tokens=16)
    prompts = [chat(demo_pipeline_float32, q) for q in QUESTIONS]
    single = [llm.invoke(p) for p in prompts]

    async def tasks():
        return await asyncio.gather(*(llm.ainvoke(p) for p in prompts))

    assert asyncio.run(tasks()) == single
    answers = {}
    threads = [
        threading.Thread(target=lambda p=p: answers.update({p: "".join(llm.stream(p))}))
        for p in prompts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[p] for p in prompts] == single


def test_the_parts_work_alone_with_generate(demo_pipeline):
    tokenizer, model = demo_pipeline.tokenizer, demo_pipeline.model
    inputs = tokenizer(chat(demo_pipeline, QUESTIONS[0]), return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    reward = EosTokenRewardLogitsProcessor(tokenizer, max_new_tokens=48, prompt_length=length)
    ids = model.generate(**inputs, max_new_tokens=48, do_sample=False, logits_processor=[reward])[
        0, length:
    ]
    assert ids[-1] == tokenizer.eos_token_id
    assert may_end(tokenizer.decode(ids, skip_special_tokens=True))
    criteria = StopSequenceCriteria(tokenizer, stop=["Eiffel Tower"], prompt_length=length)
    ids = model.generate(
        **inputs, max_new_tokens=48, do_sample=False, stopping_criteria=[criteria]
    )[0, length:]
    text = tokenizer.decode(ids)
    assert find_stop(text, ["Eiffel Tower"]).end == len(text)


def test_token_counts_are_the_models_own(demo_pipeline):
    llm = LlamaStopLLM(pipeline=demo_pipeline)
    text = "Crème brûlée, 日本 😀 <|im_end|>"
    assert llm.get_token_ids(text) == demo_pipeline.tokenizer(text)["input_ids"]


class SQLiteCache(BaseCache):
    """Generations in an SQLite file, as JSON."""

    def __init__(self, path):
        self.path = path
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE IF NOT EXISTS cache (prompt, llm, value)")

    def lookup(self, prompt, llm_string):
        with sqlite3.connect(self.path) as db:
            query = "SELECT value FROM cache WHERE prompt = ? AND llm = ?"
            found = db.execute(query, (prompt, llm_string)).fetchone()
        return [Generation(**g) for g in json.loads(found[0])] if found else None

    def update(self, prompt, llm_string, return_val):
        with sqlite3.connect(self.path) as db:
            value = json.dumps([g.model_dump() for g in return_val])
            db.execute("INSERT INTO cache VALUES (?, ?, ?)", (prompt, llm_string, value))

    def clear(self, **kwargs):
        with sqlite3.connect(self.path) as db:
            db.execute("DELETE FROM cache")


def test_an_sqlite_cache_keeps_text_and_metadata(demo_pipeline, tmp_path):
    def llm(**kwargs):
        cache = SQLiteCache(tmp_path / "cache.db")
        return LlamaStopLLM(pipeline=demo_pipeline, max_new_tokens=12, cache=cache, **kwargs)

    prompt = chat(demo_pipeline, QUESTIONS[0])
    first = info(llm(), prompt)
    passes = []
    hook = demo_pipeline.model.register_forward_pre_hook(lambda *args: passes.append(1))
    assert info(llm(), prompt) == first
    assert not passes
    assert info(llm(eos_reward=False), prompt)[1]["finish_reason"] == "length"
    assert passes
    hook.remove()


@pytest.mark.slow
def test_the_answer_hint_reaches_the_model(demo_pipeline):
    llm = LlamaStopLLM(pipeline=demo_pipeline, max_new_tokens=64, return_full_text=True)
    prompt = chat(demo_pipeline, QUESTIONS[0])
    plain = info(llm, prompt)
    hinted = info(llm, prompt, answer_hint="Answer in {sentences} sentences or fewer.")
    more = hinted[1]["usage_metadata"]["input_tokens"] - plain[1]["usage_metadata"]["input_tokens"]
    tokenizer = demo_pipeline.tokenizer
    assert more == len(tokenizer("\n\nAnswer in 2 sentences or fewer.")["input_ids"])
    assert hinted[0].startswith(prompt) and hinted[0] != plain[0]


def test_special_tokens_can_be_stops(demo_pipeline):
    llm = LlamaStopLLM(pipeline=demo_pipeline, max_new_tokens=20, eos_reward=False)
    # Short answers before it: this one ends by EOS on every machine, however it rounds.
    turns = ["Capital of Italy?", "Rome.", "Capital of Spain?", "Madrid.", "Capital of France?"]
    roles = ["user", "assistant"] * 3
    prompt = demo_pipeline.tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)],
        tokenize=False,
        add_generation_prompt=True,
    )
    natural, last = info(llm, prompt)
    assert last["eos_source"] == "model"
    # Nothing but the stop ends this answer: EOS is another token now.
    other_eos = {"pipeline_kwargs": {"eos_token_id": 0}}
    stopped, last = info(llm, prompt, stop=["<|im_end|>"], **other_eos)
    assert (stopped, last["stop_reason"]) == (natural, "<|im_end|>")
    assert info(llm, prompt, **other_eos)[1]["finish_reason"] == "length"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The function `load` is in beta")
@pytest.mark.parametrize("cls,name", [(ChatLlamaStop, "model"), (LlamaStopLLM, "model_id")])
def test_another_process_answers_as_the_model_that_was_written(cls, name):
    options = {"quantization": "nf4", "max_new_tokens": 24, "temperature": 0, "stop": ["Louvre"]}
    model = cls(**{name: "demo"}, **options)
    code = f"""if True:
        import json, sys, warnings
        warnings.simplefilter("ignore")
        import torch
        from langchain_core.load import load
        from langchain_llama_stop import {cls.__name__}
        torch.set_num_threads(1)
        model = load(
            json.loads(sys.argv[1]),
            allowed_objects=[{cls.__name__}],
            valid_namespaces=["langchain_llama_stop"],
        )
        answer = model.invoke("What can I do in Paris?")
        print(json.dumps(getattr(answer, "content", answer)))
    """
    command = [sys.executable, "-c", code, json.dumps(dumpd(model))]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    expected = model.invoke("What can I do in Paris?")
    assert json.loads(found) == getattr(expected, "content", expected)
