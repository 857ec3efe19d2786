"""LlamaStopLLM in LangChain: every path, options, cache, callbacks, errors."""

import asyncio
import gc
import json
from dataclasses import dataclass

import pytest
import torch
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableParallel
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline
from transformers import LogitsProcessor

from langchain_llama_stop import EosReward, LlamaStopLLM
from langchain_llama_stop.options import OPTIONS
from tests.fakes import (
    ScriptedLlama,
    byte_ids,
    byte_tokenizer,
    make_pipeline,
    scripted_answers,
    tiny_llama,
)

TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.eos_token_id
ANSWER = "Thought: look it up.\nAction: search\nObservation: made up."


def scripted(answers):
    table = {tuple(byte_ids(p)): byte_ids(a) for p, a in answers.items()}
    model = ScriptedLlama(len(TOKENIZER), scripted_answers(table, len(TOKENIZER), EOS), EOS, EOS)
    return make_pipeline(model, TOKENIZER)


def llm(answer=ANSWER, **kwargs):
    kwargs = {"max_new_tokens": 80, **kwargs}
    return LlamaStopLLM(pipeline=scripted({"go": answer, "also": answer}), **kwargs)


def tiny_pipeline():
    model = tiny_llama(len(TOKENIZER), eos_token_id=EOS, pad_token_id=EOS)
    return make_pipeline(model, TOKENIZER)


class Recorder(BaseCallbackHandler):
    def __init__(self):
        self.tokens, self.ends, self.errors = [], [], []

    def on_llm_new_token(self, token, *, chunk=None, **kwargs):
        assert chunk.text == token
        self.tokens.append(token)

    def on_llm_end(self, response, **kwargs):
        self.ends.append(response)

    def on_llm_error(self, error, **kwargs):
        self.errors.append(error)


STOP = ["\nObservation:"]
STOPPED = "Thought: look it up.\nAction: search"


def test_it_is_a_huggingface_pipeline():
    assert isinstance(llm(), HuggingFacePipeline)


async def test_one_stop_behaviour_on_every_path():
    model = llm()
    bound = model.bind(stop=STOP)
    built = llm(stop=STOP)
    assert model.invoke("go", stop=STOP) == STOPPED
    assert model.batch(["go", "also"], stop=STOP) == [STOPPED] * 2
    assert model.generate(["go"], stop=STOP).generations[0][0].text == STOPPED
    assert "".join(model.stream("go", stop=STOP)) == STOPPED
    assert await model.ainvoke("go", stop=STOP) == STOPPED
    assert await model.abatch(["go", "also"], stop=STOP) == [STOPPED] * 2
    assert "".join([t async for t in model.astream("go", stop=STOP)]) == STOPPED
    for runnable in (bound, built):
        assert runnable.invoke("go") == STOPPED
        assert "".join(runnable.stream("go")) == STOPPED
        assert runnable.batch(["go"]) == [STOPPED]
    parallel = RunnableParallel(a=bound, b=built | StrOutputParser(), c=model)
    assert parallel.invoke("go") == {"a": STOPPED, "b": STOPPED, "c": ANSWER}


def test_constructor_and_call_stops_both_apply():
    model = llm(stop=["\nAction"])
    assert model.invoke("go", stop=["look"]) == "Thought: "
    assert model.invoke("go", stop=["made"]) == "Thought: look it up."
    assert model.bind(stop=["it"]).invoke("go") == "Thought: look "


def test_generation_info():
    info = llm().generate(["go"], stop=STOP).generations[0][0].generation_info
    generated = len(byte_ids(STOPPED + STOP[0]))
    assert info == {
        "finish_reason": "stop",
        "stop_reason": STOP[0],
        "eos_source": None,
        "model_name": "unknown",
        "usage_metadata": {
            "input_tokens": 2,
            "output_tokens": generated,
            "total_tokens": 2 + generated,
        },
    }


