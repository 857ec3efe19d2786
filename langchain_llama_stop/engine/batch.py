"""The batch of a forward pass: its rows are prefilled, decoded together, join and leave."""

from __future__ import annotations

import logging
from typing import Any

import torch

from langchain_llama_stop.engine.forward import Logits, forward
from langchain_llama_stop.engine.kv_cache import RowsCache, has_windows
from langchain_llama_stop.engine.oom import out_of_memory
from langchain_llama_stop.engine.prefix_cache import (
    SHORTEST,
    Hit,
    Prefix,
    PrefixCache,
    prefix_cache_of,
)
from langchain_llama_stop.engine.request import Request
from langchain_llama_stop.tokens.encoding import common_length

logger = logging.getLogger("langchain_llama_stop")


class Batch:
    """The rows of a forward pass: their requests, cache, attention mask and positions.

    Attributes:
        requests: Whose row each is; None for a row that is left over.
        cache: Keys and values of all rows.
        mask: 1 for columns that count, 0 for padding, (rows, columns).
        positions: How many columns of each row count, (rows,).
        padded: Whether any column does not count.
        epochs: The epoch of the prefix cache in which each row started: the weights may have
            changed since then.
    """

    def __init__(
        self, requests: list[Request | None], hits: list[Hit], room: int, model: Any
    ) -> None:
        """Starts with the cached prefix of each row.

        Args:
            requests: Whose row each is.
            hits: The cached prefix of each row.
            room: Columns to be written next.
            model: The model.
        """
        self.requests, self.cache = requests, RowsCache()
        device = model.device
        counts = torch.tensor([count for _, count in hits], device=device)
        if width := max(count for _, count in hits):
            states = [(prefix.states if prefix else None, count) for prefix, count in hits]
            self.cache = RowsCache.of_rows(states, room)
        self.epochs = [prefix_cache_of(model).epoch] * len(requests)
        columns = torch.arange(width, device=device)
        self.mask = (columns >= width - counts[:, None]).long()
        self.positions = counts
        self.padded = not bool(self.mask.all())

    def forward(
        self, model: Any, tokens: torch.Tensor, *, keep: int, attended: torch.Tensor | None = None
    ) -> Logits:
        """Runs the model over new tokens; if that fails, the rows are as they were.

        Args:
            model: The model.
            tokens: The new tokens, (rows, new).
            keep: For how many of them to return logits, counted from the last one.
            attended: 1 for tokens that count, 0 for padding, (rows, new); None if all count.

        Returns:
            The logits, (rows, keep, vocab).
        """
        prefix_cache_of(model).watch_adapters(model)
        length, padded = self.cache.length, self.padded or attended is not None
        attended = torch.ones_like(tokens) if attended is None else attended
        new = attended.cumsum(dim=1)
        mask = torch.cat([self.mask, attended], dim=1)
        positions = (self.positions[:, None] + new - 1).clamp(min=0)
        try:
            logits = forward(
                model, tokens, self.cache, positions, mask if padded else None, keep=keep
            )
        except BaseException:  # some layers have written, others have not
            self.cache.truncate(length)
            raise
        self.mask, self.positions, self.padded = mask, self.positions + new[:, -1], padded
        return logits

    def running(self) -> dict[Request, int]:
        """The unfinished requests and the indices of their rows."""
        rows = enumerate(self.requests)
        return {request: i for i, request in rows if request and not request.finished}

    def drop(self, request: Request) -> None:
        """Leaves the row of a request over; `compact` removes it."""
        self.requests = [None if other is request else other for other in self.requests]

    def compact(self, *, at_once: bool = False) -> Batch | None:
        """Removes finished rows; returns this batch, or None if no row is left.

        Moving the other rows takes time: unless `at_once`, it waits until a quarter is finished
        (chosen, not tuned).
        """
        rows = list(self.running().values())
        finished = len(self.requests) - len(rows)
        if finished and rows and (at_once or 4 * finished >= len(self.requests)):
            try:
                self.select(rows)
            except Exception as error:
                if not out_of_memory(error):
                    raise  # without memory they stay where they are
        return self if rows else None

    def select(self, rows: list[int]) -> None:
        """Keeps some rows, and the columns that count for at least one of them."""
        mask = self.mask[torch.tensor(rows, device=self.mask.device)]
        first = int(mask.amax(dim=0).argmax())
        self.cache.select(rows, first)
        self.requests, self.mask = [self.requests[i] for i in rows], mask[:, first:]
        self.epochs = [self.epochs[i] for i in rows]
        self.positions = self.mask.sum(dim=1)
        self.padded = not bool(self.mask.all())

    def join(self, other: Batch) -> None:
        """Appends the rows of another batch; if that fails, these rows are as they were."""
        width = max(self.mask.shape[1], other.mask.shape[1])
        masks = torch.cat(
            [torch.nn.functional.pad(b.mask, (width - b.mask.shape[1], 0)) for b in (self, other)]
        )
        positions = torch.cat([self.positions, other.positions])
        padded = not bool(masks.all())
        self.cache.join(other.cache)
        self.requests = self.requests + other.requests
        self.epochs = self.epochs + other.epochs
        self.mask, self.positions, self.padded = masks, positions, padded

    def truncate(self, count: int) -> None:
        """Drops all but the first `count` tokens of the only row."""
        if surplus := int(self.positions[0]) - count:
            length = self.cache.length - surplus
            self.cache.truncate(length)
            self.mask, self.positions = self.mask[:, :length], self.positions - surplus

    def prefix(
        self, index: int, ids: list[int], prompt_length: int, logits: torch.Tensor | None
    ) -> Prefix:
        """Copies what has been computed of one row, as an entry of the prefix cache.

        Args:
            index: Its batch index.
            ids: Its text so far. At least all of it but the last token has been computed, perhaps
                more.
            prompt_length: Tokens of its prompt.
            logits: The logits after the prompt, (vocab,), if they are kept.
        """
        columns = self.mask[index].nonzero()[: len(ids), 0]
        computed = tuple(ids[: len(columns)])
        states, epoch = self.cache.row(index, columns), self.epochs[index]
        return Prefix(computed, states, prompt_length, logits, epoch)


