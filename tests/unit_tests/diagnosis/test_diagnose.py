"""Each fault, made in an otherwise healthy model, is found; and nothing else is."""

import pytest
import torch
import transformers
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from langchain_llama_stop import Finding, diagnose
from langchain_llama_stop.diagnosis import checks
from langchain_llama_stop.diagnosis.checks import check
from langchain_llama_stop.diagnosis.eos_scores import REFERENCES
from tests.fakes import (
    TOKENIZERS,
    ScriptedLlama,
    byte_tokenizer,
    make_pipeline,
    metaspace_tokenizer,
)

PROMPT = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def healthy(next_scores=lambda history: torch.zeros(261), padding="left"):
    """A chat model of bytes whose turns and answers end with the EOS token, <|im_end|>."""
    tokenizer = byte_tokenizer()
    tokenizer.eos_token, tokenizer.padding_side = "<|im_end|>", padding
    end = tokenizer.eos_token_id
    model = ScriptedLlama(len(tokenizer), next_scores, end, tokenizer.pad_token_id)
    return make_pipeline(model, tokenizer)


END = healthy().tokenizer.eos_token_id


def config(**settings):
    def change(pipeline):
        pipeline.model.generation_config.update(**settings)

    return change


def tokens(**settings):
    def change(pipeline):
        for name, value in settings.items():
            setattr(pipeline.tokenizer, name, value)

    return change


def add_bos(pipeline):
    tokenizer = pipeline.tokenizer
    plain = type(tokenizer).__call__

    class Adding(type(tokenizer)):
        def __call__(self, text, add_special_tokens=True, **kwargs):
            before = self.bos_token if add_special_tokens else ""
            return plain(self, before + text, add_special_tokens=False, **kwargs)

    tokenizer.__class__ = Adding


def nothing(pipeline):
    pass


def no_eos(pipeline):
    pipeline.model.generation_config.eos_token_id = None
    pipeline.tokenizer.eos_token = None


def both_eos(pipeline):
    pipeline.tokenizer.eos_token = "</s>"
    pipeline.model.generation_config.eos_token_id = [END, 258]


WITHOUT_EOS = byte_tokenizer().chat_template.replace("'<|im_end|>' + ", "")
END_BETWEEN_TURNS = byte_tokenizer().chat_template.replace(
    "'<|im_end|>'", "('' if loop.last else '<|im_end|>')"
)


def next_turn_is_eos(pipeline):
    pipeline.tokenizer.chat_template = WITHOUT_EOS
    start = pipeline.tokenizer.convert_tokens_to_ids("<|im_start|>")
    pipeline.model.generation_config.eos_token_id = [END, start]


def end_between_turns_is_not_eos(pipeline):
    pipeline.tokenizer.chat_template = END_BETWEEN_TURNS
    pipeline.model.generation_config.eos_token_id = [258]


FAULTS = [
    ("no-chat-template", "warning", tokens(chat_template=None), {}),
    ("no-eos", "error", no_eos, {}),
    ("eos-outside-vocabulary", "error", config(eos_token_id=[END, 999]), {}),
    ("turn-end-not-eos", "error", config(eos_token_id=[258]), {}),
    ("turn-end-not-tokenizer-eos", "warning", tokens(eos_token="</s>"), {}),
    ("eos-suppressed", "error", config(suppress_tokens=[1, END]), {}),
    ("eos-suppressed", "error", config(bad_words_ids=[[7, 8], [END]]), {}),
    ("eos-suppressed", "error", nothing, {"pipeline_kwargs": {"suppress_tokens": [END]}}),
    ("setting-refused", "error", config(num_beams=3), {}),
    ("setting-refused", "error", config(dola_layers="high"), {}),
    ("setting-refused", "error", config(penalty_alpha=0.6, top_k=4), {}),
    ("setting-refused", "error", nothing, {"pipeline_kwargs": {"token_healing": True}}),
    ("eos-empty", "warning", config(eos_token_id=[]), {}),
    ("right-padding", "warning", tokens(padding_side="right"), {}),
    ("min-new-tokens", "error", config(min_new_tokens=64), {"max_new_tokens": 64}),
    ("min-new-tokens", "error", config(min_new_tokens=70, max_new_tokens=64), {}),
    ("over-context", "warning", nothing, {"max_new_tokens": 2040}),
    ("over-context", "error", nothing, {"max_new_tokens": 9, "prompt": PROMPT + "a" * 2048}),
    ("over-context", "error", nothing, {"prompt": PROMPT + "a" * 2048}),
    ("over-context", "warning", nothing, {"prompt": PROMPT + "a" * 1900, "max_new_tokens": 200}),
    ("min-new-tokens", "error", config(min_new_tokens=400), {}),
    ("min-new-tokens", "error", config(min_length=400), {}),
    ("eos-suppressed", "error", config(sequence_bias=[[[END], -100.0]]), {}),
    ("template-broken", "error", tokens(chat_template="{{ raise_exception('no') }}"), {}),
    ("template-broken", "error", tokens(chat_template="{% if %}"), {}),
    ("template-without-eos", "warning", tokens(chat_template=WITHOUT_EOS), {}),
    ("turn-end-not-tokenizer-eos", "info", next_turn_is_eos, {}),
    ("turn-end-not-eos", "error", end_between_turns_is_not_eos, {}),
    ("prompt-without-template", "warning", nothing, {"prompt": "<s>Q: Why?\nA:"}),
    ("turn-end-not-tokenizer-eos", "info", both_eos, {}),
    ("repetition-penalty", "warning", config(repetition_penalty=1.2), {"prompt": PROMPT}),
    ("repetition-penalty", "warning", nothing, {"repetition_penalty": 1.1}),
    ("doubled-bos", "warning", add_bos, {"prompt": "<s>" + PROMPT}),
    ("prompt-without-template", "warning", nothing, {"prompt": "Q: Why?\nA:"}),
    ("stop-hidden", "warning", nothing, {"stop": ["a", "<|im_end|>\n"]}),
]


