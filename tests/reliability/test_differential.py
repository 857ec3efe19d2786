"""Random models, wrappers and settings: every answer is what `generate` gives for its prompt alone.

A case draws an architecture, a kind of RoPE, a wrapper, settings of the checkpoint and of the call,
and prompts of different length with beginnings in common. They run alone, as a batch, as a batch
again after cached prefixes, from threads, with draft tokens; with a seed, alone and as a batch.
LLAMA_STOP_LONG=1 runs 3,000 cases.
"""

import copy
import os
import random
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from langchain_llama_stop.engine.config import eos_token_ids
from langchain_llama_stop.engine.generate import generate
from tests.fakes import TOKENIZERS, make_pipeline
from tests.fakes.generation import options

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers and peft, about settings

LONG = bool(os.environ.get("LLAMA_STOP_LONG"))
CASES = 250 if LONG else 1  # of each kind of RoPE
TOKENIZER = TOKENIZERS["bytes"]
NEW = 12

SHAPE = {
    "vocab_size": len(TOKENIZER),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "initializer_range": 0.5,
    "bos_token_id": 0,
    "pad_token_id": 1,
}
HEAD, WINDOW = {"head_dim": 8}, {"sliding_window": 24}
ROPES = [None, "default", "linear", "dynamic", "yarn", "llama3", "longrope"]
ROTARY = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": HEAD,
    "phi3": {"original_max_position_embeddings": 64},
    "olmo2": {},
    "granite": {},
    "stablelm": {"partial_rotary_factor": 1.0},
}
OTHERS = {
    "mistral": WINDOW,
    "gemma": HEAD,
    "gemma2": HEAD | WINDOW,
    "gemma3_text": HEAD | WINDOW,
    "cohere": {},
    "starcoder2": {"sliding_window": None},
    "mixtral": {"num_local_experts": 4},
    "gpt2": {"n_inner": 64, "n_positions": 512},
    "gpt_neox": {},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {"alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    "phi": {},
    "glm": HEAD,
    "smollm3": {"use_sliding_window": False},
}
COMMON = "The quick brown fox jumps over the lazy dog, again and again. "
PROMPTS = ["Why?", COMMON + "Why?", COMMON + "Is that so, do you think?", COMMON * 2, COMMON, "a"]
SETTINGS = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2},
    {"min_new_tokens": 6},
    {"min_length": 70},
    {"bad_words_ids": [[97], [98, 99], [200]]},
    {"suppress_tokens": list(range(100, 130))},
    {"begin_suppress_tokens": list(range(0, 200, 2))},
    {"encoder_repetition_penalty": 1.5},
    {"encoder_no_repeat_ngram_size": 2},
    {"forced_eos_token_id": 258},
    {"sequence_bias": [[[70], 4.0], [[71, 72], -4.0]]},
    {"exponential_decay_length_penalty": (3, 1.2)},
    {"renormalize_logits": True},
    {"remove_invalid_values": True},
    {"use_cache": False},
]


def rope(kind):
    """The config's entries for a kind of RoPE whose original window are 64 tokens."""
    if kind is None:
        return {"max_position_embeddings": 512}
    more = {
        "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
        "longrope": {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4},
    }.get(kind, {})
    parameters = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **more}
    if kind in ("yarn", "llama3", "longrope"):
        parameters["original_max_position_embeddings"] = 64
    stated = 64 if kind in ("linear", "dynamic") else 512
    return {"max_position_embeddings": stated, "rope_parameters": parameters}


def model_of(rng, name, config, wrapper):
    torch.manual_seed(rng.randrange(10**6))
    full = AutoConfig.for_model(name, **SHAPE | config)
    model = AutoModelForCausalLM.from_config(full).eval()
    ends = rng.sample(range(3, 256), 8)  # so that answers end at different places
    model.generation_config.update(eos_token_id=[TOKENIZER.eos_token_id, *ends], pad_token_id=1)
    if wrapper in ("lora", "compiled lora"):
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", r=2)).eval()
    if wrapper == "ia3":
        layers = [n for n, m in model.named_modules() if n.endswith("down_proj")]
        adapter = IA3Config(target_modules=layers, feedforward_modules=layers)
        model = get_peft_model(model, adapter).eval() if layers else model
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name or "ia3_" in parameter_name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.3)
    return model


