"""What can be seen of a model without asking it: faults of its settings and its template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from langchain_llama_stop.chat.control_tokens import control_tokens
from langchain_llama_stop.chat.template import chat_ids, own_template, turn_end_ids
from langchain_llama_stop.engine.config import (
    context_window,
    eos_token_ids,
    lookup,
    token_budget,
    vocabulary_size,
)
from langchain_llama_stop.options import DEFAULT_MAX_NEW_TOKENS, GenerationOptions

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a model that bears on how its answers end.

    Attributes:
        severity: "error": answers do not end, or end wrongly. "warning": they do under some
            conditions. "info": how things are.
        code: A name for it, for programs.
        message: What was seen.
        why: Why it matters.
        fix: The line that mends it; "" where there is nothing to mend.
    """

    severity: Severity
    code: str
    message: str
    why: str
    fix: str


@dataclass
class Case:
    """What is looked at: a pipeline, the options of a call, and a prompt if there is one."""

    pipeline: Any
    options: GenerationOptions
    prompt: str | None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.pipeline.tokenizer

    @cached_property
    def template(self) -> str:
        """The chat template; "" if there is none."""
        return own_template(self.tokenizer)

    @cached_property
    def eos(self) -> list[int]:
        """The EOS ids; [] if none is known."""
        try:
            return eos_token_ids(self.pipeline, self.options)
        except ValueError:
            return []

    @cached_property
    def broken(self) -> str:
        """Why the template cannot render a conversation; "" if it can."""
        try:
            turn_end_ids(self.tokenizer, self.template or "{{ messages }}")
        except Exception as error:  # a template raises what it likes
            return " ".join(str(error).split()) or type(error).__name__
        return ""

    @cached_property
    def turn_end(self) -> int | None:
        """The token with which the template ends an answer."""
        usable = self.template and not self.broken
        found = turn_end_ids(self.tokenizer, self.template) if usable else []
        return found[0] if found else None

    @cached_property
    def prompt_ids(self) -> list[int]:
        """The prompt as the model gets it; without one, a question in the template."""
        if self.prompt is not None:
            return list(self.tokenizer(self.prompt)["input_ids"])
        if not self.template or self.broken:
            return []
        question = [{"role": "user", "content": "What is tea?"}]
        return chat_ids(self.tokenizer, question, template=self.template)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model knows."""
        return vocabulary_size(self.pipeline.model)

    def lookup(self, name: str) -> Any:
        """A generation setting as a call would have it."""
        return lookup(self.pipeline, self.options, name)

    def encoded(self, text: str) -> list[int]:
        """A text as ids, special tokens in it as such."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def unset(self, name: str) -> str:
        """The line that takes a generation setting back, where it was made."""
        if name in self.options.pipeline_kwargs:
            return f"no {name!r} in `pipeline_kwargs`"
        if getattr(self.pipeline.model.generation_config, name, None):
            return f"pipeline.model.generation_config.{name} = None"
        return f"no {name!r} in the settings that the pipeline was built with"

    def eos_line(self, ids: Sequence[int]) -> str:
        """The line that sets the EOS ids, where they were set."""
        if "eos_token_id" in self.options.pipeline_kwargs:
            return f"pipeline_kwargs={{'eos_token_id': {list(ids)}}}"
        return f"pipeline.model.generation_config.eos_token_id = {list(ids)}"

    def shown(self, token_id: int) -> str:
        """A token as a person reads it."""
        return f"{self.tokenizer.convert_ids_to_tokens(token_id)} ({token_id})"


def _no_template(case: Case) -> Iterator[Finding]:
    if not case.template:
        yield Finding(
            "warning",
            "no-chat-template",
            "The tokenizer has no chat template: this is a base model, or its template was lost.",
            "A base model continues texts and has seldom seen an answer end; a chat model that "
            "does not see the marks of its template does not know that it is to answer.",
            "load_pipeline('…-Instruct')  # or: pipeline.tokenizer.chat_template = …; finetune(…)",
        )


def _template(case: Case) -> Iterator[Finding]:
    if case.template and case.broken:
        yield Finding(
            "error",
            "template-broken",
            f"The chat template cannot render a question and an answer: {case.broken}.",
            "No chat gets as far as an answer.",
            "pipeline.tokenizer.chat_template = …  # the model's own, from its page on the hub",
        )
    elif case.template and case.turn_end is None:
        yield Finding(
            "warning",
            "template-without-eos",
            "The chat template puts no token behind an answer that could end it.",
            "In a conversation the model reads answers without an end, and a fine-tuning on such "
            "texts teaches it none.",
            "pipeline.tokenizer.chat_template = …  # with {{ eos_token }} behind an answer",
        )


def _no_eos(case: Case) -> Iterator[Finding]:
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


def _turn_end(case: Case) -> Iterator[Finding]:
    if case.turn_end is None or not case.eos:
        return
    name = case.shown(case.turn_end)
    if case.turn_end not in case.eos:
        yield Finding(
            "error",
            "turn-end-not-eos",
            f"The chat template ends an answer with {name}, which is not among the EOS ids "
            f"{case.eos}.",
            "The model ends its answer with this token, and is made to go on: it talks to itself.",
            case.eos_line([*case.eos, case.turn_end]),
        )
    elif case.turn_end != case.tokenizer.eos_token_id:
        yield Finding(
            "info" if case.tokenizer.eos_token_id in case.eos else "warning",
            "turn-end-not-tokenizer-eos",
            f"The chat template ends an answer with {name}, but the tokenizer's EOS is "
            f"{case.tokenizer.eos_token!r}.",
            "What takes EOS from the tokenizer (training data, other servers) ends answers with "
            "another token than the one the model has learned.",
            "pipeline.tokenizer.eos_token = "
            f"{case.tokenizer.convert_ids_to_tokens(case.turn_end)!r}",
        )


