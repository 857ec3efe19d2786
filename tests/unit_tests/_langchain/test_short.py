"""What is printed and traced of a model is short; the cache's key still tells answers apart."""

import copy
import logging

import pytest
from langchain_core.tracers import BaseTracer

from langchain_llama_stop import ChatLlamaStop, EosReward, LlamaStopLLM
from tests.fakes import CHATML_TEMPLATE
from tests.fakes.generation import tiny

SETTINGS = [
    {},
    {"stop": ["\nObservation:"]},
    {"eos_reward": EosReward(strength=3.0)},
    {"pipeline_kwargs": {"typical_p": 0.9, "bad_words_ids": [[n] for n in range(200)]}},
    {"json_schema": {"type": "object", "properties": {"p": {}}, "$comment": "long" * 200}},
]


@pytest.fixture
def pipeline():
    made = tiny()
    made.tokenizer = copy.deepcopy(made.tokenizer)  # others have it too
    made.tokenizer.chat_template = CHATML_TEMPLATE
    return made


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: next(iter(s), "none"))
@pytest.mark.parametrize("kind", [LlamaStopLLM, ChatLlamaStop])
def test_models_and_traces_are_short(kind, settings, pipeline):
    class Tracer(BaseTracer):
        def _persist_run(self, run):
            runs.append(run)

    runs = []
    model = kind(pipeline=pipeline, max_new_tokens=4, temperature=0, top_k=3, seed=1, **settings)
    model.invoke("Hi", config={"callbacks": [Tracer()]})
    assert len(str(runs[0].extra["invocation_params"])) < 400
    assert "max_new_tokens" in str(runs[0].extra["invocation_params"])
    if not {"json_schema", "pipeline_kwargs"} & {*settings}:  # `repr` shows what was given
        assert len(repr(model)) < 400
        assert len(str(model)) < 400


@pytest.mark.parametrize("kind", [LlamaStopLLM, ChatLlamaStop])
def test_each_setting_has_a_key_of_its_own(kind, pipeline):
    changes = [*SETTINGS, {"max_new_tokens": 5}, {"eos_reward": False}]
    changes += [
        {"logprobs": True},
        {"pipeline_kwargs": {"typical_p": 0.8}},
        {"grammar": "start: /a/"},
    ]
    keys = {
        str(kind(pipeline=pipeline, **{"max_new_tokens": 4, **change})._identifying_params)
        for change in changes
    }
    assert len(keys) == len(changes)
    again = kind(pipeline=pipeline, **{"max_new_tokens": 4, **changes[1]})._identifying_params
    assert str(again) in keys


def test_a_prompt_without_the_template_is_said_once(pipeline, caplog):
    llm = LlamaStopLLM(pipeline=pipeline, max_new_tokens=2)
    prompt = pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    with caplog.at_level(logging.WARNING):
        llm.invoke(prompt)
        ChatLlamaStop(pipeline=pipeline, max_tokens=2).invoke("Hi")
        assert "template" not in caplog.text
        llm.invoke("Hi")
        list(llm.stream("Hi"))
        LlamaStopLLM(pipeline=pipeline, max_new_tokens=3).batch(["Hi", "Ho"], max_new_tokens=2)
    assert caplog.text.count("has a chat template, but the prompt was not made by it") == 1


@pytest.mark.parametrize("call", ["invoke", "stream", "batch"])
def test_each_call_says_it(call, pipeline, caplog):
    llm = LlamaStopLLM(pipeline=pipeline, max_new_tokens=2)
    given = ["Hi"] if call == "batch" else "Hi"
    list(getattr(llm, call)(given))
    assert "ChatLlamaStop applies the template" in caplog.text


def chatml_with_bos(tokenizer):
    """SmolLM2's way: the marks of its template are its BOS and EOS."""
    tokenizer.add_special_tokens({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})


def llama_2(tokenizer):
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
    )


@pytest.mark.parametrize("family", [lambda tokenizer: None, chatml_with_bos, llama_2])
def test_a_prompt_of_the_template_and_one_with_stops_are_left_in_peace(family, pipeline, caplog):
    family(pipeline.tokenizer)
    pipeline.model.resize_token_embeddings(len(pipeline.tokenizer))
    messages = [{"role": "user", "content": "Hi"}]
    prompt = pipeline.tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    llm = LlamaStopLLM(pipeline=pipeline, max_new_tokens=2)
    llm.invoke(prompt)
    llm.invoke("Question: Hi\nThought:", stop=["\nObservation:"])
    assert "template" not in caplog.text
    llm.invoke(f"{pipeline.tokenizer.bos_token or ''}Hi")
    assert "template" in caplog.text


def test_a_base_model_is_left_in_peace(caplog):
    pipeline = tiny()
    pipeline.tokenizer = copy.deepcopy(pipeline.tokenizer)
    pipeline.tokenizer.chat_template = None
    LlamaStopLLM(pipeline=pipeline, max_new_tokens=2).invoke("Once")
    assert "template" not in caplog.text
