"""Why does this model not stop? Runs every check on its settings, its template and its scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._optional import Progress
from langchain_llama_stop.diagnosis import checks
from langchain_llama_stop.diagnosis.case import Case, DataCollator
from langchain_llama_stop.diagnosis.checks import Finding
from langchain_llama_stop.diagnosis.eos_scores import REFERENCES
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.options import GenerationOptions

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, TextGenerationPipeline


def diagnose(
    model: str | os.PathLike[str] | TextGenerationPipeline,
    prompt: str | None = None,
    *,
    adapter: str | os.PathLike[str] | None = None,
    quantization: str | BitsAndBytesConfig | None = None,
    references: Sequence[tuple[str, str]] = REFERENCES,
    data_collator: DataCollator | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Finding]:
    """Looks for what keeps a model from ending its answers.

    Args:
        model: A pipeline, or a model as for `load_pipeline`.
        prompt: A prompt as you send it, to be checked too.
        adapter: As for `load_pipeline`; only if `model` is not a pipeline.
        quantization: As for `adapter`.
        references: Questions and good answers: the model's own probability of EOS is measured at
            the ends of these answers and in their middle. () leaves this out.
        data_collator: The collator of your fine-tuning, to check whether it hides EOS from the
            loss.
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
    case = Case(pipeline, opts, prompt, references, data_collator, progress)
    findings = [finding for check in checks.CHECKS for finding in check(case)]
    order = ("error", "warning", "info")
    return sorted(findings, key=lambda finding: order.index(finding.severity))
