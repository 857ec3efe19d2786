"""Access tokens are never printed, traced, stored or used as a key."""

import logging
import pickle

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumps
from langchain_core.tracers import BaseTracer

from langchain_llama_stop import ChatLlamaStop, ChatLlamaStopServer
from tests.fakes.generation import tiny

SECRET = "hf_abcdefSECRET"
MODELS = {
    "token": lambda **more: ChatLlamaStop(model="some/model", token=SECRET, **more),
    "api_key": lambda **more: ChatLlamaStop(model="some/model", api_key=SECRET, **more),
    "model_kwargs": lambda **more: ChatLlamaStop(
        model="some/model", model_kwargs={"token": SECRET}, **more
    ),
    "a server's": lambda **more: ChatLlamaStopServer(model="m", api_key=SECRET, **more),
}


@pytest.mark.parametrize("how", MODELS)
def test_a_token_is_not_shown(how):
    chat = MODELS[how]()
    shown = [repr(chat), str(chat), dumps(chat), str(chat._get_ls_params())]
    if how == "a server's":
        shown += [str(chat._get_invocation_params()), str(chat._identifying_params)]
    assert not any(SECRET in text for text in shown)


@pytest.mark.parametrize("how", MODELS)
@pytest.mark.parametrize("wrong", [{"max_tokens": 0}, {"unknown": 1}, {"streaming": "maybe"}])
def test_a_token_is_not_in_errors(how, wrong):
    with pytest.raises(ValueError) as caught:
        MODELS[how](**wrong)
    assert SECRET not in str(caught.value) and SECRET not in repr(caught.value)


def test_a_token_is_not_in_cache_keys_traces_or_logs(monkeypatch, caplog):
    pipeline, cache, runs = tiny(), InMemoryCache(), []
    monkeypatch.setattr(pipeline.tokenizer, "chat_template", "{{ messages[-1]['content'] }}")
    tokens = []

    def load(*, token, **kwargs):
        tokens.append(token)
        return pipeline

    monkeypatch.setattr("langchain_llama_stop._langchain.source.load_pipeline", load)

    class Tracer(BaseTracer):
        def _persist_run(self, run):
            runs.append(run)

    caplog.set_level(logging.DEBUG)
    chat = ChatLlamaStop(model="some/model", token=SECRET, cache=cache, max_tokens=3)
    chat.invoke("Hi", config={"callbacks": [Tracer()]})
    assert tokens == [SECRET]
    assert SECRET not in str(cache._cache) and SECRET not in caplog.text
    assert len(runs) == 1 and SECRET not in str(runs[0].model_dump())
    assert SECRET.encode() not in pickle.dumps([str(run) for run in runs])