def test_the_last_chunk_carries_the_generation_info():
    recorder = Recorder()
    model = llm()
    text = "".join(model.stream("go", {"callbacks": [recorder]}, stop=STOP))
    assert "".join(recorder.tokens) == text == STOPPED
    assert len(recorder.tokens) > 10
    streamed = recorder.ends[0].generations[0][0]
    invoked = model.generate(["go"], stop=STOP).generations[0][0]
    assert (streamed.text, streamed.generation_info) == (invoked.text, invoked.generation_info)


def test_return_full_text_is_the_same_on_every_path():
    model = llm(return_full_text=True)
    assert model.invoke("go") == "go" + ANSWER == "".join(model.stream("go"))
    assert model.batch(["go"], return_full_text=False) == [ANSWER]
    assert (
        model.invoke("go", skip_prompt=True)
        == ANSWER
        == "".join(model.stream("go", skip_prompt=True))
    )


def test_call_options_are_those_of_the_constructor():
    assert llm().invoke("go", max_tokens=8, eos_reward=False) == ANSWER[:8]
    assert llm().bind(max_new_tokens=8, eos_reward=False).invoke("go") == ANSWER[:8]
    pipeline = scripted({"go": ANSWER})
    assert (
        LlamaStopLLM(pipeline=pipeline, max_tokens=8, eos_reward=False).invoke("go") == (ANSWER[:8])
    )
    dropped_in = LlamaStopLLM(
        pipeline=pipeline, pipeline_kwargs={"max_new_tokens": 8}, eos_reward=False
    )
    assert dropped_in.invoke("go") == ANSWER[:8]
    assert dropped_in.invoke("go", pipeline_kwargs={"max_new_tokens": 5}) == ANSWER[:5]
    model = llm(eos_reward=False)
    model.max_new_tokens = 4
    assert model.invoke("go") == ANSWER[:4]


