"""Pipelines of fake models, and helpers that run them."""

import torch
from transformers import Lfm2Config, Lfm2ForCausalLM

from langchain_llama_stop import LlamaStopLLM
from langchain_llama_stop.engine.generate import stream_generate
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import (
    TOKENIZERS,
    ScriptedLlama,
    hashed_scores,
    make_pipeline,
    scripted_answers,
    tiny_llama,
)

STOPS = ["\nObservation:", "😀", "END", " the", "日本", "<|im_end|>", "\n\n", "a", "</s>"]


PIECES = [*STOPS, "Thought: look", " in", "\n", "é", "EN", "😁", "本", "A cat. ", "1. ", "(", '"']


def options(**kwargs):
    return GenerationOptions.parse({"max_new_tokens": 40, **kwargs})


def scripted(name, prompt, answer_ids):
    """A pipeline whose model answers one prompt with these ids, then EOS."""
    tokenizer = TOKENIZERS[name]
    eos = tokenizer.eos_token_id
    key = tuple(tokenizer(prompt)["input_ids"])
    scores = scripted_answers({key: list(answer_ids)}, len(tokenizer), eos)
    return make_pipeline(ScriptedLlama(len(tokenizer), scores, eos, eos), tokenizer)


def encode(name, text):
    return TOKENIZERS[name](text, add_special_tokens=False)["input_ids"]


def hashed(seed, name="bytes"):
    tokenizer = TOKENIZERS[name]
    eos = tokenizer.eos_token_id
    model = ScriptedLlama(len(tokenizer), hashed_scores(len(tokenizer), seed), eos, eos)
    return make_pipeline(model, tokenizer)


def tiny(seed=0, name="bytes"):
    tokenizer = TOKENIZERS[name]
    model = tiny_llama(
        len(tokenizer),
        seed,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return make_pipeline(model, tokenizer)


def streamed(pipeline, prompt, opts):
    chunks = list(stream_generate(pipeline, prompt, opts))
    assert [c.response is not None for c in chunks] == [False] * (len(chunks) - 1) + [True]
    return "".join(c.text for c in chunks), chunks[-1].response


def decoded(tokenizer, ids, skip=True, prompt=()):
    """The text of some ids, as what follows that of a prompt."""
    settings = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
    before = tokenizer.decode(list(prompt), **settings)
    return tokenizer.decode([*prompt, *ids], **settings)[len(before) :]


def oracle(tokenizer, prompt, ids, stops):
    """Token by token; at the first one that completes a stop, cut there. `str.find` only."""

    def decode(ids, skip=True):
        return decoded(tokenizer, ids, skip, prompt)

    special = {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    names = [tokenizer.convert_ids_to_tokens(i) for i in special]
    for n in range(1, len(ids) + 1):
        text, full, cuts = decode(ids[:n]), decode(ids[:n], False), []
        found = [(text.find(s) + len(s), text.find(s), s) for s in stops if s in text]
        if found:
            _, start, stop = min(found)
            cuts.append((start, 1, stop, text[:start]))
        named = [s for s in stops if s in full and any(name in s for name in names)]
        if named and not special.isdisjoint(ids[:n]):
            _, start, stop = min((full.find(s) + len(s), full.find(s), s) for s in named)
            k = max(k for k in range(n + 1) if len(decode(ids[:k], False)) <= start)
            rest = "" if k < n and ids[k] in special else full[len(decode(ids[:k], False)) : start]
            cuts.append((len(decode(ids[:k]) + rest), 0, stop, decode(ids[:k]) + rest))
        if cuts:
            _, _, stop, visible = min(cuts)
            return visible, stop
    return decode(ids), None


SHORT = {"max_new_tokens": 8, "eos_reward": False}


def model(pipeline=None, **kwargs):
    """A tiny LLM whose answers are short."""
    return LlamaStopLLM(pipeline=pipeline or tiny(), temperature=0, **{**SHORT, **kwargs})


def recurrent(layer_types=("conv", "full_attention", "conv")):
    """A pipeline whose model has states that a pass which fails spoils."""
    tokenizer = TOKENIZERS["bytes"]
    eos = tokenizer.eos_token_id
    config = Lfm2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=len(layer_types),
        num_attention_heads=4,
        num_key_value_heads=2,
        layer_types=list(layer_types),
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=eos,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_pipeline(Lfm2ForCausalLM(config).eval(), tokenizer)