@pytest.mark.parametrize(("code", "severity", "change", "call"), FAULTS)
def test_each_fault_is_found_and_nothing_else(code, severity, change, call):
    pipeline = healthy()
    change(pipeline)
    (finding,) = diagnose(pipeline, **{"references": (), **call})
    assert (finding.code, finding.severity) == (code, severity)
    assert finding.message.endswith(".") and finding.why.endswith((".", ".)")) and finding.fix
    if finding.fix.startswith("pipeline.") and "…" not in finding.fix:
        exec(finding.fix, {"pipeline": pipeline})
        assert diagnose(pipeline, **{"references": (), **call}) == []


@pytest.mark.parametrize(
    "call",
    [
        {},
        {"prompt": PROMPT, "max_new_tokens": 64, "stop": ["\nObservation:", "</s"]},
        {"prompt": "<s>" + PROMPT, "repetition_penalty": 1.0},
        {"pipeline_kwargs": {"min_new_tokens": 63, "bad_words_ids": [[END, 5]]}},
    ],
)
def test_a_healthy_model_shows_nothing(call):
    assert diagnose(healthy(), **{"references": (), "max_new_tokens": 64, **call}) == []


def collate_by_id(rows):
    batch = DataCollatorForLanguageModeling(pad_token_id=END)(rows)
    return {**batch, "labels": batch["labels"].masked_fill(batch["input_ids"] == END, -100)}


def test_a_collator_that_masks_by_the_pad_id():
    pipeline = healthy()
    pipeline.tokenizer.pad_token = "<|im_end|>"
    (finding,) = diagnose(pipeline, references=(), data_collator=collate_by_id)
    assert (finding.code, finding.severity) == ("eos-masked", "error")
    assert "pad token as well" in finding.message
    by_position = DataCollatorForLanguageModeling(pad_token_id=END)
    by_seq2seq = transformers.DataCollatorForSeq2Seq(pipeline.tokenizer)
    for right in (by_position, by_seq2seq, transformers.default_data_collator):
        assert diagnose(pipeline, references=(), data_collator=right) == []

    def looks_for_another_template(rows):
        batch = by_position(rows)
        return {**batch, "labels": batch["labels"] * 0 - 100}

    with pytest.raises(ValueError, match="does it look for another template"):
        diagnose(pipeline, references=(), data_collator=looks_for_another_template)


def scores(at_end, at_middle, end_token=END):
    """A model that wants to end: with these scores over 0 at ends of sentences, and elsewhere."""

    def next_scores(history):
        logits = torch.zeros(261)
        logits[ord("e")] = 5.0
        logits[end_token] = at_end if history[-1] == ord(".") else at_middle
        return logits

    return next_scores


@pytest.mark.parametrize(
    ("how", "code", "severity"),
    [
        (scores(9.0, 0.0), "eos-learned", "info"),
        (scores(2.5, 0.0), "eos-learned", "info"),  # second, but not rare
        (scores(0.0, 0.0), "eos-never-learned", "error"),
        (scores(9.0, 9.0), "eos-too-early", "error"),
        (scores(9.0, 0.0, end_token=258), "other-token-ends", "error"),
    ],
)
def test_the_models_own_scores(how, code, severity):
    (finding,) = diagnose(healthy(how))
    assert (finding.code, finding.severity) == (code, severity)
    assert f"{len(REFERENCES)} good answers" in finding.message


