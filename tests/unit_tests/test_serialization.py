"""`dumpd` writes models that were given by name, and `load` makes them again."""

import json
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumpd, load
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableSequence
from transformers import BitsAndBytesConfig

from langchain_llama_stop import ChatLlamaStop, ChatLlamaStopServer, EosReward, LlamaStopLLM
from langchain_llama_stop.grammars import Grammar
from tests.unit_tests.test_generation import tiny

pytestmark = pytest.mark.filterwarnings("ignore:The function `load` is in beta")

OPTIONS = {
    "max_new_tokens": 12,
    "temperature": 0,
    "stop": ["\nObservation:", "###"],
    "eos_reward": EosReward(strength=3, boundary="line"),
    "json_schema": {"type": "object", "properties": {"lc": {"type": "integer"}}},
}
MODELS = {
    "chat": lambda **options: ChatLlamaStop(model="some/model", **options),
    "llm": lambda **options: LlamaStopLLM(model_id="some/model", **options),
    "server": lambda **options: ChatLlamaStopServer(model="some/model", **options),
}
LOCAL = ("chat", "llm")


@pytest.fixture
def loads(monkeypatch):
    """Tiny models instead of those of the hub; gives what was asked for."""
    asked = []

    def load_pipeline(**arguments):
        asked.append(arguments)
        pipeline = tiny()
        pipeline.tokenizer.chat_template = "{{ messages[-1]['content'] }}"
        return pipeline

    monkeypatch.setattr("langchain_llama_stop.model_source.load_pipeline", load_pipeline)
    return asked


