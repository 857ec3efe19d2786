"""What a pipeline and a checkpoint say is honoured, or refused by its name; never ignored."""

import pytest
import torch
from transformers import (
    GenerationConfig,
    TextGenerationPipeline,
    TextIteratorStreamer,
    WatermarkingConfig,
)

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM
from langchain_llama_stop.engine.config import with_pipeline_stops
from langchain_llama_stop.engine.generate import generate
from tests.fakes import TOKENIZERS, byte_bpe_tokenizer, byte_characters, make_pipeline, tiny_llama
from tests.fakes.generation import options, scripted, tiny

TOKENIZER = TOKENIZERS["byte_bpe"]
EOS = TOKENIZER.eos_token_id
PROMPTS = ["Question: Who wrote the book?", "The capital of France", "1, 2, 3, 1, 2,"]
WORDS = [t for t in range(len(TOKENIZER)) if TOKENIZER.decode([t]).strip().isalpha()]


def given(settings, **arguments):
    """A pipeline with these arguments, whose checkpoint has these generation settings."""
    model = tiny_llama(len(TOKENIZER), eos_token_id=EOS, pad_token_id=EOS)
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return make_pipeline(model, TOKENIZER, **arguments)


def llm(pipeline, **kwargs):
    return LlamaStopLLM(
        pipeline=pipeline, **{"max_new_tokens": 12, "temperature": 0, "eos_reward": False, **kwargs}
    )


ALIKE = [
    {},
    {"prefix_allowed_tokens_fn": lambda row, ids: WORDS},
    {"prefix_allowed_tokens_fn": lambda row, ids: WORDS[int(ids[-1]) % 3 :: 3]},
    {"add_special_tokens": False},
    {"truncation": True, "tokenizer_encode_kwargs": {"max_length": 4}},
    {"tokenizer_encode_kwargs": {"truncation": True, "max_length": 3}},
    {"tokenizer_encode_kwargs": {"add_special_tokens": False}},
    {"streamer": None, "return_full_text": False},
    {"skip_special_tokens": True, "clean_up_tokenization_spaces": False},
    {"suppress_tokens": WORDS[:200], "no_repeat_ngram_size": 2},
    {"generation_config": GenerationConfig(repetition_penalty=1.5, sequence_bias=[[[70], 9.0]])},
    {"watermarking_config": WatermarkingConfig(bias=5.0)},
    {"renormalize_logits": True, "bad_words_ids": [[71], [72, 73]]},
    {"forced_eos_token_id": EOS, "use_cache": False},
    {"cache_implementation": "static", "remove_invalid_values": True},
    {"guidance_scale": 1.5},
]


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", [{}, {"min_new_tokens": 6, "repetition_penalty": 1.2}])
@pytest.mark.parametrize("arguments", ALIKE, ids=lambda arguments: "+".join(arguments) or "none")
def test_answers_are_those_of_the_pipeline(arguments, checkpoint):
    pipeline = given(checkpoint, do_sample=False, max_new_tokens=12, **arguments)
    plain = [pipeline(p, return_full_text=False)[0]["generated_text"] for p in PROMPTS]
    model = LlamaStopLLM(pipeline=pipeline, eos_reward=False)
    assert [model.invoke(prompt) for prompt in PROMPTS] == plain
    assert model.batch(PROMPTS) == plain


