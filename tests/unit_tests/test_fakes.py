"""The fakes do what real tokenizers and models do."""

import copy
import random

import pytest
import torch
from transformers import DynamicCache

from langchain_llama_stop.engine.kv_cache import CACHE_NAME
from tests.fakes import (
    ScriptedLlama,
    byte_bpe_tokenizer,
    byte_ids,
    byte_tokenizer,
    hashed_scores,
    make_pipeline,
    metaspace_tokenizer,
    scripted_answers,
    tiny_llama,
)

TOKENIZERS = [byte_tokenizer, metaspace_tokenizer, byte_bpe_tokenizer]
TEXTS = [
    "",
    "Observation: 42",
    " two  spaces,   tabs\t and\r\nlines\n\n\nend \n",
    "naïve café — ½ \x00\x7f",
    "日本語のテキスト。 中文，한국어",
    "😀👩‍👩‍👧‍👦🇫🇷 e\u0301",
    "don't you'll I'm , . ! ?",
]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi!"},
    {"role": "user", "content": "Bye"},
]
EOS, PAD, SIZE = 19, 18, 20


def hashed_llama(seed: int = 0) -> ScriptedLlama:
    """A fake of 20 tokens whose every next token depends on the whole history."""
    return ScriptedLlama(SIZE, hashed_scores(SIZE, seed), EOS, PAD)


def greedy(seed: int, prompt: list[int], count: int) -> list[int]:
    """What `hashed_llama(seed)` must answer, computed without any model."""
    next_scores = hashed_scores(SIZE, seed)
    ids = list(prompt)
    while len(ids) < len(prompt) + count and ids[len(prompt) :][-1:] != [EOS]:
        ids.append(int(next_scores(tuple(ids)).argmax()))
    return ids[len(prompt) :]


def random_prompts(seed: int, count: int) -> list[list[int]]:
    """Prompts of 1 to 12 ids, none of them special."""
    choose = random.Random(seed)
    return [[choose.randrange(PAD) for _ in range(choose.randint(1, 12))] for _ in range(count)]


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """One batch, as a tokenizer with left padding makes it."""
    width = max(map(len, prompts))
    ids = [[PAD] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("make", TOKENIZERS)
def test_text_roundtrips(make):
    tokenizer, choose = make(), random.Random(0)
    texts = [
        "".join(choose.choices(" \n.:,é€😀字aOo1<|▄", k=choose.randint(0, 20))) for _ in range(300)
    ]
    for text in TEXTS + texts:
        kept = text.removeprefix(" ") if make is metaspace_tokenizer else text
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == kept


@pytest.mark.parametrize("make", TOKENIZERS)
def test_tokenizers_share_nothing_that_can_be_changed(make):
    size = len(make())
    make().add_tokens(["another"])
    assert len(make()) == size


def test_byte_tokenizer_ids():
    tokenizer = byte_tokenizer()
    assert len(tokenizer) == 261
    for text in TEXTS:
        assert tokenizer(text).input_ids == byte_ids(text)
    specials = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.convert_tokens_to_ids(specials) == list(range(256, 261))
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (256, 258)
    assert tokenizer("a</s>").input_ids == [97, 258]
    assert tokenizer.decode([259, 97, 260], skip_special_tokens=True) == "a"


def test_metaspace_tokenizer_is_as_of_llama_2():
    tokenizer = metaspace_tokenizer()
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3, 258]) == [
        "<unk>",
        "<s>",
        "</s>",
        "<0x00>",
        "<0xFF>",
    ]
    ids = tokenizer("Hello").input_ids
    assert ids[0] == 1
    assert tokenizer.convert_ids_to_tokens(ids[1:])[0].startswith("▁")
    assert tokenizer.decode(ids[1:]) == "Hello"
    assert tokenizer.decode(ids) == "<s> Hello"
    assert tokenizer.convert_ids_to_tokens(tokenizer("\n😀").input_ids) == [
        *["<s>", "▁", "<0x0A>"],
        *["<0xF0>", "<0x9F>", "<0x98>", "<0x80>"],
    ]
    assert tokenizer.decode(tokenizer("😀").input_ids[2:-1]) == "\ufffd" * 3
    assert tokenizer.pad_token_id is None


def test_metaspace_pieces_depend_on_context():
    tokenizer = metaspace_tokenizer()

    def pieces(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids[1:])

    assert pieces("Observation:") == ["▁Observation", ":"]
    assert pieces(".\nObservation:")[2:] == ["<0x0A>", "Ob", "servation", ":"]
    assert pieces("a  Observation:")[1:] == ["▁▁", "Ob", "servation", ":"]
    assert pieces("\nObservation")[:2] == ["▁", "<0x0A>"]


