"""A model's own scores for EOS: at the ends of good answers, and in mid-sentence."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from langchain_llama_stop.chat.control_tokens import control_ids
from langchain_llama_stop.chat.template import chat_ids, chat_template
from langchain_llama_stop.ending.boundaries import may_end
from langchain_llama_stop.engine.config import vocabulary_size
from langchain_llama_stop.tokens.encoding import common_length, plain_ids

REFERENCES: tuple[tuple[str, str], ...] = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("How many days does a week have?", "A week has seven days."),
    ("Is the sun a star?", "Yes, the sun is a star like many others."),
    ("What do bees make?", "Bees make honey from the nectar that they gather in flowers."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet."),
    ("At how many degrees does water freeze?", "Water freezes at 0 degrees Celsius."),
)
"""Questions with complete answers: a good model would add nothing to them."""


class EosScores(NamedTuple):
    """Medians over reference answers. Probabilities are 0 to 1.

    Attributes:
        end: Probability of EOS at the ends of answers; of the likeliest EOS id.
        rank: Its rank there, 1 for the likeliest token.
        middle: Probability of EOS in the middle of answers.
        other: The special token besides EOS that is likeliest at the ends; None without any.
        other_probability: Its probability there.
    """

    end: float
    rank: int
    middle: float
    other: int | None
    other_probability: float


def eos_scores(
    pipeline: Any,
    references: Sequence[tuple[str, str]],
    eos: Sequence[int],
    turn_end: int | None,
) -> EosScores:
    """Measures how likely a model is to end good answers.

    A model without a chat template gets question and answer as plain text, unless it is one of
    Llama 2's.

    Args:
        pipeline: The pipeline.
        references: Questions and complete answers, at least one.
        eos: The EOS ids, all inside of the vocabulary.
        turn_end: The token with which the template ends an answer, if there is one.

    Returns:
        The medians over the references.
    """
    tokenizer, model = pipeline.tokenizer, pipeline.model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            template = chat_template(tokenizer, model.name_or_path)
    except ValueError:
        template = ""
    vocabulary = vocabulary_size(model)
    controls = control_ids(tokenizer, template)
    others = {i for i in {*controls, turn_end} if i is not None and i < vocabulary} - {*eos}
    ends, middles = [], []
    for question, answer in references:
        ids, begin = exchange_ids(tokenizer, template, question, answer)
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        ends.append(logits[-1].float().softmax(dim=-1))  # (vocab,)
        for position in _mid_sentence(tokenizer, ids, begin):
            probabilities = logits[position - 1].float().softmax(dim=-1)  # (vocab,)
            middles.append(max(float(probabilities[i]) for i in eos))
    best = [max(eos, key=lambda i, p=p: float(p[i])) for p in ends]  # type: ignore[misc]
    ranks = [1 + int((p > p[i]).sum()) for p, i in zip(ends, best, strict=True)]
    medians = {i: statistics.median(float(p[i]) for p in ends) for i in others}
    other = max(medians, key=medians.__getitem__, default=None)
    return EosScores(
        end=statistics.median(float(p[i]) for p, i in zip(ends, best, strict=True)),
        rank=int(statistics.median_low(ranks)),
        middle=statistics.median(middles) if middles else 0.0,
        other=other,
        other_probability=medians[other] if other is not None else 0.0,
    )


def _mid_sentence(tokenizer: Any, ids: list[int], begin: int) -> list[int]:
    """The position nearest to the middle of an answer where its text may not end, or []."""
    middle = (begin + len(ids)) // 2
    positions = sorted(range(begin + 1, len(ids)), key=lambda position: abs(position - middle))
    texts = ((position, str(tokenizer.decode(ids[begin:position]))) for position in positions)
    return [position for position, text in texts if text.strip() and not may_end(text)][:1]


def exchange_ids(
    tokenizer: Any, template: str, question: str, answer: str
) -> tuple[list[int], int]:
    """Encodes a question and an answer, up to the position where EOS would follow.

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja); "" for plain text.
        question: The question.
        answer: The answer.

    Returns:
        The ids, and the index at which the answer begins. What the template writes between the
        answer and EOS (Llama 2: a space) is part of the ids.
    """
    if not template:
        prompt = tokenizer(f"{question}\n")["input_ids"]
        return [*prompt, *plain_ids(tokenizer, answer, inside=True)], len(prompt)
    chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids = chat_ids(tokenizer, chat, template=template)
    begin = common_length(chat_ids(tokenizer, chat[:1], template=template), ids)
    controls = control_ids(tokenizer, template)
    ends = [i for i in range(begin, len(ids)) if ids[i] in controls]
    if not ends:  # nothing ends an answer in this template
        return chat_ids(tokenizer, chat, template=template, continue_final_message=True), begin
    return ids[: ends[0]], begin