def prefill(model: Any, group: list[Request]) -> tuple[Batch, Logits, PrefixCache | None]:
    """Computes the prompts of requests, as far as they are not cached, in one pass.

    Args:
        model: The model.
        group: The requests; the answers that they have so far are computed with the prompts.

    Returns:
        Their rows, the logits after them, (rows, 1, vocab), and the model's prefix cache, if one of
        them uses it.
    """
    prompts = [request.ids for request in group]
    cache = prefix_cache_of(model) if any(request.prefix_cache for request in group) else None
    if cache:
        cache.refresh(model)
    hits: list[Hit] = [
        cache.find(ids) if cache and request.prefix_cache else (None, 0)
        for request, ids in zip(group, prompts, strict=True)
    ]
    # 1. A single prompt that is cached with its logits needs no pass.
    prefix, count = hits[0]
    if len(prompts) == 1 and prefix and count == len(prompts[0]):
        assert prefix.logits is not None
        _log_reuse(hits, prompts)
        return Batch([*group], hits, 1, model), Logits.of(prefix.logits[None, None]), cache
    # 2. A prefix that all prompts have in common is computed once, unless that has failed before.
    shared = 0 if group[0].prefill_alone else _shared_length(prompts)
    limit = min(request.prefix_cache for request in group)
    longest = max(count for _, count in hits)
    if cache and limit and len(prompts) > 1 and shared >= SHORTEST and shared > longest:
        ids = prompts[0][:shared]
        batch, _ = _compute(model, [None], [ids], [cache.find(ids)])
        entry = batch.prefix(0, ids, 0, None)
        cache.put(entry, limit)
        hits = [(entry, shared)] * len(prompts)
    # 3. With sliding windows padding must not stand between cached and new tokens, so that
    # prefixes of different length are not reused.
    if len(prompts) > 1 and has_windows(model.config):
        hits = [(None, 0) for _ in hits]
    # 4. At least the last token of each prompt is computed, for its logits.
    hits = [(p, min(n, len(ids) - 1)) for (p, n), ids in zip(hits, prompts, strict=True)]
    _log_reuse(hits, prompts)
    return *_compute(model, [*group], prompts, hits), cache


def _shared_length(prompts: list[list[int]]) -> int:
    """Length of the prefix that all prompts have in common, at least one token short of each."""
    shared = min(len(ids) - 1 for ids in prompts)
    for ids in prompts[1:]:
        shared = common_length(prompts[0][:shared], ids)
    return shared


def _log_reuse(hits: list[Hit], prompts: list[list[int]]) -> None:
    for (_, count), ids in zip(hits, prompts, strict=True):
        if count:
            logger.debug("Prefix cache: %d of %d prompt tokens are reused.", count, len(ids))


def _compute(
    model: Any, requests: list[Request | None], prompts: list[list[int]], hits: list[Hit]
) -> tuple[Batch, Logits]:
    """One left-padded pass over the tokens that are not cached; logits of (rows, 1, vocab)."""
    rest = [ids[count:] for ids, (_, count) in zip(prompts, hits, strict=True)]
    tokens, attended = left_padded(rest, pad=0)
    batch = Batch(requests, hits, tokens.shape[1], model)
    padding = None if bool(attended.all()) else attended.to(model.device)
    return batch, batch.forward(model, tokens.to(model.device), keep=1, attended=padding)


def left_padded(texts: list[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Aligns texts at their last token.

    Args:
        texts: Their ids.
        pad: The id that fills the shorter ones up.

    Returns:
        The ids, and 1 for text and 0 for padding, both (texts, longest).
    """
    tokens = torch.full((len(texts), max(map(len, texts))), pad, dtype=torch.long)
    attended = torch.zeros_like(tokens)
    for row, ids in enumerate(texts):
        if ids:
            tokens[row, -len(ids) :] = torch.tensor(ids)
            attended[row, -len(ids) :] = 1
    return tokens, attended
