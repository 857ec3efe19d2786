"""`dumpd` writes models that were given by name, and `load` makes them again."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import httpx2
import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumpd, load
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableSequence
from peft import LoraConfig
from pydantic import Field, ValidationError
from transformers import BitsAndBytesConfig

from langchain_llama_stop import ChatLlamaStop, ChatLlamaStopServer, EosReward, LlamaStopLLM
from langchain_llama_stop.grammar.schema import Grammar
from langchain_llama_stop.loading.pipeline import copied
from tests.fakes import TOKENIZERS
from tests.fakes.files import save_tiny
from tests.fakes.generation import tiny

pytestmark = pytest.mark.filterwarnings("ignore:The function `load` is in beta")

OPTIONS = {
    "max_new_tokens": 12,
    "temperature": 0,
    "stop": ["\nObservation:", "###"],
    "eos_reward": EosReward(strength=3, boundary="line"),
    "json_schema": {"type": "object", "properties": {"lc": {"type": "integer"}}},
    "grammar": "start: /a+/",
    "stop_token_ids": [[3], [4]],
    "answer_hint": "Be brief.",
}
MORE = {
    "stop_token_ids": [[3, 4], [5]],
    "on_length": "trim",
    "split_special_tokens": True,
    "top_logprobs": 2,
    "return_full_text": True,
    "timeout": 2.5,
    "on_timeout": "raise",
    "max_calls": 3,
    "batch_size": 2,
    "prefix_cache": 0,
    "prompt_lookup_num_tokens": 4,
    "pipeline_kwargs": {"no_repeat_ngram_size": 3, "eos_token_id": [1, 2]},
    "seed": 5,
}
MODELS = {
    "chat": lambda **options: ChatLlamaStop(model="some/model", **options),
    "llm": lambda **options: LlamaStopLLM(model_id="some/model", **options),
    "server": lambda **options: ChatLlamaStopServer(model="some/model", **options),
}
LOCAL = ("chat", "llm")


@pytest.fixture
def loads(monkeypatch):
    """Loads tiny models instead of those of the hub; returns the arguments of each load."""
    loaded = []

    def load_pipeline(**arguments):
        loaded.append(copied(arguments))
        pipeline = tiny()
        time.sleep(0.01)  # so that two threads would both load
        return pipeline

    template = "{{ messages[-1]['content'] }}"
    monkeypatch.setattr(TOKENIZERS["bytes"], "chat_template", template)  # which tiny models share
    monkeypatch.setattr("langchain_llama_stop._langchain.source.load_pipeline", load_pipeline)
    return loaded


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


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_written_names_the_package_and_no_file_of_it(kind, loads):
    model = MODELS[kind]()
    assert dumpd(model)["id"] == ["langchain_llama_stop", type(model).__name__]


def test_a_class_of_the_users_own_is_found_in_its_own_module(loads):
    class Mine(ChatLlamaStop):
        pass

    Mine.__module__ = "app.models"
    assert dumpd(Mine(model="some/model"))["id"] == ["app", "models", "Mine"]


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize("option", MORE)
def test_options_of_a_model_in_this_process_come_back(kind, option, loads):
    model = MODELS[kind](**{option: MORE[option]})
    assert again(model)._options() == model._options() != MODELS[kind]()._options()


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
    own = {"model_id" if kind == "llm" else "model": "some/model"}
    assert dumpd(MODELS[kind](batch_size=16))["kwargs"] == {**own, "batch_size": 16}
    model = MODELS[kind](cache=InMemoryCache(), tags=["x"], trust_remote_code=False, adapter=None)
    assert model.pipeline
    assert dumpd(model)["kwargs"] == own


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize("option", [{"return_full_text": False}, {"eos_reward": True}], ids=str)
def test_what_was_given_still_wins_over_the_pipelines_settings(kind, option, loads):
    ((name, value),) = option.items()
    model = MODELS[kind](**option, pipeline_kwargs={name: not value})
    assert again(model)._options() == model._options()
    assert model._options() != MODELS[kind](pipeline_kwargs={name: not value})._options()


@pytest.mark.parametrize("kind", LOCAL)
def test_a_path_of_an_adapter_is_written_as_text(kind, loads, tmp_path):
    assert dumpd(MODELS[kind](adapter=tmp_path))["kwargs"]["adapter"] == str(tmp_path)


def test_a_server_comes_back():
    how = {"base_url": ["http://a:1/v1", "http://b:2"], "timeout": 30, "max_retries": 0}
    model = ChatLlamaStopServer(model="m", top_k=4, extra_body={"priority": 1}, **how)
    found = again(model)
    assert found.base_urls == ("http://a:1", "http://b:2") and found.max_retries == 0
    assert found.timeout == model.timeout == 30 and found.extra_body == {"priority": 1}
    assert found._get_llm_string(["x"]) == model._get_llm_string(["x"])
    assert dumpd(ChatLlamaStopServer(model="m"))["kwargs"] == {
        "model": "m",
        "base_url": ["http://localhost:8000"],
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
            return found.api_key.get_secret_value()
        assert found.pipeline
        return loads[-1]["token"]

    assert secret(again(model, secrets_map={name: "SECRET"})) == "SECRET"
    assert secret(again(model)) == ("EMPTY" if kind == "server" else None)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("how", ["assigned", "copied"])
def test_secrets_that_are_put_in_later_are_not_written_either(kind, how, loads):
    name = "api_key" if kind == "server" else "token"
    model = MODELS[kind]()
    if how == "copied":
        model = model.model_copy(update={name: "SECRET"})
    else:
        setattr(model, name, "SECRET")
    assert "SECRET" not in json.dumps(dumpd(model))


@pytest.mark.parametrize("kind", MODELS)
def test_errors_hold_no_secret(kind):
    argument = "api_key" if kind == "server" else "token"
    with pytest.raises(ValidationError) as caught:
        MODELS[kind](**{argument: "SECRET"}, max_new_tokens=0)
    assert "SECRET" not in str(caught.value.errors()) + str(caught.value)


class Mine(ChatLlamaStop):
    """A user's own class."""

    name_of_mine: str = "x"
    password: str = Field(default="", exclude=True, repr=False)
    other: Any = None

    @property
    def lc_secrets(self):
        return {**super().lc_secrets, "other": "OTHER"}