@pytest.mark.parametrize("path", ["constructor", "invoke", "stream", "batch", "from_model_id"])
def test_unknown_options_are_refused_with_the_known_ones(path):
    call = {
        "constructor": lambda: llm(max_lenght=5),
        "invoke": lambda: llm().invoke("go", max_lenght=5),
        "stream": lambda: list(llm().stream("go", max_lenght=5)),
        "batch": lambda: llm().batch(["go"], max_lenght=5),
        "from_model_id": lambda: LlamaStopLLM.from_model_id("demo", max_lenght=5),
    }[path]
    with pytest.raises(ValueError, match="'max_lenght'") as error:
        call()
    for name in OPTIONS:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"max_new_tokens": 0}, "`max_new_tokens` has to be"),
        ({"temperature": -1}, "`temperature` has to be"),
        ({"stop": [""]}, "`stop` has to hold"),
        ({"top_logprobs": 9999}, "`top_logprobs` has to be at most 261, .* but is 9999"),
        ({"stop_token_ids": [9999]}, "`stop_token_ids` has to hold ids under 261.*9999"),
        ({"eos_reward": {"start": 2}}, "`start` has to be"),
        ({"pipeline_kwargs": {"num_beams": 4}}, "greedy search or sampling.*beam search"),
        ({"pipeline_kwargs": {"nonsense": 4}}, "GenerationConfig.*'nonsense'"),
        ({"pipeline_kwargs": {"num_return_sequences": 2, "do_sample": True}}, "has to be 1"),
        ({"pipeline_kwargs": {"stop_strings": ["x"]}}, "use the option `stop`"),
        ({"pipeline_kwargs": {"eos_token_id": 9999}}, "`eos_token_id` has to be under 261"),
        ({"pipeline": None}, "Either `model_id` .* or `pipeline` has to be given"),
        ({"pipeline": "gpt2"}, "`pipeline` has to be.*'gpt2'"),
    ],
)
def test_wrong_options_are_refused_at_construction(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LlamaStopLLM(**{"pipeline": tiny_pipeline(), **kwargs})


def test_a_pipeline_of_another_task_is_refused():
    pipeline = tiny_pipeline()
    pipeline.task = "summarization"
    with pytest.raises(ValueError, match="'text-generation', but is one for 'summarization'"):
        LlamaStopLLM(pipeline=pipeline)


def test_from_model_id_refuses_another_task_or_backend():
    with pytest.raises(ValueError, match="`task` has to be"):
        LlamaStopLLM.from_model_id("demo", task="summarization")
    with pytest.raises(ValueError, match="`backend` has to be"):
        LlamaStopLLM.from_model_id("demo", backend="openvino")
    with pytest.raises(ValueError, match="`device` and `device_map`"):
        LlamaStopLLM.from_model_id("demo", device=0, device_map="auto")


def test_empty_input():
    model = llm()
    assert model.batch([]) == []
    assert model.generate([]).generations == []
    assert isinstance(model.invoke(""), str)  # after the BOS alone


def test_tokens_are_counted_by_the_models_own_tokenizer():
    assert llm().get_token_ids("é€") == byte_ids("é€")
    assert llm().get_num_tokens("é€") == 5


# --- cache


def test_the_cache_knows_constructor_and_call_options():
    passes = []
    pipeline = scripted({"go": ANSWER})
    pipeline.model.register_forward_pre_hook(lambda *args: passes.append(1))
    cache = InMemoryCache()
    model = LlamaStopLLM(pipeline=pipeline, cache=cache, max_new_tokens=80)
    first = model.generate(["go"]).generations[0][0]
    count = len(passes)
    again = model.generate(["go"]).generations[0][0]
    assert (again.text, again.generation_info) == (first.text, first.generation_info)
    assert len(passes) == count
    assert model.invoke("go", stop=STOP) == STOPPED
    assert model.invoke("go", max_new_tokens=8, eos_reward=False) == ANSWER[:8]
    assert model.invoke("go", return_full_text=True) == "go" + ANSWER
    other = LlamaStopLLM(pipeline=pipeline, cache=cache, max_new_tokens=8, eos_reward=False)
    assert other.invoke("go") == ANSWER[:8]


def test_models_with_other_stops_share_no_cache_entry():
    cache, pipeline = InMemoryCache(), scripted({"go": ANSWER})
    plain = LlamaStopLLM(pipeline=pipeline, cache=cache, max_new_tokens=80)
    stopping = LlamaStopLLM(pipeline=pipeline, cache=cache, max_new_tokens=80, stop=STOP)
    assert plain.invoke("go") == ANSWER
    assert stopping.invoke("go") == STOPPED
    assert plain.invoke("go", stop=["look"]) == "Thought: "


class Add(LogitsProcessor):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, self.token] += 100
        return scores


def test_identifying_params_differ_wherever_the_answer_may():
    pipeline = tiny_pipeline()
    variants = [
        {},
        {"max_new_tokens": 5},
        {"temperature": 0.5},
        {"top_p": 0.5},
        {"top_k": 5},
        {"repetition_penalty": 1.2},
        {"seed": 1},
        {"stop": ["x"]},
        {"stop_token_ids": [1]},
        {"stop_token_ids": [[1, 2]]},
        {"eos_reward": False},
        {"eos_reward": EosReward(start=0.1)},
        {"return_full_text": True},
        {"answer_hint": "Be brief."},
        {"logits_processor": [Add(1)]},
        {"logits_processor": [Add(2)]},
        {"pipeline_kwargs": {"min_p": 0.1}},
        {"model_id": "other"},
        {"model_kwargs": {"num_hidden_layers": 1}},
        {"pipeline": tiny_pipeline()},
        {"pipeline": make_pipeline(pipeline.model, TOKENIZER, max_new_tokens=7)},
        {"pipeline": make_pipeline(pipeline.model, TOKENIZER, logits_processor=[Add(1)])},
    ]
    keys = [
        str(sorted(LlamaStopLLM(**{"pipeline": pipeline, "model_id": "m", **v}).asdict().items()))
        for v in variants
    ]
    assert len(set(keys)) == len(variants)
    same = LlamaStopLLM(pipeline=pipeline, model_id="m")
    assert str(sorted(same.asdict().items())) == keys[0]


