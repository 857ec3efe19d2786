"""What LangChain documents for its Hugging Face classes works with ours in their place."""

import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_huggingface import HuggingFacePipeline
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, pipeline

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM, load_pipeline
from langchain_llama_stop.loading.quantization import quantization_name
from tests.fakes.files import save_tiny

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("tiny"), max_position_embeddings=512)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


# --- ten snippets


def test_by_name_with_pipeline_kwargs(tiny):
    llm = LlamaStopLLM.from_model_id(
        model_id=tiny, task="text-generation", pipeline_kwargs={"max_new_tokens": 10}
    )
    generation = llm.generate(["Once"]).generations[0][0]
    assert generation.generation_info["usage_metadata"]["output_tokens"] <= 10


def test_a_pipeline_of_ones_own(tiny):
    tokenizer, model = (
        AutoTokenizer.from_pretrained(tiny),
        AutoModelForCausalLM.from_pretrained(tiny),
    )
    tokenizer.pad_token = tokenizer.eos_token
    pipe = pipeline("text-generation", model=model, tokenizer=tokenizer, max_new_tokens=5)
    llm = LlamaStopLLM(pipeline=pipe)
    assert isinstance(llm, HuggingFacePipeline)
    info = llm.generate(["Once"]).generations[0][0].generation_info
    assert info["usage_metadata"]["output_tokens"] <= 5


def test_a_chain_with_a_stop_and_without_the_prompt(tiny):
    llm = LlamaStopLLM.from_model_id(tiny, "text-generation", pipeline_kwargs={"max_length": 60})
    prompt = PromptTemplate.from_template("Question: {question}\nAnswer:")
    chain = prompt | llm.bind(stop=["\n\n"], skip_prompt=True)
    for answer in (chain.invoke({"question": "Why?"}), *chain.batch([{"question": "Who?"}])):
        assert "\n\n" not in answer and not answer.startswith("Question")
    assert "".join(chain.stream({"question": "Why?"})) == chain.invoke({"question": "Why?"})


def test_on_the_cpu_by_its_number(tiny):
    llm = LlamaStopLLM.from_model_id(
        model_id=tiny, task="text-generation", device=-1, pipeline_kwargs={"max_new_tokens": 3}
    )
    assert llm.pipeline.device == torch.device("cpu") and isinstance(llm.invoke("Once"), str)


def test_a_batch_with_settings_among_the_model_kwargs(tiny):
    llm = LlamaStopLLM.from_model_id(
        model_id=tiny,
        task="text-generation",
        device=-1,
        batch_size=2,
        model_kwargs={"temperature": 0, "max_length": 24},
    )
    prompts = [f"What is {n}?" for n in range(4)]
    generations = [g[0].generation_info for g in llm.generate(prompts).generations]
    assert all(info["usage_metadata"]["total_tokens"] <= 24 for info in generations)
    assert llm.batch_size == 2 and llm.batch(prompts) == llm.batch(prompts)  # it is greedy


def test_quantized_with_a_config(tiny):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    llm = LlamaStopLLM.from_model_id(
        model_id=tiny,
        task="text-generation",
        pipeline_kwargs={"max_new_tokens": 4, "do_sample": False, "repetition_penalty": 1.03},
        model_kwargs={"quantization_config": config},
    )
    assert quantization_name(llm.pipeline.model.config) == "nf4"
    assert ChatLlamaStop(llm=llm).invoke("Hi").usage_metadata["output_tokens"] <= 4


def test_a_chat_around_an_llm(tiny):
    llm = LlamaStopLLM.from_model_id(
        tiny,
        "text-generation",
        pipeline_kwargs={"max_new_tokens": 6, "do_sample": False, "return_full_text": False},
    )
    chat = ChatLlamaStop(llm=llm, verbose=True)
    answer = chat.invoke([SystemMessage("You are brief."), HumanMessage("Who are you?")])
    assert isinstance(answer, AIMessage) and answer.usage_metadata["output_tokens"] <= 6
    assert chat.pipeline is llm.pipeline


def test_a_chat_around_a_plain_llm(tiny):
    llm = HuggingFacePipeline(pipeline=load_pipeline(tiny))
    chat = ChatLlamaStop(llm=llm, max_tokens=6, temperature=0)
    chunks = list(chat.stream("Hi"))
    assert "".join(chunk.text for chunk in chunks) == chat.invoke("Hi").text


def test_a_chat_by_name(tiny):
    chat = ChatLlamaStop.from_model_id(
        model_id=tiny, task="text-generation", backend="pipeline", max_tokens=5, temperature=0.1
    )
    prompt = ChatPromptTemplate.from_messages([("system", "You answer."), ("human", "{question}")])
    assert isinstance((prompt | chat | StrOutputParser()).invoke({"question": "Why?"}), str)


async def test_a_chat_that_is_awaited(tiny):
    chat = ChatLlamaStop.from_model_id(tiny, max_tokens=5, stop=["x"], device=-1)
    answer = await chat.ainvoke("Hi")
    pieces = [chunk async for chunk in chat.astream("Hi")]
    assert "x" not in answer.text and pieces[-1].response_metadata["finish_reason"]