def alone(model, prompt, settings):
    """The tokens that plain `generate` gives for one prompt, and how near each second choice was.

    By a fresh copy: a pass may leave frequencies of RoPE behind.
    """
    pipeline = make_pipeline(copy.deepcopy(model), TOKENIZER)
    inputs = TOKENIZER(prompt, return_tensors="pt", return_token_type_ids=False)
    eos = eos_token_ids(pipeline, options())
    with torch.no_grad():
        out = pipeline.model.generate(
            **inputs, max_new_tokens=NEW, do_sample=False, eos_token_id=eos, pad_token_id=1,
            return_dict_in_generate=True, output_scores=True, **settings,
        )  # fmt: skip
    tokens = tuple(out.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    best = [scores[0].topk(2).values for scores in out.scores]
    return tokens, [float(first - second) for first, second in best]


def same(found, expected):
    """Whether an answer is the expected one, up to a choice that rounding decides."""
    tokens, margins = expected
    if found == tokens:
        return True
    parted = next(i for i in range(NEW) if found[i : i + 1] != tokens[i : i + 1])
    return parted < len(margins) and margins[parted] < 1e-4


def check(rng, name, config, wrapper):
    model = model_of(rng, name, config, wrapper)
    settings = {}
    for more in rng.sample(SETTINGS, rng.choice([0, 0, 1, 2])):
        settings |= more
    if rng.random() < 0.3:  # the checkpoint says it
        model.generation_config.update(**settings)
        config, settings = config | settings, {}
    prompts = rng.sample(PROMPTS, rng.randrange(2, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [alone(model, prompt, settings) for prompt in prompts]
    if "compiled" in wrapper:
        model = torch.compile(model, backend="eager")
    pipeline = make_pipeline(model, TOKENIZER)

    def answers(prompts, **more):
        how = {"max_new_tokens": NEW, "eos_reward": False, "temperature": 0, **more}
        opts = options(pipeline_kwargs=settings, **how)
        return [response.token_ids for response in generate(pipeline, prompts, opts)]

    def each(run):
        return [answer for prompt in prompts for answer in run([prompt])]

    ways = {
        "batch": lambda: answers(prompts),
        "batch after cached prefixes": lambda: answers(prompts),
        "alone": lambda: each(answers),
        "without cached prefixes": lambda: answers(prompts, prefix_cache=0),
        "drafts": lambda: each(lambda one: answers(one, prompt_lookup_num_tokens=3)),
        "threads": lambda: [
            answer
            for found in ThreadPoolExecutor(4).map(lambda prompt: answers([prompt]), prompts)
            for answer in found
        ],
    }
    for way, run in rng.sample(sorted(ways.items()), len(ways)):
        for prompt, found, wanted in zip(prompts, run(), expected, strict=True):
            case = f"{name} {config} {wrapper} {settings} {way}: {prompt!r}"
            assert same(found, wanted), f"{case}: {found} instead of {wanted}"
    sampled = {"temperature": 1.0, "seed": rng.randrange(99)}
    apart = each(lambda one: answers(one, **sampled))
    assert answers(prompts, **sampled) == apart, f"{name} {config} {wrapper} {settings} {sampled}"


@pytest.mark.parametrize("kind", ROPES, ids=str)
def test_kinds_of_rope(kind):
    rng = random.Random(str(kind))
    for _ in range(CASES):
        known = kind in (None, "default", "longrope")  # to Phi 3
        name = rng.choice(sorted(ROTARY if known else ROTARY.keys() - {"phi3"}))
        check(rng, name, ROTARY[name] | rope(kind), rng.choice(["none", "lora", "compiled"]))


@pytest.mark.parametrize("name", OTHERS)
def test_architectures(name):
    rng = random.Random(name)
    for _ in range(CASES // 5 or 1):
        check(rng, name, OTHERS[name], rng.choice(["none", "none", "lora"]))


@pytest.mark.parametrize("wrapper", ["lora", "ia3", "compiled", "compiled lora"])
def test_wrappers(wrapper):
    rng = random.Random(wrapper)
    for _ in range(CASES // 2 or 1):
        name = rng.choice(["llama", "mistral", "qwen2", "phi3"])
        check(rng, name, ROTARY[name], wrapper)