REFUSED = {
    "return_full_text": {"return_full_text": True},
    "return_tensors": {"return_tensors": True},
    "skip_special_tokens": {"skip_special_tokens": False},
    "clean_up_tokenization_spaces": {"clean_up_tokenization_spaces": True},
    "tokenizer_encode_kwargs": {"tokenizer_encode_kwargs": {"enable_thinking": False}},
    "padding": {"padding": "max_length"},
    "streamer": {"streamer": TextIteratorStreamer(TOKENIZER)},
    "negative_prompt_ids": {"negative_prompt_ids": torch.tensor([[70]]), "guidance_scale": 2.0},
    "handle_long_generation": {"handle_long_generation": "hole"},
    "max_new_tokns": {"max_new_tokns": 3},
    "temprature": {"generation_config": GenerationConfig(temprature=0.3)},
    "inputs_embeds": {"inputs_embeds": 3},
    "custom_generate": {"custom_generate": "owner/recipe"},
    "prefix": {"prefix": "Once"},
    "documents": {"documents": [{"title": "a"}]},
    "token_healing": {"token_healing": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_honoured_is_refused_when_the_model_is_given(name):
    pipeline = given({}, **REFUSED[name])
    for make in (LlamaStopLLM, ChatLlamaStop):
        with pytest.raises(ValueError, match=rf"`{name}`.*: \S+"):
            make(pipeline=pipeline)


@pytest.mark.parametrize(
    "later", [{"repetition_penalty": 2.0}, {"max_new_tokens": 3}, {"suppress_tokens": WORDS}]
)
def test_what_is_changed_in_a_pipeline_later_is_in_force(later):
    pipeline = given({}, do_sample=False, max_new_tokens=12)
    pipeline._forward_params.update(later)
    plain = [pipeline(p, return_full_text=False)[0]["generated_text"] for p in PROMPTS]
    assert LlamaStopLLM(pipeline=pipeline, eos_reward=False).batch(PROMPTS) == plain


class OwnPipeline(TextGenerationPipeline):
    def preprocess(self, text, **kwargs):
        return super().preprocess("Instruction: " + text, **kwargs)


class OwnAnswers(TextGenerationPipeline):
    def postprocess(self, output, **kwargs):
        return [{"generated_text": r["generated_text"].upper()} for r in output]


class OwnPass(TextGenerationPipeline):
    def _forward(self, inputs, **kwargs):
        return super()._forward(inputs, **kwargs)


@pytest.mark.parametrize(
    ("made_by", "name"),
    [(OwnPipeline, "preprocess"), (OwnAnswers, "postprocess"), (OwnPass, "_forward")],
)
def test_a_pipeline_of_ones_own_is_refused_by_what_it_does_itself(made_by, name):
    pipeline = made_by(model=given({}).model, tokenizer=TOKENIZER, task="text-generation")
    for make in (LlamaStopLLM, ChatLlamaStop):
        with pytest.raises(ValueError, match=rf"`{name}`.*{made_by.__name__}.*outside"):
            make(pipeline=pipeline)


def test_a_step_replaced_in_one_pipeline_is_refused_too():
    pipeline = given({})
    pipeline.preprocess = lambda text, **kwargs: pipeline.tokenizer(text)
    with pytest.raises(ValueError, match="`preprocess`"):
        llm(pipeline)


def test_the_option_may_ask_for_the_full_text_as_the_pipeline_does():
    pipeline = given({}, return_full_text=True)
    assert llm(pipeline, return_full_text=True).invoke("Hello").startswith("Hello")


CHECKPOINTS = [
    {"num_beams": 3},
    {"num_return_sequences": 2},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"dola_layers": "high"},
    {"force_words_ids": [[[70]]]},
    {"force_words_ids": []},
    {"num_beams": 0},
    {"prompt_lookup_num_tokens": 0},
    {"assistant_early_exit": 0},
    {"dola_layers": []},
    {"constraints": [1]},
    {"prompt_lookup_num_tokens": 3},
    {"assistant_early_exit": 1},
    {"use_mtp": True},
    {"token_healing": True},
    {"cache_implementation": "quantized"},
    {"cache_implementation": "offloaded"},
]


@pytest.mark.parametrize("settings", CHECKPOINTS, ids=str)
def test_what_a_checkpoint_asks_for_and_is_not_done_is_refused_by_name(settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=f"`{name}`.*model's generation config.*{name}|batch"):
        llm(given(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": "258"},
        {"eos_token_id": [None]},
        {"eos_token_id": [1.5, 2]},
        {"eos_token_id": torch.tensor([70])},
        {"exponential_decay_length_penalty": (3,)},
        {"watermarking_config": {"ngram_len": 5, "keys": [1, 2]}},
    ],
    ids=str,
)
def test_a_value_of_a_wrong_form_is_a_value_error_that_says_where(settings):
    with pytest.raises(ValueError, match=r"model\.generation_config"):
        llm(given(settings)).invoke("Hello")


def test_so_is_one_of_a_call():
    with pytest.raises(ValueError, match=r"`pipeline_kwargs`.*ngram_len"):
        llm(given({}), pipeline_kwargs={"watermarking_config": {"ngram_len": 5, "keys": [1]}})


def test_a_call_may_override_what_a_checkpoint_asks_for():
    model = llm(given({"num_beams": 3}), pipeline_kwargs={"num_beams": 1})
    assert model.invoke("Hello") == llm(given({})).invoke("Hello")


@pytest.mark.parametrize("settings", [{"eos_token_id": []}, {"transformers_js": 1}])
def test_what_says_nothing_is_no_fault(settings):
    assert llm(given(settings)).invoke("Hello") == llm(given({})).invoke("Hello")


@pytest.mark.parametrize("stops", ["a", ["zz", "e"], ["t"], ["<|eot_id|>"]])
@pytest.mark.parametrize("where", ["checkpoint", "argument", "config", "stop_sequence"])
def test_stop_strings_are_stops_wherever_they_stand(stops, where):
    expected = llm(given({}), stop=[stops] if isinstance(stops, str) else list(stops))
    config = GenerationConfig(stop_strings=stops)
    arguments = {
        "checkpoint": {},
        "argument": {"stop_strings": stops},
        "config": {"generation_config": config},
        "stop_sequence": {"stop_sequence": stops},
    }[where]
    model = llm(given({"stop_strings": stops} if where == "checkpoint" else {}, **arguments))
    assert model.invoke("Hello") == expected.invoke("Hello")
    assert "".join(model.stream("Hello")) == expected.invoke("Hello")


def test_a_pipelines_draft_model_drafts():
    draft = tiny_llama(len(TOKENIZER), seed=1, eos_token_id=EOS, pad_token_id=EOS)
    pipeline = given({}, assistant_model=draft)
    assert with_pipeline_stops(pipeline, options()).assistant_model is draft
    assert llm(pipeline).invoke("Hello") == llm(given({})).invoke("Hello")


@pytest.mark.parametrize("arguments", [a for a in ALIKE if a])
def test_pipelines_that_differ_have_different_cache_keys(arguments):
    pipeline = given({})
    other = make_pipeline(pipeline.model, TOKENIZER, **arguments)
    keys = [str(llm(p)._identifying_params) for p in (pipeline, pipeline, other)]
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    "change",
    [
        {"truncation_side": "left"},
        {"model_max_length": 7},
        {"chat_template": "{{ messages }}"},
    ],
    ids=str,
)
def test_tokenizers_that_differ_make_different_cache_keys(change):
    pipeline, tokenizer = given({}), byte_bpe_tokenizer()
    tokenizer.name_or_path = "some-model"
    before = str(llm(make_pipeline(pipeline.model, tokenizer))._identifying_params)
    for name, value in change.items():
        setattr(tokenizer, name, value)
    assert before != str(llm(make_pipeline(pipeline.model, tokenizer))._identifying_params)


