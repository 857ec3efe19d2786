"""Why does this model not stop? Its settings, its template and its own scores are looked at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._optional import Progress
from langchain_llama_stop.diagnosis.checks import Case, Finding, static_findings
from langchain_llama_stop.diagnosis.eos_scores import REFERENCES, exchange, probe
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.options import GenerationOptions

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, TextGenerationPipeline

LIKELY = 0.02
"""From this probability on, a token is among what a model wants to say next."""


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
    if empty := [pair for pair in references if not all(text.strip() for text in pair)]:
        raise ValueError(
            f"`references` has to hold questions and answers with a text, but holds {empty[0]!r}."
        )
    if isinstance(model, str | os.PathLike):
        pipeline: Any = load_pipeline(model, quantization, adapter, progress=progress)
    elif adapter is not None or quantization is not None:
        raise ValueError("`adapter` and `quantization` are for a model given by its name.")
    else:
        pipeline = model
    case = Case(pipeline, opts, prompt)
    found = static_findings(case)
    if data_collator is not None:
        found += _collator(case, data_collator)
    if references and case.eos and not any(f.code in _NO_SCORES for f in found):
        (progress or (lambda stage: None))("Asking the model where it would end")
        found += _scores(case, references, found)
    order = ("error", "warning", "info")
    return sorted(found, key=lambda finding: order.index(finding.severity))


_NO_SCORES = ("no-eos", "eos-outside-vocabulary", "template-broken")


def _collator(
    case: Case, data_collator: Callable[[list[dict[str, Any]]], Any]
) -> Iterator[Finding]:
    """Feeds the collator an answer that ends by EOS, and looks at its label."""
    if not case.eos:
        return
    eos = case.turn_end if case.turn_end in case.eos else case.eos[0]
    template = "" if case.broken else case.template
    ids, begin = exchange(case.tokenizer, template, *REFERENCES[0])
    ids = [*ids, eos]
    row = {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": list(ids)}
    labels = data_collator([row]).get("labels")
    answer = [] if labels is None else [int(label) for label in labels[0]][begin:]
    if all(label < 0 for label in answer):
        raise ValueError(
            "`data_collator` has to give labels to an answer in the model's template, but gives "
            f"none to {case.tokenizer.decode(ids)!r}: does it look for other marks?"
        )
    if eos not in answer:
        same = eos == case.tokenizer.pad_token_id
        yield Finding(
            "error",
            "eos-masked",
            f"The collator gives the EOS token {case.shown(eos)} no loss"
            f"{', because it is the pad token as well' if same else ''}.",
            "A model that is trained with it never learns to end an answer.",
            "finetune(…)  # masks by position; or a pad token of its own, in the collator too",
        )


def _scores(
    case: Case, references: Sequence[tuple[str, str]], found: Sequence[Finding]
) -> Iterator[Finding]:
    """Asks the model how likely EOS is where answers end, and where they do not."""
    probes = probe(case.pipeline, references, case.eos, case.turn_end)
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
                case.eos_line([*case.eos, probes.other]),
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
