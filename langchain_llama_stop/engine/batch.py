"""The rows of a forward pass: they are read, get on together, join and leave."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from langchain_llama_stop.engine.kv_cache import CACHE, RowsCache
from langchain_llama_stop.engine.oom import out_of_memory
from langchain_llama_stop.engine.prefix_cache import Prefix
from langchain_llama_stop.engine.request import Job
from langchain_llama_stop.tokens.weak_cache import cached_per_object


class Batch:
    """The rows of a forward pass: whose they are, what of their columns counts, where they are."""

    def __init__(
        self,
        owners: Sequence[tuple[Job, int]],
        known: Sequence[tuple[Prefix | None, int]],
        room: int,
        device: torch.device,
    ) -> None:
        """Begins with what is known of each row's prompt.

        Args:
            owners: Whose row it is, and which of theirs; kept along with it.
            known: A prefix of each prompt, and how many of its tokens to take.
            room: Columns to be written next.
            device: Of the model's inputs.
        """
        self.owners, self.cache = list(owners), RowsCache()
        counts = torch.tensor([count for _, count in known], device=device)
        if width := max(count for _, count in known):
            states = [(prefix.states if prefix else None, count) for prefix, count in known]
            self.cache = RowsCache.of_rows(states, room)
        columns = torch.arange(width, device=device)
        self.mask = (columns >= width - counts[:, None]).long()  # 1: counts, (rows, columns)
        self.positions = counts  # how many columns count, (rows,)
        self.padded = not bool(self.mask.all())

    def forward(
        self, model: Any, tokens: torch.Tensor, *, keep: int, attended: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Runs the model over new tokens.

        Args:
            model: The model.
            tokens: The new tokens, (rows, new).
            keep: For how many of them scores are wanted, from the last one.
            attended: 1 for those that count, 0 for padding, (rows, new); None if all count.

        Returns:
            The scores, (rows, keep, vocab).
        """
        length, padded = self.cache.length, self.padded or attended is not None
        attended = torch.ones_like(tokens) if attended is None else attended
        new = attended.cumsum(dim=1)
        mask = torch.cat([self.mask, attended], dim=1)
        inputs: dict[str, Any] = {CACHE: self.cache, "use_cache": True}
        if _takes_positions(model.__class__):
            inputs["position_ids"] = (self.positions[:, None] + new - 1).clamp(min=0)
        if _keeps_scores(model):
            inputs["logits_to_keep"] = keep
        inputs = model.prepare_inputs_for_generation(
            tokens,
            next_sequence_length=tokens.shape[1],
            # All ones are the same as none, and faster.
            attention_mask=mask if padded else None,
            **inputs,
        )
        try:
            logits: torch.Tensor = model(**inputs, return_dict=True).logits[:, -keep:]
        except BaseException:  # some layers have written, others not
            self.cache.truncate(length)
            raise
        self.mask, self.positions, self.padded = mask, self.positions + new[:, -1], padded
        return logits

    def places(self) -> dict[Job, list[int]]:
        """Where the rows are that each job wants to get on with."""
        places: dict[Job, list[int]] = {}
        for place, (job, row) in enumerate(self.owners):
            if job.wants(row):
                places.setdefault(job, []).append(place)
        return places

    def compact(self, *, at_once: bool = False) -> Batch | None:
        """Takes out finished rows, once they are a quarter of all: moving others takes time too.

        Args:
            at_once: Whether to take them out however few they are.

        Returns:
            This batch; None if no row is left.
        """
        rows = [place for places in self.places().values() for place in places]
        finished = len(self.owners) - len(rows)
        if finished and rows and (at_once or 4 * finished >= len(self.owners)):
            try:
                self.select(rows)
            except Exception as error:
                if not out_of_memory(error):
                    raise  # else they stay where they are
        return self if rows else None

    def select(self, rows: list[int]) -> None:
        """Keeps some rows, and the columns that count for one of them."""
        mask = self.mask[torch.tensor(rows, device=self.mask.device)]
        first = int(mask.amax(dim=0).argmax())
        self.cache.select(rows, first)
        self.owners, self.mask = [self.owners[i] for i in rows], mask[:, first:]
        self.positions = self.mask.sum(dim=1)
        self.padded = not bool(self.mask.all())

    def join(self, other: Batch) -> None:
        """Puts the rows of another batch under these; where that fails, they are as they were."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        masks = torch.cat(
            [torch.nn.functional.pad(b.mask, (width - b.mask.shape[1], 0)) for b in (self, other)]
        )
        positions = torch.cat([self.positions, other.positions])
        padded = not bool(masks.all())
        self.cache.join(other.cache)
        self.owners = self.owners + other.owners
        self.mask, self.positions, self.padded = masks, positions, padded

    def truncate(self, count: int) -> None:
        """Takes back what is over `count` tokens of the only row."""
        if surplus := int(self.positions[0]) - count:
            length = self.cache.length - surplus
            self.cache.truncate(length)
            self.mask, self.positions = self.mask[:, :length], self.positions - surplus

    def prefix(
        self, row: int, ids: Sequence[int], prompt: int, logits: torch.Tensor | None
    ) -> Prefix:
        """Copies what is known of one row.

        Args:
            row: Which row.
            ids: Its text so far; the row may be ahead of it, never behind its last token but one.
            prompt: Tokens of its prompt.
            logits: The scores behind the prompt, (vocab,), if they are known.

        Returns:
            All of it that has been computed, as an entry of the prefix cache.
        """
        columns = self.mask[row].nonzero()[: len(ids), 0]
        known = tuple(ids[: len(columns)])
        return Prefix(known, self.cache.row(row, columns), prompt, logits)


def read(
    model: Any,
    owners: Sequence[tuple[Job, int]],
    prompts: Sequence[Sequence[int]],
    known: Sequence[tuple[Prefix | None, int]],
) -> tuple[Batch, torch.Tensor]:
    """Reads what is not known of prompts, in one left-padded pass.

    Args:
        model: The model.
        owners: As for `Batch`.
        prompts: The ids of each; at least one is not known.
        known: As for `Batch`.

    Returns:
        The rows, and the scores behind the prompts, (rows, 1, vocab).
    """
    rest = [ids[count:] for ids, (_, count) in zip(prompts, known, strict=True)]
    tokens, attended = left_padded(rest, pad=0)
    batch = Batch(owners, known, tokens.shape[1], model.device)
    padding = None if bool(attended.all()) else attended.to(model.device)
    return batch, batch.forward(model, tokens.to(model.device), keep=1, attended=padding)


def left_padded(texts: Sequence[Sequence[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes texts below each other, their ends in one column.

    Args:
        texts: Their ids.
        pad: What stands before the shorter ones.

    Returns:
        The ids, and 1 for what is text and 0 for padding, both (texts, longest).
    """
    tokens = torch.full((len(texts), max(map(len, texts))), pad, dtype=torch.long)
    attended = torch.zeros_like(tokens)
    for row, ids in enumerate(texts):
        if ids:
            tokens[row, -len(ids) :] = torch.tensor(ids)
            attended[row, -len(ids) :] = 1
    return tokens, attended


@functools.cache
def _takes_positions(kind: Any) -> bool:
    """Whether the forward pass of a class of models is told positions."""
    return "position_ids" in inspect.signature(kind.forward).parameters


@cached_per_object
def _keeps_scores(model: Any) -> bool:
    """Whether a model is told for how many tokens to give scores; a wrapped one knows by itself."""
    return bool(model._supports_logits_to_keep())
