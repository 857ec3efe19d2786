"""The checks of `diagnose`: each is one function that looks at a case and yields findings.

To add a finding, write one function with `@check` here. It may ask the model too
(`case.eos_scores`); nothing else has to be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from langchain_llama_stop.chat.control_tokens import control_tokens
from langchain_llama_stop.diagnosis.case import Case
from langchain_llama_stop.diagnosis.eos_scores import REFERENCES, exchange_ids
from langchain_llama_stop.engine.config import context_window, token_budget
from langchain_llama_stop.options import DEFAULT_MAX_NEW_TOKENS


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a model that affects how its answers end.

    Attributes:
        severity: "error": answers do not end, or end wrongly. "warning": the same, under some
            conditions. "info": nothing is wrong.
        code: A short name, for programs.
        message: What was seen.
        why: Why it matters.
        fix: The line that fixes it; "" if there is nothing to fix.
    """

    severity: Literal["error", "warning", "info"]
    code: str
    message: str
    why: str
    fix: str


Check = Callable[[Case], Iterator[Finding]]

CHECKS: list[Check] = []
"""All checks, in the order in which they run."""

LIKELY = 0.02
"""From this probability on, EOS is among the tokens that a model may well choose next.

Chosen with the figures of `llama-stop diagnose demo`: 0.055 at the ends of answers, which greedy
decoding then ends late, and under 1e-10 in mid-sentence.
"""

BANNED = -10.0
"""A `sequence_bias` (nats) that counts as a ban: chosen, since it divides the odds by 22,000."""


def check(function: Check) -> Check:
    """Registers a check: `diagnose` runs it after those above it in this file."""
    CHECKS.append(function)
    return function


@check
def no_chat_template(case: Case) -> Iterator[Finding]:
    """The tokenizer has no chat template."""
    if not case.template:
        yield Finding(
            "warning",
            "no-chat-template",
            "The tokenizer has no chat template: this is a base model, or its template was lost.",
            "A base model continues texts and has seldom seen an answer end; a chat model that "
            "does not see the control tokens of its template does not know that it should answer.",
            "load_pipeline('…-Instruct')  # or: pipeline.tokenizer.chat_template = …; finetune(…)",
        )


@check
def broken_template(case: Case) -> Iterator[Finding]:
    """The chat template cannot render an answer, or does not end it."""
    if case.template and case.template_error:
        yield Finding(
            "error",
            "template-broken",
            f"The chat template cannot render a question and an answer: {case.template_error}.",
            "Every chat fails before the model runs.",
            "pipeline.tokenizer.chat_template = …  # the model's own, from its page on the hub",
        )
    elif case.template and case.turn_end is None:
        yield Finding(
            "warning",
            "template-without-eos",
            "The chat template puts no token after an answer that could end it.",
            "In a conversation the model reads answers without an end, and a fine-tuning on such "
            "texts teaches it none.",
            "pipeline.tokenizer.chat_template = …  # with {{ eos_token }} after an answer",
        )


@check
def no_eos(case: Case) -> Iterator[Finding]:
    """There is no EOS token, or the model cannot choose it."""
    if not case.eos:
        yield Finding(
            "error",
            "no-eos",
            "Neither the generation config nor the tokenizer names an EOS token.",
            "No token ends an answer: each one runs into its limit.",
            "pipeline.model.generation_config.eos_token_id = …",
        )
    inside = [i for i in [*case.eos, case.tokenizer.eos_token_id] if i in range(case.vocabulary)]
    for token_id in case.eos:
        if token_id not in range(case.vocabulary):
            yield Finding(
                "error",
                "eos-outside-vocabulary",
                f"The EOS id {token_id} is outside of the vocabulary of {case.vocabulary} tokens.",
                "The model can never choose it.",
                case.eos_line(list(dict.fromkeys(inside))),
            )


@check
def turn_end_is_not_eos(case: Case) -> Iterator[Finding]:
    """The template ends answers with another token than EOS."""
    if case.turn_end is None or not case.eos:
        return
    name = case.token_text(case.turn_end)
    if case.turn_end not in case.eos:
        yield Finding(
            "error",
            "turn-end-not-eos",
            f"The chat template ends an answer with {name}, which is not among the EOS ids "
            f"{case.eos}.",
            "The model ends its answer with this token, but generation continues: it talks to "
            "itself.",
            case.eos_line([*case.eos, case.turn_end]),
        )
    elif case.turn_end != case.tokenizer.eos_token_id:
        yield Finding(
            "info" if case.tokenizer.eos_token_id in case.eos else "warning",
            "turn-end-not-tokenizer-eos",
            f"The chat template ends an answer with {name}, but the tokenizer's EOS is "
            f"{case.tokenizer.eos_token!r}.",
            "Whatever takes EOS from the tokenizer (training data, other servers) ends answers "
            "with another token than the one the model has learned.",
            "pipeline.tokenizer.eos_token = "
            f"{case.tokenizer.convert_ids_to_tokens(case.turn_end)!r}",
        )


