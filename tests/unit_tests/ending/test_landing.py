"""Landing in hindsight: which end is chosen, and that nothing else is touched."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import LogitsProcessor, PreTrainedTokenizerFast

from langchain_llama_stop.ending import boundaries
from langchain_llama_stop.ending.boundaries import may_end
from langchain_llama_stop.ending.closing_tokens import closing_tokens
from langchain_llama_stop.ending.landing import Landing
from langchain_llama_stop.ending.reward import EosReward
from langchain_llama_stop.engine.config import thinking_ids
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.llms import LlamaStopLLM
from langchain_llama_stop.options import GenerationOptions
from tests.fakes import (
    TOKENIZERS,
    ScriptedLlama,
    byte_ids,
    byte_tokenizer,
    hashed_scores,
    make_pipeline,
    scripted_answers,
)

TOKENIZER = TOKENIZERS["bytes"]
EOS = TOKENIZER.eos_token_id
DOT = byte_ids(".")[0]
PIECES = ["A cat sat. ", "Why? ", " and then", "\n", "é", "(", ")", '"', "```\n", "1. ", "x = 1\n"]
PIECES += ["* one\n", "**", "日本。", "Dr. ", "3.", "| a | b |\n"]


def options(**kwargs):
    return GenerationOptions.parse({"max_new_tokens": 40, **kwargs})


def model(name, answers, lifted=(), seed=None):
    """A pipeline that answers prompts with texts, each token 10 nats over the others.

    `lifted` gives other scores: (text so far, token, nats under the favourite). With a seed the
    others are random, so that every position has gaps of its own.
    """
    tokenizer = TOKENIZERS[name]
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    prompts = {tuple(tokenizer(p)["input_ids"]): t for p, t in answers.items()}
    spoken = {
        p: tokenizer(t, add_special_tokens=False)["input_ids"] if isinstance(t, str) else t
        for p, t in prompts.items()
    }
    noise = hashed_scores(size, seed) if seed is not None else lambda history: torch.zeros(size)

    def next_scores(history):
        scores = 3 * noise(history)
        for prompt, ids in spoken.items():
            position = len(history) - len(prompt)
            if history[: len(prompt)] == prompt and position >= 0:
                token = ids[position] if position < len(ids) else eos
                scores[token] = scores.max() + 10 * (seed is None)
                text = tokenizer.decode(ids[:position])
                for before, other, nats in lifted:
                    if before == text:
                        scores[other] = scores[token] - nats
        return scores

    return make_pipeline(ScriptedLlama(size, next_scores, eos, eos), tokenizer)


def land(text, lifted=(), **kwargs):
    """The answer of a model that would continue with `text`."""
    pipeline = model("bytes", {"go": text}, lifted)
    return generate(pipeline, ["go"], options(**kwargs))[0]


LONG = "The cat sat. The dog ran. Then all of them slept a little"  # ends at 12 and 25


@pytest.mark.parametrize(
    ("lifted", "text"),
    [
        ([], "The cat sat. The dog ran."),  # equal gaps: the reward prefers the later one
        ([("The cat sat.", EOS, 6)], "The cat sat."),
        ([("The cat sat.", EOS, 6.5)], "The cat sat. The dog ran."),  # nearly the same: the later
        ([("The cat sat.", EOS, 8)], "The cat sat. The dog ran."),
        ([("The cat sat.", EOS, 9.5)], "The cat sat. The dog ran."),
    ],
)
def test_the_end_that_costs_least_is_chosen(lifted, text):
    response = land(LONG, lifted, eos_reward={"start": 0.25})
    assert (response.text, response.eos_source) == (text, "reward")
    assert response.token_ids == (*byte_ids(text), EOS)


def test_of_three_ends_the_last_within_the_margin_of_the_cheapest_is_chosen():
    text = "The cat sat. The dog ran. It ate. Then all of them"
    ends = {
        "The cat sat.": 4.0,
        "The cat sat. The dog ran.": 7.5,
        "The cat sat. The dog ran. It ate.": 9,
    }
    chosen = [(end, EOS, gap) for end, gap in ends.items()]
    reward = {"start": 0.25, "strength": 0}
    assert land(text, chosen, eos_reward=reward).text == "The cat sat."
    near = [(end, EOS, gap - 2) for end, _, gap in chosen[1:]]  # 5.5 and 7: the margin is 2
    assert land(text, [chosen[0], *near], eos_reward=reward).text == near[0][0]


def test_an_end_before_the_zone_does_not_count():
    response = land(LONG, [("The cat sat.", EOS, 0.1)], eos_reward={"start": 0.5})
    assert response.text == "The cat sat. The dog ran."


def test_an_answer_that_the_model_ends_inside_the_zone_is_untouched():
    text = "The cat sat. The dog ran. It was so."
    response = land(text, [("The cat sat.", EOS, 0.1)])
    assert (response.text, response.eos_source) == (text, "model")
    before = land(text, [("The cat sat.", EOS, 0.1)], eos_reward={"hindsight": False})
    assert before.text == "The cat sat. The dog ran."  # decided as the text came


def test_a_terminator_is_added_where_the_model_might_have_set_it():
    dot = byte_ids(".")[0]
    going = "The cat sat on the mat and then on the chair and"
    near = [("The cat sat on the mat", dot, 0.5), ("The cat sat on the mat and then", dot, 2.9)]
    assert land(going, near).text == "The cat sat on the mat."
    assert land(going, [(t, d, n + 3) for t, d, n in near]).text == "The cat sat on the mat."
    response = land(going, near, eos_reward={"close_sentence": False})
    assert response.eos_source == "forced" and response.text == going[:39]
    kept = land(going, near, eos_reward={"close_sentence": False, "force_eos": False})
    assert (kept.text, kept.finish_reason, kept.eos_source) == (going[:40], "length", None)


@pytest.mark.parametrize(
    ("text", "landed"),
    [
        ('He said: "It is so (as he thought', 'He said: "It is so (as he thought)".'),
        ("Look:\n```\nx = 1\ny = 22\nzzzzz = 3", "Look:\n```\nx = 1\ny = 22\n```"),
        ('{"names": ["Anna", "Bert', '{"names": ["Anna"]}'),  # its quote is the model's own
        ("See **the whole of it", "See **the whole of it.**"),
    ],
)
def test_without_an_end_what_is_open_is_closed(text, landed):
    response = land(text + " " + "y" * 40, max_new_tokens=len(byte_ids(text)) + 4)
    assert (response.text, response.eos_source) == (landed, "closed")


def test_what_cannot_end_is_ended_by_force():
    response = land("* " * 30)
    assert (response.eos_source, len(response.token_ids)) == ("forced", 40)


def test_min_new_tokens_holds():
    lifted = [("The cat sat.", EOS, 0.1)]
    kwargs = {"eos_reward": {"start": 0.25}, "pipeline_kwargs": {"min_new_tokens": 20}}
    assert land(LONG, lifted, **kwargs).text == "The cat sat. The dog ran."
    kwargs["pipeline_kwargs"] = {"min_new_tokens": 40}
    assert land(LONG, lifted, **kwargs).finish_reason == "length"


def test_a_stop_in_the_zone_goes_before_an_end():
    response = land(LONG, stop=["Then"])
    assert (response.text, response.stop_reason) == ("The cat sat. The dog ran. ", "Then")


def test_a_terminator_that_completes_a_stop_is_not_in_the_answer():
    lifted = [("A cat sat on the mat", byte_ids(".")[0], 1)]
    response = land("A cat sat on the mat and then so on and on", lifted, stop=["mat."])
    assert (response.text, response.stop_reason) == ("A cat sat on the ", "mat.")


def test_a_stream_holds_back_what_may_be_dropped_and_no_more():
    pipeline = model("bytes", {"go": LONG}, [("The cat sat.", EOS, 9.5)])
    opts = options(eos_reward={"start": 0.25})
    chunks = [c.text for c in stream_generate(pipeline, "go", opts)]
    assert chunks == [*"The cat sa", "t.", " The dog ran.", ""]
    opts = options(eos_reward={"start": 0.75})  # before the zone, only what follows a true end
    chunks = [c.text for c in stream_generate(pipeline, "go", opts)]
    assert chunks == [*"The cat sat. The dog ran.", ""]


answers = st.lists(st.sampled_from(PIECES), min_size=1, max_size=14).map("".join)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    text=answers,
    other=answers,
    seed=st.integers(0, 10**6),
    budget=st.integers(1, 60),
    name=st.sampled_from(sorted(TOKENIZERS)),
    stop=st.sampled_from([[], ["."], ["sat. A"], ["\n"], ["。"]]),
    reward=st.sampled_from(
        [{}, {"start": 0}, {"boundary": "line"}, {"close_sentence": False}, {"hindsight": False}]
    ),
)
# The cheapest closing is the model's own "!", after which a word goes on.
@example(text="\n", other="A", seed=1290, budget=32, name="byte_bpe", stop=[], reward={})
def test_landing_on_any_text(text, other, seed, budget, name, stop, reward):
    tokenizer = TOKENIZERS[name]
    pipeline = model(name, {"go": text, "on": other}, seed=seed)
    opts = options(max_new_tokens=budget, eos_reward=reward, stop=stop)
    response = generate(pipeline, ["go"], opts)[0]
    # One behaviour on every path
    chunks = list(stream_generate(pipeline, "go", opts))
    assert "".join(c.text for c in chunks) == response.text
    assert chunks[-1].response == response
    assert generate(pipeline, ["go", "on"], opts)[0] == response
    # Within the budget, ended, and nothing changed that the model ended itself
    assert 1 <= len(response.token_ids) <= budget and response.finish_reason == "stop"
    plain = generate(pipeline, ["go"], opts.updated({"eos_reward": False}))[0]
    if not reward.get("hindsight", True):
        return
    if plain.finish_reason == "stop":
        assert response == plain
        return
    whole = response.token_ids == plain.token_ids  # EOS takes no token of the budget
    assert whole or response.token_ids[-1] == tokenizer.eos_token_id or response.stop_reason
    if response.eos_source in ("reward", "closed") and not response.stop_reason:
        text, boundary = response.text, reward.get("boundary", "sentence")
        following = plain.text[len(text) :] if response.eos_source == "reward" else "\n"
        assert may_end(text, boundary, following if boundary == "sentence" else None) or (
            boundary == "line" and may_end(text, "line", "\n")
        )
    elif response.eos_source == "forced":
        assert response.token_ids[:-1] == plain.token_ids[:-1]


# --- positions are judged late, the cheapest first


def searches(ids, scores, name="bytes", **reward):
    """Ends of one answer: judged at its end, judged at each position, and with `best` passed in."""
    tokenizer = TOKENIZERS[name]
    eos = [tokenizer.eos_token_id]
    kwargs = {"prompt": [], "max_new_tokens": len(ids), "eos_token_ids": eos}
    late, early, with_best = (
        Landing(tokenizer, **kwargs, reward=EosReward(**reward)) for _ in range(3)
    )
    safe = []
    for count in range(late.first, len(ids)):
        row = scores[count : count + 1]
        late.record(ids[:count], row)
        early.record(ids[:count], row)
        with_best.record(ids[:count], row, best=float(row.amax()))
        safe.append(early.safe_tokens(ids[:count]))
    ends = [search.end(ids) or search.force_eos(ids) for search in (late, early, with_best)]
    assert safe == sorted(safe) and (not safe or not safe[-1] or len(ends[0]) > safe[-1])
    return ends


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(st.sampled_from([*PIECES, " (so)", "sat", " on"]), min_size=1).map("".join),
    seed=st.integers(0, 10**6),
    name=st.sampled_from(sorted(TOKENIZERS)),
    strength=st.sampled_from([0.0, 2.0, 9.0]),
    below=st.sampled_from([0, 8, 15]),
    coarse=st.booleans(),
)
def test_judged_late_is_judged_at_once(text, seed, name, strength, below, coarse):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:60]
    scores = 2 * torch.randn(
        len(ids), len(tokenizer), generator=torch.Generator().manual_seed(seed)
    )
    scores = scores.round() if coarse else scores  # positions that cost the same
    scores[:, tokenizer.eos_token_id] -= below
    late, early, with_best = searches(ids, scores, name, strength=strength, start=0)
    assert late == early == with_best


def scores_with(ids, lifted):
    """Each token of `ids` 30 nats over the others, except (position, token, nats under it)."""
    scores = torch.zeros(len(ids), len(TOKENIZER))
    scores[range(len(ids)), ids] = 30
    for position, token, nats in lifted:
        scores[position, token] = 30 - nats
    return scores


@pytest.mark.parametrize(("gap", "landed"), [(20.0, "It is."), (12.0, "It is.")])
def test_no_terminator_is_added_after_a_bracket_if_there_is_an_earlier_end(gap, landed):
    ids = byte_ids("It is. He (and she) went on and")
    position = len("It is. He (and she)")
    near = [(len("It is."), EOS, 15.0), (position, EOS, gap), (position, DOT, 0.5)]
    answers = searches(ids, scores_with(ids, near), start=0)
    assert answers == [[*byte_ids(landed), EOS]] * 3


def test_texts_are_judged_at_the_end_and_few_of_them(monkeypatch):
    ids = byte_ids("It is. " * 8)
    judged = []
    monkeypatch.setattr(boundaries, "may_end", lambda *a: judged.append(a) or may_end(*a))
    landing = Landing(
        TOKENIZER,
        prompt=[],
        max_new_tokens=len(ids),
        eos_token_ids=[EOS],
        reward=EosReward(start=0),
    )
    for count in range(len(ids)):
        landing.record(ids[:count], scores_with(ids, [])[count : count + 1])
    assert not judged
    assert landing.end(ids) == [*ids[:-1], EOS] and len(judged) == 1


def test_an_answer_that_begins_again_is_searched_again():
    landing = Landing(
        TOKENIZER,
        prompt=[],
        max_new_tokens=20,
        eos_token_ids=[EOS],
        reward=EosReward(start=0),
    )
    first, second = byte_ids("It is. And"), byte_ids("He went. But I")
    for ids in (first, second):
        for count in range(1, len(ids)):
            near = [(count, EOS, 0.1)] if ids is first else [(count, EOS, 5.0)]
            landing.record(ids[:count], scores_with(ids, near)[count : count + 1])
    assert landing.end(second) == [*byte_ids("He went."), EOS]
    assert landing.end(second[:5]) is None  # begun again, and cut before its zone


# --- what is forbidden stays forbidden


MAT = [("A cat sat on the mat", DOT, 0.5)]


class Forbid(LogitsProcessor):
    def __init__(self, token):
        self.token = token

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor([self.token]), -torch.inf)


@pytest.mark.parametrize(
    "kwargs",
    [{"pipeline_kwargs": {"suppress_tokens": [DOT]}}, {"logits_processor": [Forbid(DOT)]}],
)
def test_a_forbidden_terminator_is_not_added(kwargs):
    assert land("A cat sat on the mat and went on", MAT, max_new_tokens=30).text[-4:] == "mat."
    response = land("A cat sat on the mat and went on", MAT, max_new_tokens=30, **kwargs)
    assert "." not in response.text and response.eos_source != "reward"


def test_a_forbidden_eos_is_not_added():
    response = land(LONG, logits_processor=[Forbid(EOS)])
    assert (response.finish_reason, response.eos_source) == ("length", None)
    assert len(response.token_ids) == 40 and EOS not in response.token_ids


@pytest.mark.parametrize("own", [{"min_new_tokens": 30}, {"min_length": 32}])
def test_the_least_length_of_the_models_own_config_holds(own):
    pipeline = model("bytes", {"go": LONG})
    pipeline.model.generation_config.update(**own)
    response = generate(pipeline, ["go"], options(eos_reward={"start": 0.25}))[0]
    assert len(response.token_ids) > 30


def test_nothing_is_closed_inside_a_character():
    for budget in range(24, 40):
        pipeline = model("metaspace", {"go": "Look:\n```\nx = 1 " + "日本" * 20})
        response = generate(pipeline, ["go"], options(max_new_tokens=budget))[0]
        assert "\ufffd" not in response.text
        assert response.eos_source == "forced" or may_end(response.text)
        assert "\ufffd" not in land('{"name": "' + "日本語" * 20, max_new_tokens=budget).text


def test_a_stop_id_within_what_closes_the_answer_is_found():
    response = land('He said: "It is so' + "y" * 40, max_new_tokens=24, stop_token_ids=[DOT])
    assert response.stop_reason == [DOT] and "." not in response.text
    assert DOT in response.token_ids and response.eos_source is None


def test_a_vocabulary_without_closers_does_without_them():
    tokenizer = TOKENIZERS["bytes"]
    vocabulary = {c: i for i, c in enumerate("abc .")} | {"</s>": 5}
    small = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=[])), eos_token="</s>"
    )
    tokens = closing_tokens(small)
    assert tokens.terminators == tokens.first == [4] and tokens.ids(")") == []
    assert tokenizer is not small


# --- answers that are cut anyway


@pytest.mark.parametrize(
    ("kwargs", "text", "finish"),
    [
        ({"eos_reward": False}, LONG[:40], "length"),
        ({"eos_reward": False, "on_length": "trim"}, "The cat sat. The dog ran.", "length"),
        ({"eos_reward": False, "on_length": "continue"}, LONG, "stop"),
        ({"eos_reward": False, "on_length": "continue", "max_new_tokens": 10}, LONG[:40], "length"),
        ({"on_length": "continue"}, LONG, "stop"),
        ({"on_length": "continue", "max_new_tokens": 10}, "The cat sat. The dog ran.", "stop"),
        ({"on_length": "trim"}, "The cat sat. The dog ran.", "stop"),
    ],
)
def test_an_answer_over_its_budget_is_kept_trimmed_or_continued(kwargs, text, finish):
    response = land(LONG, **kwargs)
    assert (response.text, response.finish_reason) == (text, finish)


def test_without_any_end_there_is_nothing_to_trim_to():
    assert land("no end in sight", eos_reward=False, on_length="trim", max_new_tokens=5).text == (
        "no en"
    )


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(text=answers, budget=st.integers(1, 60), name=st.sampled_from(sorted(TOKENIZERS)))
def test_trimming_is_the_same_for_a_stream(text, budget, name):
    pipeline = model(name, {"go": text})
    opts = options(max_new_tokens=budget, eos_reward=False, on_length="trim", stop=["sat. A"])
    response = generate(pipeline, ["go"], opts)[0]
    chunks = list(stream_generate(pipeline, "go", opts))
    assert "".join(c.text for c in chunks) == response.text
    assert chunks[-1].response == response
    if response.finish_reason == "length":
        plain = generate(pipeline, ["go"], opts.updated({"on_length": "keep"}))[0].text
        assert plain.startswith(response.text)
        following = plain[len(response.text) :]
        assert may_end(response.text, following=following) or response.text == plain


# --- thinking


def thinking(answer):
    """A pipeline whose model has tokens for thinking, and answers "go"; "<" and ">" stand for them.

    Returns:
        The pipeline, and the ids of both tokens.
    """
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    eos, size = tokenizer.eos_token_id, len(tokenizer)
    begin, end = thinking_ids(tokenizer)
    table = {"<": begin, ">": end}
    ids = [i for c in answer for i in ([table[c]] if c in table else byte_ids(c))]
    scores = scripted_answers({tuple(byte_ids("go")): ids}, size, eos)
    return make_pipeline(ScriptedLlama(size, scores, eos, eos), tokenizer), begin, end


def test_thinking_ends_within_its_own_budget():
    pipeline, begin, end = thinking("<I see that I see that I see that I see")
    opts = options(thinking_tokens=20, max_new_tokens=10, eos_reward=False)
    ids = generate(pipeline, ["go"], opts)[0].token_ids
    assert len(ids) == 30 and ids.index(end) == 19
    opts = options(thinking_tokens=20, max_new_tokens=10)
    ids = generate(pipeline, ["go"], opts)[0].token_ids
    assert ids.index(end) == 19 and ids[-1] == pipeline.tokenizer.eos_token_id


@pytest.mark.parametrize("answer", ["I do not think. I say.", "<I see.>So it is. Yes."])
def test_who_does_not_think_or_has_thought_is_not_touched(answer):
    pipeline, _, _ = thinking(answer)
    plain = generate(pipeline, ["go"], options(eos_reward=False))[0]
    opts = options(eos_reward=False, thinking_tokens=12, max_new_tokens=28)
    assert generate(pipeline, ["go"], opts)[0] == plain
    assert plain.finish_reason == "stop"


def test_an_answer_is_not_ended_within_the_thinking():
    spoken = "<I see it. I think so. I go on and on>The answer is this one. And that is all there"
    pipeline, _, end = thinking(spoken)
    for kwargs in ({}, {"eos_reward": False, "on_length": "trim"}):
        opts = options(thinking_tokens=45, max_new_tokens=30, **kwargs)
        response = generate(pipeline, ["go"], opts)[0]
        assert response.text.endswith("</think>The answer is this one.")
        assert end in response.token_ids
        chunks = list(stream_generate(pipeline, "go", opts))
        assert "".join(c.text for c in chunks) == response.text


@pytest.mark.parametrize("spoken", ["No thinking here. " * 9, "<Hm.>" + "No more of it. " * 9])
def test_what_is_not_thought_is_no_budget_of_the_answer(spoken):
    pipeline, _, _ = thinking(spoken)
    opts = options(thinking_tokens=60, max_new_tokens=10, eos_reward=False)
    response = generate(pipeline, ["go"], opts)[0]
    assert response.finish_reason == "length"
    assert len(response.token_ids) == 10 + 5 * spoken.startswith("<")


def test_rows_that_think_and_rows_that_do_not_share_a_batch():
    pipeline, begin, _ = thinking("<I see.>So it is. Yes, it is so, and it is not otherwise")
    opts = options(thinking_tokens=20, max_new_tokens=30)
    alone = generate(pipeline, ["go"], opts)[0]
    prompts = ["go", pipeline.tokenizer.decode([*byte_ids("go"), begin]), "other"]
    batch = generate(pipeline, prompts, opts)
    assert batch[0] == alone and "</think>So it is" in alone.text
    assert batch == [generate(pipeline, [p], opts)[0] for p in prompts]


def test_thinking_needs_hindsight():
    with pytest.raises(ValueError, match="`thinking_tokens` has to be 0 where `hindsight`"):
        options(thinking_tokens=5, eos_reward={"hindsight": False})


def test_a_model_that_cannot_think_is_refused():
    with pytest.raises(ValueError, match="`thinking_tokens` has to be 0 for this model"):
        LlamaStopLLM(pipeline=model("bytes", {"go": "x"}), thinking_tokens=20)


# --- what follows is known, the budget is used to its last token, fragments are no ends


def landed(text, budget, **kwargs):
    """The answer, as called and as streamed, of a model that goes on with `text`."""
    pipeline = model("bytes", {"go": text})
    opts = options(max_new_tokens=budget, **kwargs)
    response = generate(pipeline, ["go"], opts)[0]
    assert "".join(c.text for c in stream_generate(pipeline, "go", opts)) == response.text
    return response


@pytest.mark.parametrize(
    ("text", "budget", "answer"),
    [
        ("You have 12. You have 13. You have 14 of them.", 34, "You have 12. You have 13."),
        ("10 plus 6 is 16. 10 plus 7 is 17 and so on.", 30, "10 plus 6 is 16."),
        ("We count 89, then 144. Then comes 233 and", 40, "We count 89, then 144."),
        ("The answer is B. Because it is so and so", 38, "The answer is B."),
        ("It is 3.1415 and so on and on. It is 3.14 or", 42, "It is 3.1415 and so on and on."),
        ("Rain fell. The file is b.csv or a.csv in there", 40, "Rain fell."),
    ],
)
def test_no_number_is_cut_and_none_is_left_out(text, budget, answer):
    response = landed(text, budget)
    assert (response.text, response.eos_source) == (answer, "reward")
    trimmed = landed(text, budget, eos_reward=False, on_length="trim")
    assert (trimmed.text, trimmed.finish_reason) == (answer, "length")


@pytest.mark.parametrize(
    "answer",
    [
        "The cat sat. The dog ran far.",
        "Ten and two is 12. Two and ten is 12.",
        "Who knows? It is (so they say) B.",
        'He said "It is so."',
        '{"a": 1}',
        "日本。",
    ],
)
def test_an_answer_that_fills_its_budget_with_a_true_end_stays_whole(answer):
    ids = byte_ids(answer)
    response = landed(answer + " And then it went on", len(ids))
    assert (response.text, response.finish_reason) == (answer, "stop")
    assert (response.eos_source, response.token_ids) == ("reward", tuple(ids))
    longer = landed(answer + " And then it went on", len(ids) + 1)
    assert (longer.text.rstrip(), longer.eos_source) == (answer, "reward")


def test_what_is_open_or_unfinished_at_the_limit_is_not_whole():
    for answer in (
        "It is. He said (no.",
        "It is. <strong>No.",
        "It is. He met Dr.",
        "It is. And 1",
    ):
        response = landed(answer + " And then it went on", len(byte_ids(answer)))
        assert (response.text, response.eos_source) == ("It is.", "reward")


def test_where_eos_is_forbidden_no_answer_is_whole():
    response = land("The cat sat." + "y" * 40, max_new_tokens=12, logits_processor=[Forbid(EOS)])
    assert (response.text, response.finish_reason) == ("The cat sat.", "length")


@pytest.mark.parametrize("gap", [0.1, 1.0, 2.9])
def test_a_true_end_goes_before_a_mark_that_is_put_in(gap):
    text = "The cat sat. It slept on the mat and then on"
    response = land(text, [("The cat sat. It slept on the mat", DOT, gap)], max_new_tokens=42)
    assert (response.text, response.eos_source) == ("The cat sat.", "reward")


def test_a_true_end_a_little_before_the_zone_goes_before_a_closing():
    text = "The cat sat. It slept on the mat and on the bed and on"
    near = [("The cat sat. It slept on the mat", DOT, 0.5)]
    kwargs = {"max_new_tokens": 50, "eos_reward": {"start": 0.5}}  # the zone begins at 25
    assert land(text, near, **kwargs).text == "The cat sat."
    pipeline = model("bytes", {"go": text}, near)
    chunks = [c.text for c in stream_generate(pipeline, "go", options(**kwargs))]
    assert "".join(chunks) == "The cat sat."
    kwargs["eos_reward"]["start"] = 0.6  # at 30: the end is too far before it
    response = land(text, near, **kwargs)
    assert (response.text, response.eos_source) == (
        "The cat sat. It slept on the mat.",
        "closed",
    )


@pytest.mark.parametrize(
    "fragment",
    ["To find 6 times 7, we can", "So", "He went to the", "It is", "In the 144", "Well, a ca"],
)
def test_no_full_stop_is_put_in_where_no_sentence_can_end(fragment):
    text = fragment + {"In the 144": "5 and", "Well, a ca": "t or"}.get(fragment, " and")
    response = land(
        text + " on" * 20,
        [(fragment, DOT, 0.1)],
        max_new_tokens=len(fragment) + 8,
    )
    assert response.text != fragment + "."


@pytest.mark.parametrize("boundary", ["line", "paragraph"])
def test_the_boundary_binds_what_is_put_in(boundary):
    text = "The cat slept on the mat and on the bed\n\nThen it went on and on and on"
    reward = {"boundary": boundary, "start": 0}
    near = [("The cat slept on the mat", DOT, 0.1)]
    response = land(text, near, max_new_tokens=34, eos_reward=reward)
    assert response.eos_source == "forced"
    near.append(("The cat slept on the mat and on the bed", DOT, 0.1))
    response = land(text, near, max_new_tokens=60, eos_reward=reward)
    bed = "The cat slept on the mat and on the bed"
    line = (bed + "\n\n", "reward"), (bed + ".", "closed")  # a line needs no full stop: verse
    assert (response.text, response.eos_source) == line[boundary == "paragraph"]


@pytest.mark.parametrize("boundary", ["line", "paragraph"])
def test_a_block_that_is_closed_is_a_paragraph(boundary):
    for text, end in [("Look:\n```\nx = 1\n", "```"), ('{"names": ["Anna"', "]}")]:
        budget = len(byte_ids(text)) + 6
        response = land(text + "y" * 40, max_new_tokens=budget, eos_reward={"boundary": boundary})
        assert response.eos_source == "closed" and response.text.endswith(end)