def test_a_class_of_the_users_own_is_written_as_langchain_does(loads):
    class Closed(ChatLlamaStop):
        @classmethod
        def is_lc_serializable(cls):
            return False

    model = Mine(model="a/b", token="SECRET", name_of_mine="y", password="SECRET", other="SECRET")
    written = dumpd(model)
    assert "SECRET" not in json.dumps(written) and written["kwargs"]["name_of_mine"] == "y"
    assert {name for name, v in written["kwargs"].items() if isinstance(v, dict)} == {
        "token",
        "other",
    }
    assert "other" not in dumpd(Mine(model="a/b"))["kwargs"]
    assert dumpd(Closed(model="a/b"))["type"] == "not_implemented"


@pytest.mark.parametrize("kind", MODELS)
def test_a_name_is_written_where_the_rest_cannot_be(kind, loads):
    assert dumpd(MODELS[kind](name="planner"))["name"] == "planner"
    how = {"default_headers": {"a": "b"}} if kind == "server" else {"logits_processor": [len]}
    written = dumpd(MODELS[kind](name="planner", **how))
    assert (written["type"], written["name"]) == ("not_implemented", "planner")


def test_what_cannot_be_written_costs_no_call():
    model = ChatLlamaStopServer(model="m", api_key=lambda: "SECRET")
    assert dumpd(model)["type"] == "constructor" and "SECRET" not in json.dumps(dumpd(model))
    model.default_query = {"at": object()}
    assert dumpd(model.model_copy())["type"] == "not_implemented"


def test_a_copy_writes_itself_not_what_it_was_copied_from(loads):
    chat = ChatLlamaStop(model="some/model", max_tokens=3)
    assert chat._serialized["kwargs"]["max_new_tokens"] == 3
    copied = chat.model_copy(update={"max_new_tokens": 2})
    assert copied._serialized["kwargs"]["max_new_tokens"] == 2


def test_an_adapter_that_was_put_on_later_is_not_left_out(loads):
    chat = ChatLlamaStop(model="some/model")
    chat.pipeline.model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    assert dumpd(chat.model_copy())["type"] == "not_implemented"


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
def test_copies_from_elsewhere_load_their_own_once(kind, loads):
    model = MODELS[kind]()
    first = model.pipeline
    other = model.configurable_fields(revision=ConfigurableField(id="r"))
    for _ in range(3):
        other.with_config(configurable={"r": "v2"}).invoke("Why?", max_new_tokens=2)
    assert [arguments["revision"] for arguments in loads] == [None, "v2"]
    assert model.pipeline is first