def test_never_learned_and_configured_away_are_told_apart():
    pipeline = healthy(scores(9.0, 0.0))
    pipeline.model.generation_config.eos_token_id = [258]
    assert [f.code for f in diagnose(pipeline)] == ["turn-end-not-eos"]
    pipeline = healthy(scores(0.0, 0.0))
    pipeline.tokenizer.pad_token = "<|im_end|>"
    (finding,) = diagnose(pipeline)
    assert finding.code == "eos-never-learned" and "masks labels by the pad id" in finding.why


def test_llama_2_writes_a_space_before_eos():
    tokenizer = TOKENIZERS["metaspace"]
    eos, space = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("▁")

    def next_scores(history):
        scores = torch.zeros(len(tokenizer))
        scores[eos if history[-1] == space else space] = 9
        return scores

    model = ScriptedLlama(len(tokenizer), next_scores, eos, eos)
    model.name_or_path = "meta-llama/Llama-2-7b-chat-hf"
    for template in (tokenizer.chat_template, None):
        copy = metaspace_tokenizer()
        copy.chat_template = template
        findings = diagnose(make_pipeline(model, copy))
        assert [f.code for f in findings][-1] == "eos-learned"


def test_a_turn_end_that_is_no_special_token_is_configured_away_too():
    pipeline = healthy(lambda history: torch.zeros(262))
    pipeline.tokenizer.add_tokens(["<end>"])
    template = pipeline.tokenizer.chat_template.replace("<|im_end|>", "<end>")
    pipeline.tokenizer.chat_template = template
    assert [f.code for f in diagnose(pipeline, references=())] == ["turn-end-not-eos"]


def test_mid_sentence_is_no_end_of_a_sentence():
    both = [("Why?", "It is so. It is ok.")]
    assert [f.code for f in diagnose(healthy(scores(9.0, 0.0)), references=both)] == ["eos-learned"]
    with pytest.raises(ValueError, match="`references` has to hold questions and answers with a"):
        diagnose(healthy(), references=[("Why?", " ")])


def test_references_of_ones_own_and_a_model_without_template():
    pipeline = healthy(scores(9.0, 0.0))
    pipeline.tokenizer.chat_template = None
    findings = diagnose(pipeline, references=[("Why?", "Because.")])
    assert [f.code for f in findings] == ["no-chat-template", "eos-learned"]
    assert "1 good answers" in findings[1].message


def test_errors_come_first():
    pipeline = healthy()
    pipeline.tokenizer.padding_side = "right"
    pipeline.model.generation_config.suppress_tokens = [END]
    findings = diagnose(pipeline, references=())
    assert [f.severity for f in findings] == ["error", "warning"]
    assert all(isinstance(f, Finding) for f in findings)


def test_what_cannot_be_diagnosed_is_refused():
    with pytest.raises(ValueError, match="Unknown option 'max_tokns'"):
        diagnose(healthy(), max_tokns=3)
    with pytest.raises(ValueError, match="for a model given by its name"):
        diagnose(healthy(), adapter="x")


def test_a_new_finding_is_one_function(monkeypatch):
    monkeypatch.setattr(checks, "CHECKS", [*checks.CHECKS])

    # These lines are also in docs/_snippets/finding.md.
    @check
    def hot_sampling(case):
        """The temperature is so high that EOS is seldom chosen."""
        temperature = case.options.temperature or 0
        if temperature > 1.5:
            message = f"`temperature` is {temperature}."
            why = "At the end of an answer EOS is chosen too seldom."
            yield Finding("warning", "hot-sampling", message, why, "temperature=0.7")

    @check
    def hesitation(case):
        """At the ends of good answers, the model's first choice is another token than EOS."""
        scores = case.eos_scores
        if scores and scores.rank > 1:
            message = f"EOS has the rank {scores.rank} at the ends of good answers."
            why = "Greedy decoding passes these ends."
            yield Finding("warning", "hesitation", message, why, "eos_reward=True")

    def codes(**options):
        return [finding.code for finding in diagnose(healthy(scores(2.5, 0.0)), **options)]

    assert codes() == ["hesitation", "eos-learned"]
    assert codes(temperature=2.0) == ["hot-sampling", "hesitation", "eos-learned"]
    assert codes(temperature=2.0, references=()) == ["hot-sampling"]