def test_an_adapter_is_part_of_the_cache_key():
    from peft import LoraConfig

    pipeline = tiny_pipeline()
    model = LlamaStopLLM(pipeline=pipeline)
    before = str(model._identifying_params)
    pipeline.model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    both = str(model._identifying_params)
    assert both != before
    pipeline.model.disable_adapters()
    disabled = str(model._identifying_params)
    assert disabled not in (before, both)
    pipeline.model.generation_config.repetition_penalty = 3.0
    assert str(model._identifying_params) != disabled


def test_the_prefix_cache_is_emptied_when_an_adapter_is_switched_off():
    from peft import LoraConfig

    pipeline = tiny_pipeline()
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    pipeline.model.add_adapter(config)
    model = LlamaStopLLM(pipeline=pipeline, max_new_tokens=20)
    prompt = "What is it? " * 4  # what is shorter is not kept
    adapted = model.invoke(prompt)
    assert model.invoke(prompt) == adapted
    pipeline.model.disable_adapters()
    plain = model.invoke(prompt, prefix_cache=0)
    assert plain != adapted
    assert model.invoke(prompt) == plain


@dataclass
class Plain:
    """Neither hashable nor a LogitsProcessor, and still a callable."""

    token: int

    def __call__(self, input_ids, scores):
        return torch.full_like(scores, -9.0).index_fill_(1, torch.tensor([self.token]), 0.0)


def test_any_callable_serves_as_a_processor():
    own = Plain(65)
    assert llm(max_new_tokens=3, eos_reward=False).invoke("go", logits_processor=own) == "AAA"
    both = llm(max_new_tokens=3, eos_reward=False, logits_processor=[own])
    assert both.invoke("go", logits_processor=[own]) == "AAA"


def test_what_pipeline_kwargs_say_is_not_overridden():
    model = LlamaStopLLM(pipeline=tiny_pipeline(), max_new_tokens=20)
    greedy = model.invoke("Hi")
    said = {"do_sample": False, "temperature": 0.7}
    assert {model.invoke("Hi", pipeline_kwargs=said) for _ in range(3)} == {greedy}
    assert {model.invoke("Hi", top_k=0, top_p=1.0) for _ in range(3)} == {greedy}
    none = LlamaStopLLM(
        pipeline=model.pipeline, max_new_tokens=None, pipeline_kwargs={"max_new_tokens": 5}
    )
    info = none.generate(["Hi"], eos_reward=False).generations[0][0].generation_info
    assert info["usage_metadata"]["output_tokens"] == 5


def test_whole_numbers_are_numbers():
    model = LlamaStopLLM(pipeline=tiny_pipeline(), max_new_tokens=5, seed=1)
    assert model.invoke("Hi", temperature=2) == model.invoke("Hi", temperature=2.0)
    assert model.invoke("Hi", repetition_penalty=2) == model.invoke("Hi", repetition_penalty=2.0)


def test_stops_of_the_pipeline_itself_count():
    table = {tuple(byte_ids("go")): byte_ids(ANSWER)}
    fake = ScriptedLlama(len(TOKENIZER), scripted_answers(table, len(TOKENIZER), EOS), EOS, EOS)
    model = LlamaStopLLM(pipeline=make_pipeline(fake, TOKENIZER, stop_sequence="\nAction"))
    assert model.invoke("go") == "Thought: look it up." == "".join(model.stream("go"))
    assert model.invoke("go", stop=["look"]) == "Thought: "


# --- callbacks, errors, cancellation


def test_an_error_reaches_the_caller_and_the_callbacks():
    class Broken(LogitsProcessor):
        def __call__(self, input_ids, scores):
            raise KeyError("broken")

    recorder = Recorder()
    model = llm(logits_processor=[Broken()])
    with pytest.raises(KeyError, match="broken"):
        model.invoke("go", {"callbacks": [recorder]})
    with pytest.raises(KeyError, match="broken"):
        list(model.stream("go", {"callbacks": [recorder]}))
    assert len(recorder.errors) == 2


def counted(max_new_tokens=400):
    pipeline = tiny_pipeline()
    passes = []
    pipeline.model.register_forward_pre_hook(lambda *args: passes.append(1))
    return LlamaStopLLM(pipeline=pipeline, max_new_tokens=max_new_tokens, eos_reward=False), passes