@pytest.mark.parametrize("how", ["copied", "assigned"])
@pytest.mark.parametrize(
    "change",
    [
        {"name": "x/other"},
        {"quantization": BitsAndBytesConfig(load_in_8bit=True)},
        {"model_kwargs": {"attn_implementation": "eager"}},
    ],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("kind", LOCAL)
def test_a_changed_model_is_loaded_anew(kind, change, how, loads):
    model = MODELS[kind](quantization=BitsAndBytesConfig(load_in_4bit=True), model_kwargs={})
    model.invoke("Why?", max_new_tokens=2)
    ((name, value),) = change.items()
    name = {"name": "model_id" if kind == "llm" else "model"}.get(name, name)
    if how == "copied":
        model = model.model_copy(update={name: value})
    elif name == "model_kwargs":
        model.model_kwargs.update(value)
    else:
        setattr(model, name, value)
    model.invoke("Why?", max_new_tokens=2)
    assert len(loads) == 2 and value in (loads[1]["model"], loads[1].get(name))


def test_the_users_own_dicts_are_not_changed(tmp_path):
    """accelerate writes numbers over "1GB" where it finds it."""
    kwargs = {"max_memory": {"cpu": "1GB"}}
    llm = LlamaStopLLM(
        model_id=str(save_tiny(tmp_path)), device_map="auto", model_kwargs=kwargs, max_new_tokens=2
    )
    first = llm.pipeline
    llm.invoke("Why?")
    assert llm.pipeline is first and kwargs == {"max_memory": {"cpu": "1GB"}}
    assert dumpd(llm)["kwargs"]["model_kwargs"] == kwargs


@pytest.mark.parametrize("kind", LOCAL)
@pytest.mark.parametrize("own", [{"return_full_text": True}, {"eos_reward": False}], ids=str)
def test_a_configured_copy_has_the_options_of_the_original(kind, own, loads):
    model = MODELS[kind](pipeline_kwargs=own, stop=["x"])
    seen = []

    class Seeing(type(model)):
        def _call_options(self, stop, kwargs):
            seen.append(super()._call_options(stop, kwargs))
            return seen[-1]

    model.__class__ = Seeing
    moved = model.configurable_fields(temperature=ConfigurableField(id="t"))
    moved.with_config(configurable={"t": 0}).invoke("Why?", max_new_tokens=2)
    model.invoke("Why?", max_new_tokens=2, temperature=0)
    assert seen[-1] == seen[0]


def test_the_model_that_is_asked_for_is_the_one_that_answers_on_every_path(loads):
    llm = LlamaStopLLM(model_id="some/model", max_new_tokens=2)
    other = llm.model_copy(update={"model_id": "x/other"})
    ran = []
    for path in (other._generate, lambda prompts: list(other._stream(prompts[0]))):
        path(["Why?"])
        ran.append(other.pipeline)
    assert ran[0] is ran[1] is not llm.pipeline and len(loads) == 2


def test_defaults_of_a_class_of_the_users_own_hold(loads):
    class Short(ChatLlamaStop):
        max_new_tokens: int | None = 3

    assert Short(model="a/b")._options().max_new_tokens == 3
    assert Short(model="a/b", max_tokens=5)._options().max_new_tokens == 5
    moved = Short(model="a/b").configurable_fields(temperature=ConfigurableField(id="t"))
    found = moved.with_config(configurable={"t": 0}).invoke("Why?")
    assert found.usage_metadata["output_tokens"] <= 3


@pytest.mark.parametrize("kind", ["cached", "part"])
def test_secrets_that_are_declared_otherwise_are_not_written_either(kind):
    class Cached(ChatLlamaStop):
        extra: str = ""

        @cached_property
        def lc_secrets(self):
            return {"extra": "EXTRA"}

    class Part(ChatLlamaStop):
        @property
        def lc_secrets(self):
            return {"model_kwargs.password": "PASSWORD"}

    given = {"extra": "SECRET"} if kind == "cached" else {"model_kwargs": {"password": "SECRET"}}
    model = {"cached": Cached, "part": Part}[kind](model="a/b", **given)
    assert "SECRET" not in json.dumps(dumpd(model))


@pytest.mark.parametrize("kind", LOCAL)
def test_an_empty_token_is_none(kind, loads):
    assert again(MODELS[kind](token=""))._options() == MODELS[kind]()._options()


def test_a_token_that_is_set_again_loads_nothing_anew(loads):
    chat = ChatLlamaStop(model="a/b", token="SECRET", dtype=torch.float32)
    assert chat.pipeline
    chat.token, chat.dtype = "SECRET", "float32"
    assert chat.pipeline and len(loads) == 1


def test_a_profile_is_that_of_the_model(loads):
    chat = ChatLlamaStop(model="some/model")
    copied = chat.model_copy()
    own = ChatLlamaStop(model="some/model", profile={"max_output_tokens": 9})
    for model in (chat, copied, own):
        assert "max_input_tokens" not in model.profile
        assert model.pipeline and model.profile["max_input_tokens"] == 512
    assert own.profile["max_output_tokens"] == 9
    other = chat.model_copy(update={"model": "x/other"})
    assert other.pipeline and other.profile["name"] == "x/other"


def test_configured_copies_of_a_given_pipeline(loads):
    for model in (LlamaStopLLM(pipeline=tiny()), ChatLlamaStop(pipeline=tiny())):
        moved = model.configurable_fields(temperature=ConfigurableField(id="t"))
        moved.with_config(configurable={"t": 0}).invoke("Why?", max_new_tokens=2)
    assert not loads


def test_from_model_id_takes_no_pipeline():
    with pytest.raises(ValueError, match="`pipeline` has to be left out here"):
        LlamaStopLLM.from_model_id("a/b", pipeline=tiny())


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