def again(model, **how):
    """The model as another process gets it."""
    text = json.dumps(dumpd(model))
    return load(
        json.loads(text),
        allowed_objects=[type(model)],
        valid_namespaces=["langchain_llama_stop"],
        **how,
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("option", [*OPTIONS, "eos_reward=False", "stop=[]"])
def test_options_come_back(kind, option, loads):
    name, _, value = option.partition("=")
    given = {name: {"False": False, "[]": []}[value] if value else OPTIONS[name]}
    model = MODELS[kind](**given)
    assert again(model)._options() == model._options()
    if option != "stop=[]":
        assert model._options() != MODELS[kind]()._options()


@pytest.mark.parametrize("kind", LOCAL)
def test_how_a_model_is_loaded_comes_back(kind, loads):
    how = {
        "quantization": "nf4",
        "adapter": "some/adapter",
        "device_map": {"": "cpu"},
        "revision": "abc",
        "trust_remote_code": True,
        "model_kwargs": {"attn_implementation": "sdpa"},
    }
    first = MODELS[kind](dtype=torch.float32, **how)
    second = again(first)
    assert first.pipeline is not second.pipeline
    assert loads == [
        {"model": "some/model", "token": None, **how, "dtype": torch.float32},
        {"model": "some/model", "token": None, **how, "dtype": "float32"},
    ]


@pytest.mark.parametrize("kind", LOCAL)
def test_only_what_was_given_is_written(kind, loads):
    name = "model_id" if kind == "llm" else "model"
    assert dumpd(MODELS[kind](eos_reward=True, batch_size=16))["kwargs"] == {name: "some/model"}
    model = MODELS[kind](cache=InMemoryCache(), tags=["x"])
    assert model.pipeline
    assert dumpd(model)["kwargs"] == {name: "some/model"}


def test_a_server_comes_back():
    how = {"base_url": ["http://a:1/v1", "http://b:2"], "timeout": 30, "max_retries": 0}
    model = ChatLlamaStopServer(model="m", top_k=4, extra_body={"priority": 1}, **how)
    found = again(model)
    assert found.base_urls == ("http://a:1", "http://b:2") and found.max_retries == 0
    assert found.request_timeout == model.request_timeout and found.extra_body == {"priority": 1}
    assert found._get_llm_string(["x"]) == model._get_llm_string(["x"])
    assert dumpd(ChatLlamaStopServer(model="m"))["kwargs"] == {
        "model": "m",
        "base_url": ["http://localhost:8000"],
        "timeout": 600,
    }


@pytest.mark.parametrize(
    "name,kind", [("HF_TOKEN", "chat"), ("HF_TOKEN", "llm"), ("VLLM_API_KEY", "server")]
)
def test_secrets_are_written_by_name(name, kind, loads, monkeypatch):
    monkeypatch.delenv(name, raising=False)
    argument = "api_key" if kind == "server" else "token"
    model = MODELS[kind](**{argument: "SECRET"})
    assert "SECRET" not in json.dumps(dumpd(model))
    assert dumpd(model)["kwargs"][argument] == {"lc": 1, "type": "secret", "id": [name]}

    def secret(found):
        if kind == "server":
            return found.openai_api_key.get_secret_value()
        assert found.pipeline
        return loads[-1]["token"]

    assert secret(again(model, secrets_map={name: "SECRET"})) == "SECRET"
    assert secret(again(model)) == ("EMPTY" if kind == "server" else None)


def test_no_token_at_all_stays_that(loads):
    assert again(ChatLlamaStop(model="some/model", token=False)).token is False


UNWRITABLE = {
    "a pipeline": {"pipeline": tiny()},
    "a configuration": {"quantization": BitsAndBytesConfig(load_in_4bit=True)},
    "a processor": {"logits_processor": [lambda ids, scores: scores]},
    "criteria": {"stopping_criteria": [lambda ids, scores: False]},
    "an assistant": {"assistant_model": tiny().model},
    "a grammar's object": {"grammar": Grammar("start: /a+/")},
    "devices by number": {"device_map": {0: "x"}},
}


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize("what", UNWRITABLE)
def test_what_has_no_form_in_json_is_refused_rather_than_lost(what, kind, loads):
    given = UNWRITABLE[what]
    name = "model_id" if kind == "llm" else "model"
    model = type(MODELS[kind]())(**given, **({} if "pipeline" in given else {name: "some/model"}))
    assert dumpd(model)["type"] == "not_implemented"
    with pytest.raises(NotImplementedError):
        again(model)


@pytest.mark.parametrize(
    "given",
    [
        {"default_headers": {"Authorization": "Bearer SECRET"}},
        {"default_query": {"key": "SECRET"}},
        {"http_client": httpx2.Client(headers={"x": "SECRET"})},
        {"timeout": httpx2.Timeout(3, connect=1)},
    ],
    ids=lambda given: next(iter(given)),
)
def test_a_server_with_what_may_hold_secrets_is_not_written(given):
    model = ChatLlamaStopServer(model="m", **given)
    assert dumpd(model)["type"] == "not_implemented"
    assert "SECRET" not in repr(model) and "SECRET" not in json.dumps(dumpd(model))


def test_a_chain_comes_back(loads):
    chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | ChatLlamaStop(
        model="some/model", max_tokens=6
    ).bind(stop=["x"])
    chain |= StrOutputParser()
    classes = [RunnableSequence, ChatPromptTemplate, ChatLlamaStop, StrOutputParser]
    classes += [type(chain.steps[1]), type(chain.steps[0].messages[0])]
    classes += [type(chain.steps[0].messages[0].prompt)]
    found = load(
        json.loads(json.dumps(dumpd(chain))),
        allowed_objects=classes,
        valid_namespaces=["langchain_llama_stop"],
    )
    assert found.invoke({"question": "Why?"}) == chain.invoke({"question": "Why?"})


def test_nothing_is_loaded_that_was_not_allowed(loads):
    written = dumpd(ChatLlamaStop(model="some/model"))
    with pytest.raises(ValueError, match="not allowed"):
        load(written, allowed_objects="core", valid_namespaces=["langchain_llama_stop"])
    with pytest.raises(ValueError, match="namespace"):
        load(written, allowed_objects=[ChatLlamaStop])


@pytest.mark.parametrize("kind", LOCAL)
def test_models_that_can_be_written_keep_their_cache_apart(kind, loads):
    cache = InMemoryCache()
    model = MODELS[kind](cache=cache, max_new_tokens=4)
    model.invoke("Why?")
    model.pipeline.model.generation_config.repetition_penalty = 1.7
    model.invoke("Why?")
    model.invoke("Why?", max_new_tokens=3)
    assert len(cache._cache) == 3
    model.invoke("Why?", max_new_tokens=3)
    assert len(cache._cache) == 3


@pytest.mark.parametrize("kind", LOCAL)
def test_configured_copies_share_the_loaded_model(kind, loads):
    model = MODELS[kind](max_new_tokens=3)
    field = ConfigurableField(id="t")
    moved = model.configurable_fields(temperature=field)
    for temperature in (0, 0.5, 1.0):
        moved.with_config(configurable={"t": temperature}).invoke("Why?")
    model.invoke("Why?")
    assert len(loads) == 1


@pytest.mark.parametrize("kind", LOCAL)
def test_copies_from_elsewhere_load_their_own(kind, loads):
    model = MODELS[kind]()
    first = model.pipeline
    other = model.configurable_fields(revision=ConfigurableField(id="r"))
    found = other.with_config(configurable={"r": "v2"})
    found.invoke("Why?", max_new_tokens=2)
    assert [asked["revision"] for asked in loads] == [None, "v2"]
    assert model.pipeline is first


def test_threads_load_a_model_once(loads):
    chat = ChatLlamaStop(model="some/model", max_tokens=2)
    copies = [chat.model_copy(update={"temperature": n / 10}) for n in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        assert len({id(p) for p in pool.map(lambda c: c.pipeline, copies)}) == 1
    assert len(loads) == 1


@pytest.mark.parametrize("cls", [ChatLlamaStop, LlamaStopLLM])
@pytest.mark.parametrize(
    "given", [{"quantization": "nf4"}, {"adapter": "a"}, {"token": "SECRET"}, {"dtype": "float32"}]
)
def test_a_loaded_pipeline_is_not_told_how_to_be_loaded(cls, given):
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` has to be left out") as caught:
        cls(pipeline=tiny(), **given)
    assert "SECRET" not in str(caught.value)


def test_an_llm_is_given_by_name_or_as_a_pipeline():
    with pytest.raises(ValueError, match="Either `model_id` .* but neither is"):
        LlamaStopLLM(max_new_tokens=3)
