"""Landing on vocabularies that nobody would choose: in budget, ended, and rows independent.

Tokens of such a vocabulary decode to nothing, to lone bytes, to parts of marks, to several sentence
ends at once, to whole fences and tables, to special tokens in the middle. Answers are random ids,
so any odd text can come.
"""

import os
import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from langchain_llama_stop import EosReward, EosTokenRewardLogitsProcessor
from langchain_llama_stop.engine.generate import generate, stream_generate
from tests.fakes import ScriptedLlama, hashed_scores, make_pipeline
from tests.fakes.generation import options

ROUNDS = 60 if os.environ.get("LLAMA_STOP_LONG") else 1
BUDGETS = range(1, 65)
ODD = [
    *(". Yes! No?", '."\n\n', ".)", "...", "?!", ".\n", "!!!", "。」", "。\n", "।", "؟", ".»"),
    *("```", "```\n", "~~~", "|", "|\n|", "- ", "1. ", "\n\n", "\n", "(", ")", '"', "“", "”"),
    *("Dr.", " the", "a", "B", " ", "\t", "\u200b", "\ufeff", "é", "😀", "\ufffd", "http://a."),
    *("<think>", "</think>", "{", "}", '{"a": ', "<0xZZ>", "\r\n", "0", "3.14", "—", "…", "¿"),
    *("**", "[", "](", "$", "\\(", "¡", ".1", "e.g."),
]
WORDS = ("one", "two", "three")


def odd_tokenizer(rng, byte_level):
    """Random pieces of `ODD`, alone or joined, lone bytes, and tokens without text."""
    made = {"".join(rng.choices(ODD, k=rng.randrange(1, 4))) for _ in range(60)}
    pieces = [*WORDS, "", *rng.sample(ODD, 30), *sorted(made)]
    names = [f"<0x{byte:02X}>" for byte in (0x0A, 0x2E, 0xC3, 0xA9, 0xE2, 0x80, 0xF0, 0x9F, 0xFF)]
    if byte_level:
        encode = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pieces = ["".join(text for text, _ in encode.pre_tokenize_str(p)) for p in pieces]
        names = ["Ã", "©", "â", "Ģ", "ð", "ÿ"]
    vocabulary = {piece: n for n, piece in enumerate(dict.fromkeys([*pieces, *names]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[0]))
    fallback = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.decoder = decoders.ByteLevel() if byte_level else fallback
    tokenizer.add_special_tokens(["</s>", "<|end|>", "<|x|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", padding_side="left"
    )


REWARDS = [
    {},
    {"start": 0.0},
    {"start": 1.0},
    {"strength": 0.0},
    {"strength": 50.0},
    {"boundary": "line"},
    {"boundary": "paragraph"},
    {"close_sentence": False},
    {"hindsight": False},
]


@pytest.mark.parametrize("byte_level", [True, False], ids=["byte level", "byte fallback"])
@pytest.mark.parametrize("reward", REWARDS, ids=str)
def test_answers_land_on_any_vocabulary(reward, byte_level):
    rng, cases = random.Random(f"{reward} {byte_level}"), 0
    for _ in range(ROUNDS):
        tokenizer = odd_tokenizer(rng, byte_level)
        eos, size = tokenizer.eos_token_id, len(tokenizer)
        model = ScriptedLlama(size, hashed_scores(size, rng.randrange(10**6)), eos, eos)
        pipeline = make_pipeline(model, tokenizer)
        for budget in rng.sample(BUDGETS, 8):
            seed = {"temperature": 1.0, "seed": rng.randrange(99)} if rng.random() < 0.3 else {}
            ends = {"eos_token_id": [eos, size - 1]} if rng.random() < 0.3 else {}
            opts = options(
                max_new_tokens=budget,
                eos_reward=reward,
                pipeline_kwargs=ends,
                prefix_cache=0,
                **seed,
            )
            responses = generate(pipeline, WORDS, opts)
            for word, response in zip(WORDS, responses, strict=True):
                assert response == generate(pipeline, [word], opts)[0]  # rows are independent
                assert 1 <= len(response.token_ids) <= budget
                whole = response.eos_source == "reward" and len(response.token_ids) == budget
                assert response.token_ids[-1] in (eos, size - 1) or whole
                assert response.finish_reason == "stop" and response.eos_source
                chunks = list(stream_generate(pipeline, word, opts))
                assert "".join(chunk.text for chunk in chunks) == response.text
                assert chunks[-1].response == response
                cases += 3
    print(f"{reward or 'defaults'}, {byte_level=}: {cases} answers, all landed")


@pytest.mark.parametrize("byte_level", [True, False], ids=["byte level", "byte fallback"])
def test_scores_stay_finite_and_rows_apart_on_any_vocabulary(byte_level):
    rng, steps = random.Random(byte_level), 0
    for _ in range(2 * ROUNDS):
        tokenizer = odd_tokenizer(rng, byte_level)
        eos, size = tokenizer.eos_token_id, len(tokenizer)
        budget = rng.choice(BUDGETS)
        processor = EosTokenRewardLogitsProcessor(
            tokenizer, max_new_tokens=budget, prompt_length=1,
            reward=EosReward(**rng.choice(REWARDS[:-1])), eos_token_id=[eos, size - 1],
        )  # fmt: skip
        ids = torch.tensor([[rng.randrange(size - 3) for _ in range(1 + budget)] for _ in range(5)])
        for length in range(1, budget + 1):
            scores = torch.randn(5, size, generator=torch.Generator().manual_seed(length)) * 20
            before = scores.clone()
            new = processor(ids[:, :length], scores)
            assert torch.equal(scores, before) and new.isfinite().all()
            for row in range(5):
                alone = processor(ids[row : row + 1, :length], scores[row : row + 1])
                assert torch.equal(alone[0], new[row])
            if length == budget:
                assert set(new.argmax(dim=1).tolist()) <= {eos, size - 1}
            steps += 5
    print(f"{byte_level=}: {steps} rows of scores, all finite and apart")
