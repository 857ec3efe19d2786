"""The logits processor gives the scores of the transformers one, by both of vLLM's interfaces."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from langchain_llama_stop import EosReward, EosTokenRewardLogitsProcessor
from langchain_llama_stop.vllm import EosRewardLogitsProcessor


def params(budget, **extra):
    return SamplingParams(temperature=0, max_tokens=budget, extra_args=extra or None)


def config(folder):
    model = SimpleNamespace(tokenizer=folder, tokenizer_revision=None, trust_remote_code=False)
    model.try_get_generation_config = lambda: {"eos_token_id": [2, 7]}
    return SimpleNamespace(model_config=model)


def rewarded(budget, eos=2, **extra):
    request = params(budget, eos_reward=1, **extra)
    request.update_from_generation_config({}, eos)
    return request


TEXT = "The lamp of a lighthouse turns all night. It warns ships of rocks. They keep away."


@pytest.fixture
def states(tokenizer):
    """The beginnings of an answer, each with random scores."""
    ids = tokenizer(TEXT)["input_ids"]
    torch.manual_seed(0)
    return [(ids[:n], torch.randn(len(tokenizer))) for n in range(1, len(ids) + 1)]


def expected(tokenizer, ids, scores, budget):
    processor = EosTokenRewardLogitsProcessor(
        tokenizer,
        max_new_tokens=budget,
        prompt_length=0,
        eos_token_id=2,
        reward=EosReward(hindsight=False),
    )
    return processor(torch.tensor([ids]), scores[None])[0]


def test_v1_gives_the_scores_of_the_transformers_processor(tokenizer, folder, states):
    budget = len(states) + 1
    for ids, scores in states:
        processor = EosRewardLogitsProcessor(config(folder), torch.device("cpu"), False)
        output = []
        processor.update_state(
            BatchUpdate(3, [], [(0, params(9), [5], [7]), (2, rewarded(budget), [5], output)], [])
        )
        output += ids  # as vLLM does
        logits = torch.stack([scores, scores, scores])
        found = processor.apply(logits.clone())
        assert torch.equal(found[:2], logits[:2])
        assert torch.equal(found[2], expected(tokenizer, ids, scores, budget))


def test_v1_lifts_rows_of_all_lengths_at_once(tokenizer, folder, states):
    """Each row gets what it would get alone."""
    processor = EosRewardLogitsProcessor(config(folder), torch.device("cpu"), False)
    budgets = [len(states) + 1 - n % 3 for n in range(len(states))]
    added = [
        (slot, rewarded(budget), None, ids)
        for slot, (budget, (ids, _)) in enumerate(zip(budgets, states, strict=True))
    ]
    processor.update_state(BatchUpdate(len(states), [], added, []))
    logits = torch.stack([scores for _, scores in states])
    found = processor.apply(logits.clone())
    for row, budget, (ids, scores) in zip(found, budgets, states, strict=True):
        inside = len(ids) < budget
        assert torch.equal(row, expected(tokenizer, ids, scores, budget) if inside else scores)
    assert (found != logits).any(dim=1).sum() > 3


def test_v1_follows_moves(tokenizer, folder, states):
    ids, scores = states[-1]
    processor = EosRewardLogitsProcessor(config(folder), torch.device("cpu"), False)
    added = [(0, rewarded(len(ids) + 1), None, ids), (1, params(5), None, [3])]
    processor.update_state(BatchUpdate(2, [], added, []))
    lifted = expected(tokenizer, ids, scores, len(ids) + 1)
    assert not torch.equal(lifted, scores)
    for update, slot in (
        (None, 0),
        (BatchUpdate(2, [], [], [(0, 1, MoveDirectionality.SWAP)]), 1),
        (BatchUpdate(1, [0], [], [(1, 0, MoveDirectionality.UNIDIRECTIONAL)]), 0),
        (BatchUpdate(1, [], [(0, params(5), None, [3])], []), None),
    ):
        processor.update_state(update)
        found = processor.apply(torch.stack([scores, scores]))
        for row in range(2):
            assert torch.equal(found[row], lifted if row == slot else scores)


def test_v2_reads_the_runners_buffers(tokenizer, folder, states):
    """Slots in another order than rows, prompts before the answers, and draft tokens."""
    budget, prompt = len(states) + 1, [11, 12, 13]
    tokens = torch.zeros(4, 200, dtype=torch.int32)
    total = torch.zeros(4, dtype=torch.int32)
    lengths = np.zeros(4, dtype=np.int32)
    buffers = SimpleNamespace(
        all_token_ids=SimpleNamespace(gpu=tokens),
        total_len=SimpleNamespace(gpu=total),
        prompt_len=SimpleNamespace(np=lengths),
    )
    processor = EosRewardLogitsProcessor(config(folder), buffers)
    assert processor.add_request(3, rewarded(budget)) and not processor.add_request(1, params(9))
    lengths[[1, 3]] = len(prompt)
    whole = states[-1][0]
    for drafts in (0, 2):
        for ids, scores in states[: len(states) - drafts]:
            tokens[3, : len(prompt) + len(ids)] = torch.tensor([*prompt, *ids])
            total[3] = total[1] = len(prompt) + len(ids)
            rows = [1, *[3] * (1 + drafts)]
            begin = len(prompt) + len(ids) - 1
            proposed = [ids[-1], *whole[len(ids) : len(ids) + drafts]]
            context = SimpleNamespace(
                expanded_idx_mapping=torch.tensor(rows),
                idx_mapping_np=np.array([1, 3]),
                seq_lens_upper_bound_np=np.array([begin + 1, begin + 1 + drafts]),
                input_ids=torch.tensor([7, *proposed]),
                pos=torch.tensor([begin, *range(begin, begin + 1 + drafts)]),
            )
            logits = torch.stack([scores] * len(rows))
            found = processor.apply(logits.clone(), context)
            assert torch.equal(found[0], scores)
            for offset in range(1 + drafts):
                seen = whole[: len(ids) + offset]
                right = expected(tokenizer, seen, scores, budget)
                assert torch.equal(found[1 + offset], right), (len(ids), offset)
    processor.add_request(3, params(9))  # another request takes the slot
    assert torch.equal(processor.apply(logits.clone(), context), logits)


def test_eos_is_what_the_model_ends_by(tokenizer, folder):
    """Not the request's own stop ids, and none where it ignores EOS."""
    processor = EosRewardLogitsProcessor(config(folder), torch.device("cpu"), False)
    request = params(2, eos_reward=1)
    request.stop_token_ids = [30]
    request.update_from_generation_config({"eos_token_id": [2, 7]}, 2)
    request._all_stop_token_ids.add(30)
    processor.update_state(BatchUpdate(1, [], [(0, request, None, [11])], []))
    scores = torch.zeros(1, len(tokenizer))
    scores[0, [2, 7, 30]] = torch.tensor([1.0, 3.0, 9.0])
    assert processor.apply(scores).argmax() == 7  # the last token has to be EOS
    assert processor.add_request(1, request)
    ignoring = params(9, eos_reward=1)
    ignoring.ignore_eos = True
    ignoring.update_from_generation_config({}, 2)
    assert not processor.add_request(2, ignoring)


def test_a_bad_option_is_refused():
    with pytest.raises(ValueError, match="has no option 'eos_reward_strngth'. Known: eos_reward"):
        EosRewardLogitsProcessor.validate_params(params(9, eos_reward_strngth=2))