# --- where each argument belongs


@pytest.mark.parametrize("how", ["from_model_id", "constructor", "chat", "load_pipeline"])
@pytest.mark.parametrize(
    ("kwargs", "holds"),
    [
        ({"dtype": torch.float32}, lambda p: p.model.dtype == torch.float32),
        ({"torch_dtype": "float32"}, lambda p: p.model.dtype == torch.float32),
        ({"device_map": "cpu"}, lambda p: p.device == torch.device("cpu")),
        ({"use_safetensors": True}, lambda p: True),
        (
            {"trust_remote_code": False, "revision": "main", "token": "hf_S", "cache_dir": None},
            lambda p: True,
        ),
        (
            {"local_files_only": True, "attn_implementation": "eager"},
            lambda p: p.model.config._attn_implementation == "eager",
        ),
    ],
)
def test_model_kwargs_go_where_they_belong(tiny, how, kwargs, holds):
    if how == "load_pipeline":
        pipe, shown = load_pipeline(tiny, model_kwargs=kwargs), ""
    elif how == "chat":
        model = ChatLlamaStop(model=tiny, model_kwargs=kwargs)
        pipe, shown = model.pipeline, f"{model!r} {model._identifying_params}"
    else:
        make = LlamaStopLLM.from_model_id if how == "from_model_id" else LlamaStopLLM
        model = make(model_id=tiny, model_kwargs=kwargs)
        pipe, shown = model.pipeline, f"{model!r} {model._identifying_params} {model.model_kwargs}"
    assert holds(pipe) and "hf_S" not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"device_map": "cpu", "model_kwargs": {"device_map": "auto"}},
            "`device_map` in `model_kwargs` is the argument `device_map`, which is given too",
        ),
        (
            {"quantization": "nf4", "model_kwargs": {"quantization_config": "nf4"}},
            "is the argument `quantization`, which is given too",
        ),
        ({"dtype": "float32", "model_kwargs": {"torch_dtype": "auto"}}, "the argument `dtype`"),
        ({"device": -1, "model_kwargs": {"device_map": "cpu"}}, "`device_map`, which is given too"),
        ({"model_kwargs": {"use_safetensors": False}}, "`use_safetensors` in `model_kwargs` has"),
        ({"task": "summarization"}, "`task` has to be 'text-generation'"),
        ({"backend": "openvino"}, "`backend` has to be 'default'"),
    ],
)
def test_what_is_given_twice_or_wrongly(tiny, arguments, message):
    with pytest.raises(ValueError) as caught:
        LlamaStopLLM.from_model_id(tiny, **arguments)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "harmless",
    [
        {"prefix": ""},
        {"clean_up_tokenization_spaces": False},
        {"truncation": False, "padding": True},
        {"return_tensors": False, "skip_special_tokens": True},
        {"handle_long_generation": None, "num_workers": 0},
    ],
)
def test_pipeline_kwargs_that_change_nothing(tiny, harmless):
    plain = LlamaStopLLM(model_id=tiny, max_new_tokens=8, temperature=0)
    llm = LlamaStopLLM.from_model_id(
        tiny, pipeline_kwargs={"max_new_tokens": 8, "do_sample": False, **harmless}
    )
    assert (
        llm.invoke("Once") == plain.invoke("Once") == llm.invoke("Once", pipeline_kwargs=harmless)
    )


@pytest.mark.parametrize(
    ("name", "value", "step"),
    [
        ("prefix", "Be brief. ", "put it into the prompts"),
        ("clean_up_tokenization_spaces", True, "leave it out"),
        ("truncation", True, "shorten the prompts"),
        ("padding", "max_length", "leave it out"),
        ("return_tensors", True, "leave it out"),
        ("stop_strings", ["x"], "use the option `stop`"),
    ],
)
def test_pipeline_kwargs_that_would_change_something(tiny, name, value, step):
    with pytest.raises(ValueError, match=f"`{name}`") as caught:
        LlamaStopLLM.from_model_id(tiny, pipeline_kwargs={name: value})
    assert step in str(caught.value)


@pytest.mark.parametrize("form", [lambda s: s, lambda s: [s], lambda s: ["never", s], tuple])
@pytest.mark.parametrize("place", [2, 5, 9])
def test_a_stop_sequence_is_a_stop(tiny, form, place):
    plain = LlamaStopLLM(model_id=tiny, max_new_tokens=64, temperature=0, eos_reward=False)
    text = plain.invoke("Once")
    stop = text[place]
    llm = LlamaStopLLM.from_model_id(
        tiny, pipeline_kwargs={"stop_sequence": form(stop)}, max_new_tokens=64, temperature=0
    )
    assert llm.invoke("Once") == text.partition(stop)[0]
    again = plain.invoke("Once", pipeline_kwargs={"stop_sequence": form(stop)})
    assert again == text.partition(stop)[0]
