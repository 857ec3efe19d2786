"""The EOS reward as a logits processor."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from langchain_llama_stop.ending import boundaries
from langchain_llama_stop.ending.logits_processor import (
    EosTokenRewardLogitsProcessor,
    InPlaceEosReward,
    edit_rows_,
)
from langchain_llama_stop.ending.reward import EosReward
from tests.fakes import byte_bpe_tokenizer, byte_ids, byte_tokenizer, tiny_llama

TOKENIZER = byte_tokenizer()
VOCAB = len(TOKENIZER)
EOS = TOKENIZER.eos_token_id
PROMPT = byte_ids("Hi. ")


def processor(budget=40, reward=None, **kwargs):
    return EosTokenRewardLogitsProcessor(
        TOKENIZER, max_new_tokens=budget, prompt_length=len(PROMPT), reward=reward, **kwargs
    )


def rows(*answers):
    return torch.tensor([PROMPT + byte_ids(a) for a in answers])


def random_scores(batch, seed=0):
    return torch.randn(batch, VOCAB, generator=torch.Generator().manual_seed(seed))


END, OPEN = "A cat sat on a mat. It ran away.", "A cat sat on a mat. It ran away "  # 32 tokens
OPEN = "A cat sat on a mat. It ran awayy"


def test_outside_the_zone_the_scores_are_returned_as_they_are():
    scores = random_scores(1)
    assert processor(budget=100)(rows(END), scores) is scores


def test_a_row_that_may_not_end_is_not_touched_and_its_neighbour_is():
    scores = random_scores(2)
    new = processor(budget=60, reward=EosReward(start=0.5, close_sentence=False))(
        rows(OPEN, END), scores
    )
    assert torch.equal(new[0], scores[0])
    assert new[1, EOS] > scores[1, EOS]
    others = torch.arange(VOCAB) != EOS
    assert torch.equal(new[1, others], scores[1, others])


def test_the_scores_given_are_not_changed():
    scores = random_scores(1)
    before = scores.clone()
    new = processor(budget=33)(rows(END), scores)
    assert torch.equal(scores, before) and not torch.equal(new, before)


@pytest.mark.parametrize("budget", [100, 40, 36, 33])
def test_in_place_the_scores_become_the_same(budget):
    scores = random_scores(2)
    scores[1, byte_ids(".")[0]] = 9.0  # near enough to close the open row
    ids = rows(END, OPEN)
    new = processor(budget=budget)(ids, scores)
    lengths = {"max_new_tokens": budget, "prompt_length": len(PROMPT)}
    assert InPlaceEosReward(TOKENIZER, **lengths)(ids, scores) is scores
    assert torch.equal(scores, new)


def test_the_prompt_is_no_end():
    # The prompt ends with a full stop, the answer is empty.
    scores = random_scores(1)
    reward = EosReward(start=0, close_sentence=False)
    assert processor(reward=reward)(torch.tensor([PROMPT]), scores) is scores


@pytest.mark.parametrize("answer", [END, OPEN])
def test_the_last_token_is_eos(answer):
    new = processor(budget=33)(rows(answer), random_scores(1))
    assert new.argmax() == EOS and new.isfinite().all()
    assert (new / 5).softmax(-1)[0, EOS] > 0.999  # at temperature 5 too


def test_one_token_before_the_end_the_sentence_is_closed():
    new = processor(budget=34)(rows(OPEN), random_scores(1))
    assert chr(int(new.argmax())) in ".!?"


def test_minus_infinity_stays():
    scores = random_scores(1)
    scores[0, EOS] = -torch.inf
    assert processor(budget=33)(rows(END), scores)[0, EOS] == -torch.inf


def test_a_shift_of_all_scores_changes_nothing_else():
    scores = random_scores(2)
    ids = rows(END, OPEN)
    new = processor(budget=34)(ids, scores)
    shifted = processor(budget=34)(ids, scores + 7)
    assert torch.allclose(shifted, new + 7, atol=1e-4)


def test_of_several_eos_ids_the_models_favourite_is_raised():
    scores = random_scores(1)
    other = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    scores[0, other] = scores[0, EOS] + 1
    new = processor(budget=33, eos_token_id=[EOS, other])(rows(END), scores)
    assert new.argmax() == other
    assert new[0, EOS] == scores[0, EOS]


@settings(max_examples=150, deadline=None)
@given(
    answers=st.lists(
        st.text(alphabet='ab. \n!?)"`*1é。', min_size=20, max_size=20), min_size=1, max_size=4
    ),
    budget=st.integers(1, 64),
    start=st.floats(0, 1),
)
def test_pure_per_row_and_finite(answers, budget, start):
    tokens = [byte_ids(a)[:20] for a in answers]
    ids = torch.tensor([PROMPT + t for t in tokens])
    scores = random_scores(len(answers))
    p = processor(budget=budget, reward=EosReward(start=start))
    new = p(ids, scores)
    assert torch.equal(new, p(ids, scores))  # no state
    assert new.isfinite().all()
    for i in range(len(answers)):  # no row is touched by its neighbours
        assert torch.equal(p(ids[i : i + 1], scores[i : i + 1])[0], new[i])
    if budget == 21:
        assert (new.argmax(-1) == EOS).all()


@pytest.mark.parametrize("num_beams", [1, 3])
def test_usable_with_plain_generate(num_beams):
    tokenizer = byte_bpe_tokenizer()
    model = tiny_llama(len(tokenizer), eos_token_id=tokenizer.eos_token_id, pad_token_id=0)
    inputs = tokenizer("What can I do?", return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    p = EosTokenRewardLogitsProcessor(tokenizer, max_new_tokens=12, prompt_length=length)
    kwargs = {"max_new_tokens": 12, "do_sample": False, "num_beams": num_beams}
    plain = model.generate(**inputs, **kwargs)[0, length:].tolist()
    ids = model.generate(**inputs, **kwargs, logits_processor=[p])[0, length:].tolist()
    assert plain[-1] != tokenizer.eos_token_id
    assert ids[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("kwargs", "name"),
    [
        ({"max_new_tokens": 0, "prompt_length": 1}, "max_new_tokens"),
        ({"max_new_tokens": 5, "prompt_length": -1}, "prompt_length"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, name):
    with pytest.raises(ValueError, match=f"`{name}` has to be"):
        EosTokenRewardLogitsProcessor(TOKENIZER, **kwargs)


def test_who_ended_the_answer():
    p = processor(budget=33)
    logits = torch.zeros(VOCAB)
    assert p.eos_source(rows(END)[0], logits + torch.eye(VOCAB)[EOS], False) == "model"
    assert p.eos_source(rows(END)[0], logits + torch.eye(VOCAB)[65], False) == "reward"
    assert p.eos_source(rows(OPEN)[0], logits + torch.eye(VOCAB)[65], False) == "forced"
    likely = 9 * torch.eye(VOCAB)[EOS]
    assert p.eos_source(rows(END)[0], likely, True) == "model"
    assert p.eos_source(rows(END)[0], logits, True) == "reward"
    assert processor(budget=99).eos_source(rows(OPEN)[0], logits, True) == "model"  # no zone


TALK = "A cat (grey) sat on a mat. It ran away! Then it rained: e.g. for days. The end came"


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, len(TALK)), st.integers(1, 30)), min_size=1, max_size=6),
    st.integers(0, 9),
)
def test_rows_of_all_lengths_and_budgets_at_once_are_as_each_alone(shapes, seed):
    """What a server's batch needs: each row is another request's."""
    scores = random_scores(len(shapes), seed)
    scores[:, byte_ids(".")[0]] += 3.0  # near terminators, so that closing is tried
    edits, alone = [], []
    for index, (length, more) in enumerate(shapes):
        ids = byte_ids(TALK[:length])
        one = EosTokenRewardLogitsProcessor(
            TOKENIZER, max_new_tokens=length + more, prompt_length=0, eos_token_id=[EOS, 1]
        )
        if one.zone <= length:
            answer = one.answer([])
            answer.grow(ids)
            edits.append(one.row_edit(index, answer))
        alone.append(one(torch.tensor([ids]), scores[index : index + 1])[0])
    assert torch.equal(edit_rows_(scores.clone(), edits), torch.stack(alone))


TEXTS = (END, OPEN, "He (or she) said so. Then 3.", "A list:\n- one\n- two\n", "It is ```code", "")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_what_is_kept_of_a_row_changes_nothing(data):
    """Steps that go on, go back, change rows and prompts give what a new processor gives."""
    kept = processor(budget=34)
    for seed in range(data.draw(st.integers(2, 6))):
        answers = data.draw(st.lists(st.sampled_from(TEXTS), min_size=1, max_size=3))
        length = data.draw(st.integers(0, 33))
        prompt = data.draw(st.sampled_from([PROMPT, PROMPT[::-1]]))
        filler = byte_ids("x") * 34
        ids = torch.tensor([prompt + (byte_ids(text) + filler)[:length] for text in answers])
        scores = random_scores(len(answers), seed)
        assert torch.equal(kept(ids, scores), processor(budget=34)(ids, scores))


def test_a_row_that_has_ended_is_not_judged_again(monkeypatch):
    judged, may_end = [], boundaries.may_end
    monkeypatch.setattr(boundaries, "may_end", lambda *a: judged.append(a) or may_end(*a))
    ours = processor(budget=60, reward=EosReward(start=0.5))
    for padding in range(8):
        ours(torch.tensor([PROMPT + byte_ids(END) + [EOS] * padding]), random_scores(1))
    assert len(judged) == 1
