"""Why does this model not stop? Its settings, its template and its own scores are looked at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from langchain_llama_stop.chat_templates import chat_ids, turn_end_ids
from langchain_llama_stop.eos_probes import REFERENCES, probe
from langchain_llama_stop.gguf_cache import Progress
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.placeholders import control_tokens
from langchain_llama_stop.settings import eos_token_ids, setting

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, TextGenerationPipeline

Severity = Literal["error", "warning", "info"]

LIKELY = 0.02
"""From this probability on, a token is among what a model wants to say next."""


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


def diagnose(
    model: str | os.PathLike[str] | TextGenerationPipeline,
    prompt: str | None = None,
    *,
    adapter: str | os.PathLike[str] | None = None,
    quantization: str | BitsAndBytesConfig | None = None,
    references: Sequence[tuple[str, str]] = REFERENCES,
    data_collator: Callable[[list[dict[str, Any]]], Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Finding]:
    """Looks for what keeps a model from ending its answers.

    Args:
        model: A pipeline, or a model as for `load_pipeline`.
        prompt: A prompt as you send it, to be looked at too.
        adapter: As for `load_pipeline`; only where `model` is no pipeline.
        quantization: As for `load_pipeline`.
        references: Questions and good answers; the model is asked how likely EOS is at the ends of
            these answers and in their midst. () leaves the model's own scores out.
        data_collator: The collator of your fine-tuning, to see whether it hides EOS from the loss.
        progress: As for `load_pipeline`.
        **options: Options of a call (`max_new_tokens`, `stop`, `repetition_penalty`, …) as you
            give them.

    Returns:
        The findings, the most serious first.

    Raises:
        ValueError: If an option is unknown or out of its range, or the model cannot be loaded.
    """
    opts = GenerationOptions.parse(options)
    if isinstance(model, str | os.PathLike):
        pipeline: Any = load_pipeline(model, quantization, adapter, progress=progress)
    elif adapter is not None or quantization is not None:
        raise ValueError("`adapter` and `quantization` are for a model given by its name.")
    else:
        pipeline = model
    case = _Case(pipeline, opts, prompt)
    found = [finding for check in _CHECKS for finding in check(case)]
    if data_collator is not None:
        found += _collator(case, data_collator)
    if references and case.eos and not any(f.code in _NO_SCORES for f in found):
        (progress or (lambda stage: None))("Asking the model where it would end")
        found += _scores(case, references, found)
    order = ("error", "warning", "info")
    return sorted(found, key=lambda finding: order.index(finding.severity))


@dataclass
class _Case:
    """What is looked at."""

    pipeline: Any
    options: GenerationOptions
    prompt: str | None

    @property
    def tokenizer(self) -> Any:
        return self.pipeline.tokenizer

    @cached_property
    def template(self) -> str:
        """The chat template; "" if there is none."""
        template = self.tokenizer.chat_template
        return str((template.get("default") if isinstance(template, dict) else template) or "")

    @cached_property
    def eos(self) -> list[int]:
        """The EOS ids; [] if none is known."""
        try:
            return eos_token_ids(self.pipeline, self.options)
        except ValueError:
            return []

    @cached_property
    def turn_end(self) -> int | None:
        """The special token with which the template ends an answer."""
        found = turn_end_ids(self.tokenizer, self.template) if self.template else []
        return found[0] if found else None

    @cached_property
    def prompt_ids(self) -> list[int]:
        """The prompt as the model gets it; without one, a question in the template."""
        if self.prompt is not None:
            return list(self.tokenizer(self.prompt)["input_ids"])
        if not self.template:
            return []
        question = [{"role": "user", "content": "What is tea?"}]
        return chat_ids(self.tokenizer, question, template=self.template)

    @property
    def vocabulary(self) -> int:
        return int(self.pipeline.model.get_input_embeddings().num_embeddings)

    def setting(self, name: str) -> Any:
        """A generation setting as a call would have it."""
        return setting(self.pipeline, self.options, name)

    def shown(self, token_id: int) -> str:
        """A token as a person reads it."""
        return f"{self.tokenizer.convert_ids_to_tokens(token_id)} ({token_id})"


def _no_template(case: _Case) -> Iterator[Finding]:
    if not case.template:
        yield Finding(
            "warning",
            "no-chat-template",
            "The tokenizer has no chat template: this is a base model, or its template was lost.",
            "A base model continues texts and has seldom seen an answer end; a chat model that "
            "does not see the marks of its template does not know that it is to answer.",
            "load_pipeline('…-Instruct')  # or: pipeline.tokenizer.chat_template = …; finetune(…)",
        )


def _no_eos(case: _Case) -> Iterator[Finding]:
    if not case.eos:
        yield Finding(
            "error",
            "no-eos",
            "Neither the generation config nor the tokenizer names an EOS token.",
            "No token ends an answer: each one runs into its limit.",
            "pipeline.model.generation_config.eos_token_id = …",
        )
    for token_id in case.eos:
        if not 0 <= token_id < case.vocabulary:
            yield Finding(
                "error",
                "eos-outside-vocabulary",
                f"The EOS id {token_id} is outside of the vocabulary of {case.vocabulary} tokens.",
                "The model can never choose it.",
                f"pipeline.model.generation_config.eos_token_id = {case.tokenizer.eos_token_id}",
            )


def _turn_end(case: _Case) -> Iterator[Finding]:
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
            f"pipeline.model.generation_config.eos_token_id = {[*case.eos, case.turn_end]}",
        )
    elif case.turn_end != case.tokenizer.eos_token_id:
        yield Finding(
            "warning",
            "turn-end-not-tokenizer-eos",
            f"The chat template ends an answer with {name}, but the tokenizer's EOS is "
            f"{case.tokenizer.eos_token!r}.",
            "What takes EOS from the tokenizer (training data, other servers) ends answers with "
            "another token than the one the model has learned.",
            "pipeline.tokenizer.eos_token = "
            f"{case.tokenizer.convert_ids_to_tokens(case.turn_end)!r}",
        )


def _suppressed(case: _Case) -> Iterator[Finding]:
    banned = {
        "suppress_tokens": list(case.setting("suppress_tokens") or ()),
        "bad_words_ids": [w[0] for w in case.setting("bad_words_ids") or () if len(w) == 1],
    }
    for name, ids in banned.items():
        for token_id in case.eos:
            if token_id in ids:
                yield Finding(
                    "error",
                    "eos-suppressed",
                    f"`{name}` holds the EOS token {case.shown(token_id)}.",
                    "The model may never end an answer.",
                    f"pipeline.model.generation_config.{name} = None",
                )


def _padding(case: _Case) -> Iterator[Finding]:
    if case.tokenizer.padding_side != "left":
        yield Finding(
            "warning",
            "right-padding",
            f"The tokenizer pads on the {case.tokenizer.padding_side}.",
            "In a batch the shorter prompts end with padding, behind which a model seldom answers "
            "and ends well. (LlamaStopLLM and ChatLlamaStop pad on the left themselves.)",
            'pipeline.tokenizer.padding_side = "left"',
        )


def _budget(case: _Case) -> Iterator[Finding]:
    budget = case.options.max_new_tokens or case.setting("max_new_tokens")
    least = case.setting("min_new_tokens")
    if budget and least and least >= budget:
        yield Finding(
            "error",
            "min-new-tokens",
            f"`min_new_tokens` is {least}, and `max_new_tokens` {budget}.",
            "EOS is forbidden until the budget is used up: every answer is cut.",
            "pipeline.model.generation_config.min_new_tokens = None",
        )
    config = case.pipeline.model.config.get_text_config()
    window, length = getattr(config, "max_position_embeddings", None), len(case.prompt_ids)
    if budget and window and length + budget > window:
        yield Finding(
            "warning",
            "over-context",
            f"A prompt of {length} tokens and a budget of {budget} are over the context window of "
            f"{window}.",
            "The answer is cut at the window, or the model loses its thread behind it.",
            f"max_new_tokens={max(1, window - length)}"
            if length < window
            else "a shorter prompt: fewer documents, or only the last turns of the conversation",
        )


def _repetition(case: _Case) -> Iterator[Finding]:
    penalty = case.options.repetition_penalty or case.setting("repetition_penalty")
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


def _prompt(case: _Case) -> Iterator[Finding]:
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
    if case.template and not control_tokens(case.tokenizer, case.template).search(case.prompt):
        yield Finding(
            "warning",
            "prompt-without-template",
            "The prompt holds none of the marks of the model's chat template.",
            "Without them a chat model continues the text instead of answering it.",
            "ChatLlamaStop(pipeline=pipeline)  # or pipeline.tokenizer.apply_chat_template(…)",
        )


def _hidden_stops(case: _Case) -> Iterator[Finding]:
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
                    f"stop_token_ids=[{token_id}]",
                )


_CHECKS = (
    *(_no_template, _no_eos, _turn_end, _suppressed, _padding, _budget, _repetition, _prompt),
    _hidden_stops,
)
_NO_SCORES = ("no-eos", "eos-outside-vocabulary")


def _collator(
    case: _Case, data_collator: Callable[[list[dict[str, Any]]], Any]
) -> Iterator[Finding]:
    """Feeds the collator a text that ends by EOS, and looks at its label."""
    for token_id in case.eos[:1]:
        ids = [*case.tokenizer("Tea is a drink.", add_special_tokens=False)["input_ids"], token_id]
        batch = data_collator([{"input_ids": ids, "attention_mask": [1] * len(ids)}])
        labels = [int(label) for label in batch["labels"][0]]
        if token_id not in labels:
            same = token_id == case.tokenizer.pad_token_id
            yield Finding(
                "error",
                "eos-masked",
                f"The collator gives the EOS token {case.shown(token_id)} no loss"
                f"{', because it is the pad token as well' if same else ''}.",
                "A model that is trained with it never learns to end an answer.",
                "finetune(…)  # masks by position; or a pad token of its own, in the collator too",
            )


def _scores(
    case: _Case, references: Sequence[tuple[str, str]], found: Sequence[Finding]
) -> Iterator[Finding]:
    """Asks the model how likely EOS is where answers end, and where they do not."""
    probes = probe(case.pipeline, case.template, references, case.eos, case.turn_end)
    seen = (
        f"At the ends of {len(references)} good answers EOS has the probability {probes.end:.2g} "
        f"and the rank {probes.rank} (medians), in mid-sentence {probes.middle:.2g}"
    )
    if probes.middle >= LIKELY:
        yield Finding(
            "error",
            "eos-too-early",
            f"{seen}.",
            "Answers end in mid-sentence.",
            "finetune(…)  # on whole answers; truncated ones teach this",
        )
    elif probes.end >= LIKELY or probes.rank == 1:
        yield Finding(
            "info",
            "eos-learned",
            f"{seen}.",
            "The model knows where an answer may end"
            + (", but mostly has more to say." if probes.end < 0.5 else "."),
            "eos_reward=True (the default), or finetune(…)" if probes.end < 0.5 else "",
        )
    elif probes.other is not None and probes.other_probability >= LIKELY:
        if not any(finding.code == "turn-end-not-eos" for finding in found):
            yield Finding(
                "error",
                "other-token-ends",
                f"{seen}; but {case.shown(probes.other)} has {probes.other_probability:.2g}.",
                "The model ends its answers with a token that is not configured as EOS.",
                f"pipeline.model.generation_config.eos_token_id = {[*case.eos, probes.other]}",
            )
    else:
        same = case.tokenizer.pad_token_id in case.eos
        yield Finding(
            "error",
            "eos-never-learned",
            f"{seen}.",
            "The model has not learned to end its answers"
            + (
                ". Its pad token is EOS: a training that masks labels by the pad id hides EOS."
                if same
                else "."
            ),
            "finetune(…)  # or eos_reward=True (the default), which ends answers all the same",
        )