def test_byte_bpe_tokenizer_is_as_of_llama_3():
    tokenizer = byte_bpe_tokenizer()
    assert tokenizer("Hello").input_ids[0] == tokenizer.bos_token_id == len(tokenizer) - 5
    assert tokenizer.convert_ids_to_tokens(tokenizer.eos_token_id) == "<|eot_id|>"
    assert tokenizer.convert_ids_to_tokens(tokenizer("ok.\n\nObservation: x.\n").input_ids[1:]) == [
        *["ok", ".ĊĊ", "Observation", ":", "Ġ", "x", ".Ċ"]
    ]
    assert tokenizer.decode(tokenizer("é").input_ids[1:2]) == "\ufffd"
    assert tokenizer.pad_token_id is None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            byte_tokenizer,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
            "<|im_start|>assistant\nHi!<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            metaspace_tokenizer,
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi! </s><s>[INST] Bye [/INST]",
        ),
        (
            byte_bpe_tokenizer,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHi!<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_chat_templates(make, text):
    assert make().apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == text


def test_tiny_llama_is_random_by_seed_and_varied():
    state = torch.get_rng_state()
    answers = set()
    for seed in range(4):
        model = tiny_llama(261, seed, eos_token_id=258, pad_token_id=256)
        assert (model.config.eos_token_id, model.config.pad_token_id) == (258, 256)
        assert not model.training
        assert model.dtype == torch.float32
        prompt = torch.tensor([[65, 66]])
        answer = model.generate(prompt, max_new_tokens=20, min_new_tokens=20, do_sample=False)
        twin = tiny_llama(261, seed, eos_token_id=258, pad_token_id=256)
        again = twin.generate(prompt, max_new_tokens=20, min_new_tokens=20, do_sample=False)
        assert answer.tolist() == again.tolist()
        assert len(set(answer[0, 2:].tolist())) >= 10
        answers.add(tuple(answer[0].tolist()))
    assert len(answers) == 4
    assert torch.equal(torch.get_rng_state(), state)


def test_scripted_llama_leaves_the_random_state():
    state = torch.get_rng_state()
    hashed_llama()
    assert torch.equal(torch.get_rng_state(), state)


def test_hashed_scores_are_the_same_in_every_process():
    assert greedy(0, [1, 2, 3], 8) == [7, 19]
    assert greedy(7, [1, 2, 3], 8) == [4, 9, 6, 2, 7, 1, 15, 15]


def test_greedy_answers_are_the_scripts_own():
    for seed, prompt in enumerate(random_prompts(0, 20)):
        output = hashed_llama(seed).generate(torch.tensor([prompt]), max_new_tokens=15)
        assert output[0, len(prompt) :].tolist() == greedy(seed, prompt, 15)


def test_answers_are_the_same_without_cache():
    for seed, prompt in enumerate(random_prompts(1, 5)):
        model = hashed_llama(seed)
        output = model.generate(torch.tensor([prompt]), max_new_tokens=15, use_cache=False)
        assert output[0, len(prompt) :].tolist() == greedy(seed, prompt, 15)


def test_a_left_padded_batch_answers_as_its_rows_alone():
    for seed in range(10):
        prompts = random_prompts(seed, 5)
        batch = left_padded(prompts)
        output = hashed_llama(seed).generate(**batch, max_new_tokens=15)
        for prompt, row in zip(prompts, output[:, batch["input_ids"].shape[1] :], strict=True):
            answer = greedy(seed, prompt, 15)
            assert row.tolist() == answer + [PAD] * (len(row) - len(answer))


def test_every_position_scores_its_own_history():
    batch = left_padded([[1, 2, 3, 4], [5, 6]])
    next_scores = hashed_scores(SIZE, 0)
    model = hashed_llama()
    logits = model(**batch).logits
    assert logits.shape == (2, 4, SIZE)
    for end in range(1, 5):
        assert torch.equal(logits[0, end - 1], next_scores((1, 2, 3, 4)[:end]))
    assert torch.equal(logits[1, 2], next_scores((5,)))
    assert torch.equal(logits[1, 3], next_scores((5, 6)))
    assert not logits[1, :2].any()
    assert torch.equal(model(**batch, logits_to_keep=2).logits, logits[:, 2:])


def test_the_cache_is_the_only_memory():
    model, next_scores = hashed_llama(), hashed_scores(SIZE, 0)
    cache = DynamicCache(config=model.config)
    assert len(cache.layers) == 1
    model(torch.tensor([[1, 2, 3, 4]]), **{CACHE_NAME: cache})
    shape = (1, model.config.num_key_value_heads, 4, model.config.head_dim)
    assert cache.layers[0].keys.shape == cache.layers[0].values.shape == shape
    cache.crop(-2)
    other = copy.deepcopy(cache)
    output = model(torch.tensor([[7, 8]]), **{CACHE_NAME: cache})
    assert output[CACHE_NAME] is cache
    assert torch.equal(output.logits[0, 0], next_scores((1, 2, 7)))
    assert torch.equal(output.logits[0, 1], next_scores((1, 2, 7, 8)))
    output = model(torch.tensor([[9]]), **{CACHE_NAME: other})
    assert torch.equal(output.logits[0, 0], next_scores((1, 2, 9)))


def test_rows_of_the_cache_can_be_selected():
    model, next_scores = hashed_llama(), hashed_scores(SIZE, 0)
    batch = left_padded([[1, 2, 3], [4, 5], [6]])
    cache = model(**batch)[CACHE_NAME]
    cache.batch_select_indices(torch.tensor([2, 1]))
    mask = torch.cat([batch["attention_mask"][[2, 1]], torch.ones(2, 1, dtype=torch.long)], dim=1)
    logits = model(
        torch.tensor([[7], [8]]), attention_mask=mask, **{CACHE_NAME: cache}, logits_to_keep=1
    ).logits
    assert torch.equal(logits[0, 0], next_scores((6, 7)))
    assert torch.equal(logits[1, 0], next_scores((4, 5, 8)))


def test_a_mask_of_another_length_is_refused():
    with pytest.raises(ValueError, match="attention_mask"):
        hashed_llama()(torch.tensor([[1, 2]]), attention_mask=torch.ones(1, 3))


def test_generate_goes_on_from_a_cached_prefix():
    model = hashed_llama()
    cache = model(torch.tensor([[1, 2, 3]]))[CACHE_NAME]
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    output = model.generate(ids, **{CACHE_NAME: cache}, max_new_tokens=15)
    assert output[0, 5:].tolist() == greedy(0, [1, 2, 3, 4, 5], 15)


def test_prompt_lookup_gives_the_same_tokens():
    prompt = byte_ids("the cat saw the dog. the ")
    answer = byte_ids("cat saw the dog. the cat ran. the cat saw it.")
    forwards = []

    class Counted(ScriptedLlama):
        def forward(self, input_ids, **kwargs):
            forwards.append(input_ids.shape[1])
            return super().forward(input_ids, **kwargs)

    model = Counted(261, scripted_answers({tuple(prompt): answer}, 261, 258), 258, 256)
    for lookup in (None, 2, 5):
        forwards.clear()
        output = model.generate(
            torch.tensor([prompt]), max_new_tokens=100, prompt_lookup_num_tokens=lookup
        )
        assert output[0].tolist() == [*prompt, *answer, 258]
        assert (len(forwards) == len(answer) + 1) == (lookup is None)


def test_prompt_lookup_gives_the_same_tokens_of_random_scores():
    for seed, prompt in enumerate(random_prompts(2, 10)):
        output = hashed_llama(seed).generate(
            torch.tensor([prompt * 3]), max_new_tokens=15, prompt_lookup_num_tokens=3
        )
        assert output[0, 3 * len(prompt) :].tolist() == greedy(seed, prompt * 3, 15)


def test_sampling_draws_from_the_scores():
    scores = torch.full((SIZE,), -torch.inf)
    scores[[3, 4]] = 0
    model = ScriptedLlama(SIZE, lambda history: scores, EOS, PAD)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        output = model.generate(torch.tensor([[1], [2]]), do_sample=True, max_new_tokens=30)
    assert set(output[:, 1:].flatten().tolist()) == {3, 4}


def test_scores_may_be_a_list():
    model = ScriptedLlama(3, lambda history: [0.0, len(history) < 3, 0.5], 2, 0)
    assert model.generate(torch.tensor([[1]]), max_new_tokens=5).tolist() == [[1, 1, 1, 2]]


def test_scripted_answers():
    next_scores = scripted_answers({(1,): [3, 4], (1, 2): [5]}, 10, 9)
    assert next_scores((1,)).argmax() == 3
    assert next_scores((1, 7)).argmax() == 4
    assert next_scores((1, 3, 4)).argmax() == 9
    assert next_scores((1, 2)).argmax() == 5
    assert next_scores((1, 2, 5)).argmax() == 9
    scores = next_scores((1, 2))
    assert scores.max() == 10
    assert len(set(scores.tolist())) == 10
    assert (scores < 1).sum() == 9
    assert (next_scores((8,)) < 1).all()


@pytest.mark.parametrize("make", TOKENIZERS)
def test_pipelines_of_scripted_models(make, caplog):
    tokenizer = make()
    prompts = ["Question: how many?\n", "Hi"]
    answers = ["Thought: 42.\nObservation: 😀 é", "Final Answer: 日本"]
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    spoken = [tokenizer(answer, add_special_tokens=False).input_ids for answer in answers]
    eos = tokenizer.eos_token_id
    script = dict(zip(map(tuple, ids), spoken, strict=True))
    next_scores = scripted_answers(script, len(tokenizer), eos)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = ScriptedLlama(len(tokenizer), next_scores, eos, tokenizer.pad_token_id)
    pipe = make_pipeline(model, tokenizer, device="cpu")
    for batch_size in (1, 2):
        outputs = pipe(prompts, batch_size=batch_size, max_new_tokens=100, do_sample=False)
        for output, prompt, answer in zip(outputs, prompts, answers, strict=True):
            assert output[0]["generated_text"] == prompt + answer
    assert "not supported" not in caplog.text