@check
def eos_is_suppressed(case: Case) -> Iterator[Finding]:
    """A generation setting forbids EOS."""
    biases = case.lookup("sequence_bias") or {}
    biases = biases.items() if isinstance(biases, dict) else biases
    banned = {
        "suppress_tokens": list(case.lookup("suppress_tokens") or ()),
        "bad_words_ids": [w[0] for w in case.lookup("bad_words_ids") or () if len(w) == 1],
        "sequence_bias": [ids[0] for ids, bias in biases if len(ids) == 1 and bias <= BANNED],
    }
    for name, ids in banned.items():
        for token_id in case.eos:
            if token_id in ids:
                yield Finding(
                    "error",
                    "eos-suppressed",
                    f"`{name}` holds the EOS token {case.token_text(token_id)}.",
                    "The model may never end an answer.",
                    case.unset_line(name),
                )


@check
def refused_settings(case: Case) -> Iterator[Finding]:
    """The pipeline or the model has settings that LlamaStopLLM and ChatLlamaStop refuse."""
    for refusal in case.refusals:
        yield Finding(
            "error",
            "setting-refused",
            f"{refusal.problem}.",
            "LlamaStopLLM and ChatLlamaStop refuse to answer with it: they do not do what it asks.",
            refusal.fix,
        )


@check
def empty_eos(case: Case) -> Iterator[Finding]:
    """The generation config names no EOS token, by an empty list."""
    settings = case.pipeline.model.generation_config
    if settings.eos_token_id == [] and case.eos:
        yield Finding(
            "warning",
            "eos-empty",
            "`eos_token_id` of the generation config is an empty list.",
            "`generate` of transformers fails with it, or ends no answer. (LlamaStopLLM and "
            "ChatLlamaStop take the EOS token of the tokenizer.)",
            case.eos_line(case.eos),
        )


@check
def right_padding(case: Case) -> Iterator[Finding]:
    """The tokenizer pads on the right."""
    if case.tokenizer.padding_side != "left":
        yield Finding(
            "warning",
            "right-padding",
            f"The tokenizer pads on the {case.tokenizer.padding_side}.",
            "In a batch the shorter prompts end with padding, and after padding a model seldom "
            "answers and ends well. (LlamaStopLLM and ChatLlamaStop pad on the left themselves.)",
            'pipeline.tokenizer.padding_side = "left"',
        )


@check
def token_limits(case: Case) -> Iterator[Finding]:
    """EOS is forbidden for the whole budget, or the budget exceeds the context window."""
    length = len(case.prompt_ids)
    window = context_window(case.pipeline.model)
    max_new_tokens = case.options.max_new_tokens or case.lookup("max_new_tokens")
    try:
        tokens = max_new_tokens or token_budget(case.pipeline, case.options, length)
    except ValueError:  # the prompt fills the window
        tokens = DEFAULT_MAX_NEW_TOKENS
    minima = {"min_new_tokens": case.lookup("min_new_tokens") or 0}
    minima["min_length"] = (case.lookup("min_length") or 0) - length
    for name, minimum in minima.items():
        if minimum >= tokens:
            yield Finding(
                "error",
                "min-new-tokens",
                f"`{name}` is {case.lookup(name)}, and `max_new_tokens` {tokens}.",
                "EOS is forbidden until the budget is used up: every answer is cut.",
                case.unset_line(name),
            )
            break
    if window and length + tokens > window:
        yield Finding(
            "warning" if length < window else "error",
            "over-context",
            f"A prompt of {length} tokens and a budget of {tokens} exceed the context window of "
            f"{window}.",
            "The answer is cut at the window, or loses its thread beyond it.",
            f"max_new_tokens={window - length}"
            if length < window
            else "a shorter prompt: fewer documents, or only the last turns of the conversation",
        )


@check
def repetition_penalty(case: Case) -> Iterator[Finding]:
    """A repetition penalty makes EOS less likely."""
    penalty = case.options.repetition_penalty or case.lookup("repetition_penalty")
    repeated = [token_id for token_id in case.eos if token_id in case.prompt_ids]
    if penalty and penalty > 1 and repeated:
        yield Finding(
            "warning",
            "repetition-penalty",
            f"`repetition_penalty` is {penalty}, and the prompt already contains the EOS token "
            f"{case.token_text(repeated[0])}.",
            "It counts as repeated and is made less likely at every step.",
            "repetition_penalty=1.0",
        )


