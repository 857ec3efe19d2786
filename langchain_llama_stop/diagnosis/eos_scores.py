"""A model's own scores for EOS: where good answers end, and where no answer does."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

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
"""Questions with answers that are complete: nothing has to be added to them."""


class Probes(NamedTuple):
    """Medians over reference answers.

    Attributes:
        end: Probability of EOS at their ends, 0 to 1; of the likeliest EOS id.
        rank: Its rank there, 1 for the likeliest token.
        middle: Probability of EOS in their midst.
        other: The special token besides EOS that is likeliest at their ends; None without any.
        other_probability: Its probability there.
    """

    end: float
    rank: int
    middle: float
    other: int | None
    other_probability: float


def probe(
    pipeline: Any,
    references: Sequence[tuple[str, str]],
    eos: Sequence[int],
    turn_end: int | None,
) -> Probes:
    """Asks a model how likely it is to end.

    Args:
        pipeline: The pipeline. A model without a chat template gets question and answer as plain
            text, unless it is one of Llama 2's.
        references: Questions and complete answers.
        eos: The EOS ids, inside of the vocabulary.
        turn_end: The token with which the template ends an answer, if there is one.

    Returns:
        What it says.
    """
    tokenizer, model = pipeline.tokenizer, pipeline.model
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            template = chat_template(tokenizer, model.name_or_path)
    except ValueError:
        template = ""
    vocabulary = vocabulary_size(model)
    added = tokenizer.added_tokens_decoder
    others = {i for i in {*added, turn_end} if i is not None and i < vocabulary} - {*eos}
    ends, middles = [], []
    for question, answer in references:
        ids, begin = exchange(tokenizer, template, question, answer)
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        ends.append(logits[-1].float().softmax(dim=-1))  # (vocab,)
        for place in _inside(tokenizer, ids, begin):
            probabilities = logits[place - 1].float().softmax(dim=-1)
            middles.append(max(float(probabilities[i]) for i in eos))
    best = [max(eos, key=lambda i, p=p: float(p[i])) for p in ends]  # type: ignore[misc]
    found = {i: statistics.median(float(p[i]) for p in ends) for i in others}
    other = max(found, key=found.__getitem__, default=None)
    ranks = [1 + int((p > p[i]).sum()) for p, i in zip(ends, best, strict=True)]
    return Probes(
        end=statistics.median(float(p[i]) for p, i in zip(ends, best, strict=True)),
        rank=int(statistics.median_low(ranks)),
        middle=statistics.median(middles) if middles else 0.0,
        other=other,
        other_probability=found[other] if other is not None else 0.0,
    )


def _inside(tokenizer: Any, ids: list[int], begin: int) -> list[int]:
    """The place nearest to the middle of an answer where its text may not end, if there is one."""
    middle = (begin + len(ids)) // 2
    places = sorted(range(begin + 1, len(ids)), key=lambda place: abs(place - middle))
    texts = ((place, str(tokenizer.decode(ids[begin:place]))) for place in places)
    return [place for place, text in texts if text.strip() and not may_end(text)][:1]


def exchange(tokenizer: Any, template: str, question: str, answer: str) -> tuple[list[int], int]:
    """Encodes a question and an answer, up to where EOS is due.

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja); "" for plain text.
        question: The question.
        answer: The answer.

    Returns:
        The ids; what the template writes between the answer and EOS (Llama 2: a space) is among
        them. And where the answer begins.
    """
    if not template:
        prompt = tokenizer(f"{question}\n")["input_ids"]
        return [*prompt, *plain_ids(tokenizer, answer, inside=True)], len(prompt)
    asked = [{"role": "user", "content": question}]
    said = [*asked, {"role": "assistant", "content": answer}]
    ids = chat_ids(tokenizer, said, template=template)
    begin = common_length(chat_ids(tokenizer, asked, template=template), ids)
    ends = [i for i in range(begin, len(ids)) if ids[i] in tokenizer.added_tokens_decoder]
    if not ends:  # nothing ends an answer in this template
        said_only = chat_ids(tokenizer, said, template=template, continue_final_message=True)
        return said_only, begin
    return ids[: ends[0]], begin