def _suppressed(case: Case) -> Iterator[Finding]:
    biases = case.lookup("sequence_bias") or {}
    biases = biases.items() if isinstance(biases, dict) else biases
    banned = {
        "suppress_tokens": list(case.lookup("suppress_tokens") or ()),
        "bad_words_ids": [w[0] for w in case.lookup("bad_words_ids") or () if len(w) == 1],
        "sequence_bias": [ids[0] for ids, bias in biases if len(ids) == 1 and bias <= -10],
    }
    for name, ids in banned.items():
        for token_id in case.eos:
            if token_id in ids:
                yield Finding(
                    "error",
                    "eos-suppressed",
                    f"`{name}` holds the EOS token {case.shown(token_id)}.",
                    "The model may never end an answer.",
                    case.unset(name),
                )


def _padding(case: Case) -> Iterator[Finding]:
    if case.tokenizer.padding_side != "left":
        yield Finding(
            "warning",
            "right-padding",
            f"The tokenizer pads on the {case.tokenizer.padding_side}.",
            "In a batch the shorter prompts end with padding, behind which a model seldom answers "
            "and ends well. (LlamaStopLLM and ChatLlamaStop pad on the left themselves.)",
            'pipeline.tokenizer.padding_side = "left"',
        )


def _budget(case: Case) -> Iterator[Finding]:
    length = len(case.prompt_ids)
    window = context_window(case.pipeline.model)
    asked = case.options.max_new_tokens or case.lookup("max_new_tokens")
    try:
        budget = asked or token_budget(case.pipeline, case.options, length)
    except ValueError:  # no room at all
        budget = DEFAULT_MAX_NEW_TOKENS
    least = {"min_new_tokens": case.lookup("min_new_tokens") or 0}
    least["min_length"] = (case.lookup("min_length") or 0) - length
    for name, tokens in least.items():
        if tokens >= budget:
            yield Finding(
                "error",
                "min-new-tokens",
                f"`{name}` is {case.lookup(name)}, and `max_new_tokens` {budget}.",
                "EOS is forbidden until the budget is used up: every answer is cut.",
                case.unset(name),
            )
            break
    if window and length + budget > window:
        yield Finding(
            "warning" if length < window else "error",
            "over-context",
            f"A prompt of {length} tokens and a budget of {budget} are over the context window of "
            f"{window}.",
            "The answer is cut at the window, or the model loses its thread behind it.",
            f"max_new_tokens={window - length}"
            if length < window
            else "a shorter prompt: fewer documents, or only the last turns of the conversation",
        )


def _repetition(case: Case) -> Iterator[Finding]:
    penalty = case.options.repetition_penalty or case.lookup("repetition_penalty")
    inside = [token_id for token_id in case.eos if token_id in case.prompt_ids]
    if penalty and penalty > 1 and inside:
        yield Finding(
            "warning",
            "repetition-penalty",
            f"`repetition_penalty` is {penalty}, and the prompt holds the EOS token "
            f"{case.shown(inside[0])} already.",
            "It counts as repeated and is made less likely at every step.",
            "repetition_penalty=1.0",
        )


def _prompt(case: Case) -> Iterator[Finding]:
    if case.prompt is None:
        return
    bos = case.tokenizer.bos_token_id
    if bos is not None and case.prompt_ids[:2] == [bos, bos]:
        yield Finding(
            "warning",
            "doubled-bos",
            f"The prompt begins with {case.tokenizer.bos_token!r}, and the tokenizer puts another "
            "one before it.",
            "No text of the training began with two: the model answers and ends worse.",
            f"prompt.removeprefix({case.tokenizer.bos_token!r})",
        )
    tokenizer = case.tokenizer
    marks = control_tokens(tokenizer, case.template).findall(case.prompt)
    common = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token}
    if case.template and common.issuperset(marks):
        yield Finding(
            "warning",
            "prompt-without-template",
            "The prompt holds none of the marks of the model's chat template.",
            "Without them a chat model continues the text instead of answering it.",
            "ChatLlamaStop(pipeline=pipeline)  # or pipeline.tokenizer.apply_chat_template(…)",
        )


def _hidden_stops(case: Case) -> Iterator[Finding]:
    special = {t.content: i for i, t in case.tokenizer.added_tokens_decoder.items() if t.special}
    for stop in case.options.stop:
        for token, token_id in special.items():
            if token in stop:
                yield Finding(
                    "warning",
                    "stop-hidden",
                    f"The stop string {stop!r} holds the special token {token}.",
                    "Text that is decoded with `skip_special_tokens` never shows it: what looks "
                    "for stops there misses it. (LlamaStopLLM and ChatLlamaStop find it.)",
                    f"stop_token_ids={[[token_id] if stop == token else case.encoded(stop)]}",
                )


_CHECKS = (
    *(_no_template, _template, _no_eos, _turn_end, _suppressed),
    *(_padding, _budget, _repetition, _prompt, _hidden_stops),
)


def static_findings(case: Case) -> list[Finding]:
    """Looks at settings and template.

    Args:
        case: What is looked at.

    Returns:
        The findings.
    """
    return [finding for check in _CHECKS for finding in check(case)]