@check
def prompt_format(case: Case) -> Iterator[Finding]:
    """The prompt begins with two BOS tokens, or was not made by the chat template."""
    if case.prompt is None:
        return
    tokenizer = case.tokenizer
    bos = tokenizer.bos_token_id
    if bos is not None and case.prompt_ids[:2] == [bos, bos]:
        yield Finding(
            "warning",
            "doubled-bos",
            f"The prompt begins with {tokenizer.bos_token!r}, and the tokenizer puts another "
            "one before it.",
            "No text of the training began with two: the model answers and ends worse.",
            f"prompt.removeprefix({tokenizer.bos_token!r})",
        )
    controls = control_tokens(tokenizer, case.template).findall(case.prompt)
    common = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    if case.template and common.issuperset(controls):
        yield Finding(
            "warning",
            "prompt-without-template",
            "The prompt contains none of the control tokens of the model's chat template.",
            "Without them a chat model continues the text instead of answering it.",
            "ChatLlamaStop(pipeline=pipeline)  # or pipeline.tokenizer.apply_chat_template(…)",
        )


@check
def hidden_stops(case: Case) -> Iterator[Finding]:
    """A stop string contains a special token, which decoding leaves out."""
    special = {t.content: i for i, t in case.tokenizer.added_tokens_decoder.items() if t.special}
    for stop in case.options.stop:
        for token, token_id in special.items():
            if token in stop:
                yield Finding(
                    "warning",
                    "stop-hidden",
                    f"The stop string {stop!r} contains the special token {token}.",
                    "Text that is decoded with `skip_special_tokens` never shows it, so a search "
                    "for the stop in that text misses it. (LlamaStopLLM and ChatLlamaStop find "
                    "it.)",
                    f"stop_token_ids={[[token_id] if stop == token else case.text_ids(stop)]}",
                )


@check
def collator_masks_eos(case: Case) -> Iterator[Finding]:
    """The collator gives no loss to the EOS of an answer."""
    if case.data_collator is None or not case.eos:
        return
    eos = case.turn_end if case.turn_end in case.eos else case.eos[0]
    template = "" if case.template_error else case.template
    ids, begin = exchange_ids(case.tokenizer, template, *REFERENCES[0])
    ids = [*ids, eos]
    row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}
    labels = case.data_collator([row]).get("labels")
    answer = [] if labels is None else [int(label) for label in labels[0]][begin:]
    if all(label < 0 for label in answer):
        raise ValueError(
            "`data_collator` has to give labels to an answer in the model's template, but gives "
            f"none to {case.tokenizer.decode(ids)!r}: does it look for another template?"
        )
    if eos not in answer:
        is_pad = eos == case.tokenizer.pad_token_id
        yield Finding(
            "error",
            "eos-masked",
            f"The collator gives the EOS token {case.token_text(eos)} no loss"
            f"{', because it is the pad token as well' if is_pad else ''}.",
            "A model that is trained with it never learns to end an answer.",
            "finetune(…)  # masks by position; or a pad token of its own, in the collator too",
        )


@check
def scores_of_eos(case: Case) -> Iterator[Finding]:
    """The model itself wants to end in mid-sentence, by another token, or never."""
    scores = case.eos_scores
    if scores is None:
        return
    seen = (
        f"At the ends of {len(case.references)} good answers EOS has the probability "
        f"{scores.end:.2g} and the rank {scores.rank} (medians), in mid-sentence "
        f"{scores.middle:.2g}"
    )
    if scores.middle >= LIKELY:
        yield Finding(
            "error",
            "eos-too-early",
            f"{seen}.",
            "Answers end in mid-sentence.",
            "finetune(…)  # on whole answers; truncated ones teach this",
        )
    elif scores.end >= LIKELY or scores.rank == 1:
        yield Finding(
            "info",
            "eos-learned",
            f"{seen}.",
            "The model knows where an answer may end"
            + (", but mostly has more to say." if scores.end < 0.5 else "."),
            "eos_reward=True (the default), or finetune(…)" if scores.end < 0.5 else "",
        )
    elif scores.other is not None and scores.other_probability >= LIKELY:
        if case.turn_end is None or case.turn_end in case.eos:  # else `turn-end-not-eos` says it
            yield Finding(
                "error",
                "other-token-ends",
                f"{seen}; but {case.token_text(scores.other)} has {scores.other_probability:.2g}.",
                "The model ends its answers with a token that is not configured as EOS.",
                case.eos_line([*case.eos, scores.other]),
            )
    else:
        pad_is_eos = case.tokenizer.pad_token_id in case.eos
        yield Finding(
            "error",
            "eos-never-learned",
            f"{seen}.",
            "The model has not learned to end its answers."
            + (
                " Its pad token is EOS: a training that masks labels by the pad id hides EOS."
                if pad_is_eos
                else ""
            ),
            "finetune(…)  # or eos_reward=True (the default), which ends answers all the same",
        )
