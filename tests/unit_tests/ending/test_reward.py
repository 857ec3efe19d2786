"""The score rule, in numbers."""

import pytest

from langchain_llama_stop.ending.reward import NONE, EosReward, nudge


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start", -0.1),
        ("start", 1.4),
        ("start", "half"),
        ("strength", -1),
        ("strength", float("inf")),
        ("strength", float("nan")),
        ("boundary", "word"),
        ("close_sentence", 1),
        ("force_eos", None),
    ],
)
def test_a_wrong_value_is_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` has to be"):
        EosReward(**{name: value})


@pytest.mark.parametrize(("start", "budget", "zone"), [(0.6, 100, 60), (1, 10, 9), (0, 5, 0)])
def test_the_zone_begins_at_its_share_and_holds_the_last_token(start, budget, zone):
    assert EosReward(start=start).zone(budget) == zone


def test_outside_the_zone_nothing_is_done():
    assert nudge(EosReward(start=0.5), 49, 100, may_end=True) is NONE


def test_inside_the_zone_only_a_possible_end_is_rewarded():
    reward = EosReward(start=0.5, strength=4)
    assert nudge(reward, 60, 100, may_end=False) is NONE
    assert nudge(reward, 75, 100, may_end=True).eos == pytest.approx(2)


def test_the_reward_grows_with_the_budget_used():
    reward = EosReward(start=0.5)
    eos = [nudge(reward, n, 100, may_end=True).eos for n in range(50, 99)]
    assert eos == sorted(eos) and eos[0] == 0 < eos[-1]


def test_the_end_is_decided_when_the_next_sentence_may_not_fit():
    reward = EosReward(start=0.5)
    assert nudge(reward, 80, 100, may_end=True, sentence_tokens=12).decided
    assert not nudge(reward, 80, 100, may_end=True, sentence_tokens=11).decided


def test_an_open_sentence_is_helped_the_more_the_nearer_the_limit_is():
    close = [nudge(EosReward(), n, 100, may_end=False).close for n in range(76, 99)]
    assert close == sorted(close) and 2 <= close[0] < close[-1] <= 3
    assert nudge(EosReward(), 75, 100, may_end=False) is NONE
    assert nudge(EosReward(close_sentence=False), 98, 100, may_end=False) is NONE


def test_the_last_token_is_eos():
    assert nudge(EosReward(), 99, 100, may_end=True).decided
    assert not nudge(EosReward(), 99, 100, may_end=True).forced
    assert nudge(EosReward(), 99, 100, may_end=False).forced
    assert not nudge(EosReward(force_eos=False), 99, 100, may_end=False).decided


@pytest.mark.parametrize(("budget", "zone"), [(5, 0), (32, 12), (64, 26), (128, 80), (1000, 952)])
def test_by_default_the_zone_holds_a_sentence_or_two(budget, zone):
    assert EosReward().zone(budget) == zone