# --- odd texts


@pytest.mark.parametrize("text", ["\ud800", "half \udfff of", "a" * 900 + "\udc00"])
def test_half_of_a_surrogate_pair_is_refused(text):
    model = llm(tiny())
    for call in (
        lambda: model.invoke(text),
        lambda: model.invoke("Hi", stop=[text]),
        lambda: list(model.stream(text)),
        lambda: ChatLlamaStop(pipeline=tiny()).invoke(text),
        lambda: ChatLlamaStop(pipeline=tiny()).invoke([("system", text), ("human", "Hi")]),
    ):
        with pytest.raises(ValueError, match="lone surrogate .* at index"):
            call()


def test_a_token_without_an_embedding_is_named():
    tokenizer = TOKENIZER.__class__(
        tokenizer_object=TOKENIZER.backend_tokenizer, eos_token="<|eot_id|>", chat_template=" "
    )
    pipeline = make_pipeline(given({}).model, tokenizer)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="'<new>'.*resize_token_embeddings"):
        llm(pipeline).batch(["Hello", "a <new> b"])
    assert llm(pipeline).invoke("Hello")


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("answer", "expected"),
    [("a😀b", "a😀b"), ("日本", "日本"), ("é", "é"), (b"a\xf0\x9fb", "a"), (b"\xff", "")],
)
def test_half_a_character_is_no_replacement_character(name, answer, expected):
    tokenizer = TOKENIZERS[name]
    if isinstance(answer, str):
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    else:  # letters as such, other bytes as tokens of one byte
        characters = byte_characters()
        names = (
            chr(b) if b < 128 else f"<0x{b:02X}>" if name == "metaspace" else characters[b]
            for b in answer
        )
        ids = [tokenizer.convert_tokens_to_ids(n) for n in names]
    pipeline = scripted(name, "Hi", ids)
    response = generate(pipeline, ["Hi"], options(stop=["\ufffd"], eos_reward=False))[0]
    assert response.text.strip() == expected


@pytest.mark.parametrize("name", TOKENIZERS)
def test_an_empty_prompt_is_the_bos(name):
    pipeline = tiny(name=name)
    plain = pipeline.model.generate(
        torch.tensor([[TOKENIZERS[name].bos_token_id]]), max_new_tokens=8, do_sample=False
    )
    response = generate(pipeline, [""], options(max_new_tokens=8, eos_reward=False))[0]
    assert list(response.token_ids) == plain[0, 1:].tolist()
