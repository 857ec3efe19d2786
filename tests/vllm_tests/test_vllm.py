"""The EOS reward on a real vLLM engine gives what it gives in process; V2 by made contexts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample.logits_processor import BatchUpdate, MoveDirectionality

from langchain_llama_stop import EosReward, EosTokenRewardLogitsProcessor
from langchain_llama_stop.boundaries import may_end
from langchain_llama_stop.vllm import EosRewardLogitsProcessor, request_reward


def params(budget, **extra):
    return SamplingParams(temperature=0, max_tokens=budget, extra_args=extra or None)


def served(engine, reference, settings):
    requests = [{"prompt_token_ids": ids} for ids in reference["prompts"]]
    return [o.outputs[0] for o in engine.generate(requests, settings, use_tqdm=False)]


@pytest.mark.parametrize("budget", [32, 64])
def test_the_same_tokens_as_in_process(engine, reference, budget):
    theirs = served(engine, reference, params(budget, eos_reward=1))
    ours = reference["answers"][str(budget)]
    same = [a == list(b.token_ids) for a, b in zip(ours, theirs, strict=True)]
    assert sum(same) >= len(same) - 1, same  # float32 kernels of two engines may round a tie apart
    assert all(answer.finish_reason == "stop" for answer in theirs)
    assert sum(may_end(answer.text) for answer in theirs) >= len(theirs) - 1


def test_options_of_one_batch_do_not_mix(engine, reference):
    mixed = [params(32, eos_reward=1), params(48), params(24, eos_reward=1)] * 2
    together = served(engine, reference, mixed)
    for ids, settings, answer in zip(reference["prompts"], mixed, together, strict=True):
        (alone,) = engine.generate([{"prompt_token_ids": ids}], settings, use_tqdm=False)
        assert alone.outputs[0].token_ids == answer.token_ids
        if not settings.extra_args:
            assert len(answer.token_ids) == 48 and answer.finish_reason == "length"


def test_a_bad_option_is_refused(engine):
    for extra, message in (
        ({"eos_reward_strngth": 2}, "has no option 'eos_reward_strngth'. Known: eos_reward, eos"),
        ({"eos_reward": "maybe"}, "`eos_reward` has to be true or false"),
        ({"eos_reward": 1, "eos_reward_start": 1.5}, "`start` has to be between 0 and 1"),
    ):
        with pytest.raises(VLLMValidationError, match=message):
            engine.generate("Hi", params(8, **extra), use_tqdm=False)


def config(folder):
    model = SimpleNamespace(tokenizer=folder, tokenizer_revision=None, trust_remote_code=False)
    return SimpleNamespace(model_config=model)


def asking(budget, eos=2, **extra):
    found = params(budget, eos_reward=1, **extra)
    found.update_from_generation_config({}, eos)
    return found


TEXT = "The lamp of a lighthouse turns all night. It warns ships of rocks. They keep away."


@pytest.fixture
def states(tokenizer):
    """Beginnings of an answer and, for each, random scores: what all implementations are fed."""
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


def test_v1_gives_the_scores_of_the_transformers_processor(tokenizer, reference, states):
    budget = len(states) + 1
    for ids, scores in states:
        processor = EosRewardLogitsProcessor(
            config(reference["folder"]), torch.device("cpu"), False
        )
        output = []
        processor.update_state(
            BatchUpdate(3, [], [(0, params(9), [5], [7]), (2, asking(budget), [5], output)], [])
        )
        output += ids  # the list is live
        logits = torch.stack([scores, scores, scores])
        found = processor.apply(logits.clone())
        assert torch.equal(found[:2], logits[:2])
        assert torch.equal(found[2], expected(tokenizer, ids, scores, budget))


def test_v1_follows_moves(tokenizer, reference, states):
    ids, scores = states[-1]
    processor = EosRewardLogitsProcessor(config(reference["folder"]), torch.device("cpu"), False)
    added = [(0, asking(len(ids) + 1), None, ids), (1, params(5), None, [3])]
    processor.update_state(BatchUpdate(2, [], added, []))
    lifted = expected(tokenizer, ids, scores, len(ids) + 1)
    assert not torch.equal(lifted, scores)
    for update, place in (
        (None, 0),
        (BatchUpdate(2, [], [], [(0, 1, MoveDirectionality.SWAP)]), 1),
        (BatchUpdate(1, [0], [], [(1, 0, MoveDirectionality.UNIDIRECTIONAL)]), 0),
        (BatchUpdate(1, [], [(0, params(5), None, [3])], []), None),
    ):
        processor.update_state(update)
        found = processor.apply(torch.stack([scores, scores]))
        for row in range(2):
            assert torch.equal(found[row], lifted if row == place else scores)


def test_v2_reads_the_runners_buffers(tokenizer, reference, states):
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
    processor = EosRewardLogitsProcessor(config(reference["folder"]), buffers)
    assert processor.add_request(3, asking(budget)) and not processor.add_request(1, params(9))
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
                wanted = expected(tokenizer, seen, scores, budget)
                assert torch.equal(found[1 + offset], wanted), (len(ids), offset)
    processor.add_request(3, params(9))  # the slot has another occupant
    assert torch.equal(processor.apply(logits.clone(), context), logits)


def test_request_reward():
    assert request_reward(None) is None and request_reward({"other": 1}) is None
    assert request_reward({"eos_reward": 0, "eos_reward_strength": 3}) is None
    asked = request_reward({"eos_reward_boundary": "paragraph", "eos_reward_force_eos": "false"})
    assert asked == EosReward(boundary="paragraph", force_eos=False, hindsight=False)