def test_closing_a_stream_ends_the_model_within_one_step():
    model, passes = counted()
    stream = model.stream("Hi")
    next(stream)
    count = len(passes)
    stream.close()
    assert len(passes) <= count + 1


def test_awaited_calls_share_their_passes_however_many_they_are():
    model = LlamaStopLLM(pipeline=tiny_pipeline(), max_new_tokens=12, batch_size=40)
    prompts = [f"Question {i}" for i in range(40)]
    expected = [model.invoke(prompt) for prompt in prompts]
    rows = []
    model.pipeline.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )

    async def ask():
        return await asyncio.gather(*map(model.ainvoke, prompts))

    assert asyncio.run(ask()) == expected
    assert max(rows) > 20  # asyncio's own pool would let at most 32 in, 6 on two cores


async def test_cancelling_astream_ends_the_model_within_one_step():
    model, passes = counted()
    started = asyncio.Event()

    async def read():
        async for _ in model.astream("Hi"):
            started.set()

    task = asyncio.create_task(read())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    count = len(passes)
    await asyncio.sleep(0.2)
    assert len(passes) <= count + 1 < 390
    gc.collect()


def test_a_chain():
    model = llm().bind(stop=STOP)
    chain = PromptTemplate.from_template("{x}") | model | StrOutputParser()
    assert chain.invoke({"x": "go"}) == STOPPED
    assert "".join(chain.stream({"x": "go"})) == STOPPED


def test_versions_are_recorded():
    versions = llm().metadata["lc_versions"]
    assert {"langchain-core", "langchain-huggingface", "langchain-llama-stop"} <= set(versions)


def test_sampling_with_a_seed_repeats_and_leaves_the_global_state():
    model = LlamaStopLLM(pipeline=tiny_pipeline(), temperature=1.0, max_new_tokens=20)
    state = torch.get_rng_state()
    first = model.invoke("Hi", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == model.invoke("Hi", seed=1) == "".join(model.stream("Hi", seed=1))
    assert first != model.invoke("Hi", seed=2)


def test_the_options_can_be_saved(tmp_path):
    saved = json.loads(json.dumps(llm(top_k=3).asdict()))
    assert saved["top_k"] == 3 and saved["_type"] == "llama_stop"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"max_new_tokens": 0}, "`max_new_tokens`"), ({"nonsense": 3}, "nonsen")],
)
def test_wrong_settings_are_said_before_anything_is_loaded(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LlamaStopLLM.from_model_id("/no/such/folder", pipeline_kwargs=kwargs)


CHAT_OPTIONS = {
    "chat_template_kwargs": {"enable_thinking": False},
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "tool_choice": "any",
}


@pytest.mark.parametrize("name", CHAT_OPTIONS)
def test_options_of_messages_are_refused_by_name(name):
    given = {name: CHAT_OPTIONS[name]}
    for model, asked in ((llm(), given), (llm().bind(**given), {})):
        for call in (model.invoke, model.stream):
            with pytest.raises(ValueError, match=f"`{name}` has to be left out of LlamaStopLLM"):
                list(call("go", **asked))


def test_chat_template_settings_are_refused_in_the_constructor():
    with pytest.raises(ValueError, match="`chat_template_kwargs` has to be left out"):
        llm(chat_template_kwargs={"enable_thinking": False})


@pytest.mark.parametrize("choice", [None, "auto", "f"])
def test_tools_of_chat_huggingface_are_refused_with_what_to_do(choice):
    pipeline = scripted({"go": ANSWER})
    pipeline.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    other = ChatHuggingFace(llm=LlamaStopLLM(pipeline=pipeline), tokenizer=pipeline.tokenizer)
    assert other.invoke("go").content
    with pytest.raises(ValueError, match=r"`tools` has to.*ChatLlamaStop\(pipeline=llm.pipeline"):
        other.bind_tools(CHAT_OPTIONS["tools"], tool_choice=choice).invoke("go")
