"""A model's own scores for EOS: where good answers end, and where no answer does."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from langchain_llama_stop.chat_templates import chat_ids
from langchain_llama_stop.placeholders import plain_ids

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
    template: str,
    references: Sequence[tuple[str, str]],
    eos: Sequence[int],
    turn_end: int | None,
) -> Probes:
    """Asks a model how likely it is to end.

    Args:
        pipeline: The pipeline.
        template: The chat template (Jinja); "" for a model without one, which then gets question
            and answer as plain text.
        references: Questions and complete answers.
        eos: The EOS ids, inside of the vocabulary.
        turn_end: The token with which the template ends an answer, if there is one.

    Returns:
        What it says.
    """
    tokenizer, model = pipeline.tokenizer, pipeline.model
    vocabulary = model.get_input_embeddings().num_embeddings
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    special = {i for i in special | {turn_end} if i is not None and i < vocabulary} - {*eos}
    ends, middles = [], []
    for question, answer in references:
        ids, begin = _conversation(tokenizer, template, question, answer)
        with torch.no_grad():
            logits = model(torch.tensor([ids], device=model.device), use_cache=False).logits[0]
        ends.append(logits[-1].float().softmax(dim=-1))  # (vocab,)
        middles.append(logits[(begin + len(ids)) // 2 - 1].float().softmax(dim=-1))
    best = [max(eos, key=lambda i, p=p: float(p[i])) for p in ends]  # type: ignore[misc]
    others = {i: statistics.median(float(p[i]) for p in ends) for i in special}
    other = max(others, key=others.__getitem__, default=None)
    return Probes(
        end=statistics.median(float(p[i]) for p, i in zip(ends, best, strict=True)),
        rank=int(
            statistics.median_low(
                1 + int((p > p[i]).sum()) for p, i in zip(ends, best, strict=True)
            )
        ),
        middle=statistics.median(max(float(p[i]) for i in eos) for p in middles),
        other=other,
        other_probability=others[other] if other is not None else 0.0,
    )


def _conversation(
    tokenizer: Any, template: str, question: str, answer: str
) -> tuple[list[int], int]:
    """The ids of an exchange up to the end of the answer, and where the answer begins."""
    if not template:
        prompt = tokenizer(f"{question}\n")["input_ids"]
        return [*prompt, *plain_ids(tokenizer, answer, inside=True)], len(prompt)
    asked = [{"role": "user", "content": question}]
    said = [*asked, {"role": "assistant", "content": answer}]
    ids = chat_ids(tokenizer, said, template=template, continue_final_message=True)
    return ids, len(chat_ids(tokenizer, asked, template=template))
