"""Prompts of jobs: what of them is known already, and what has to be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from langchain_llama_stop.engine.batch import Batch, read
from langchain_llama_stop.engine.kv_cache import has_windows
from langchain_llama_stop.engine.prefix_cache import SHORTEST, PrefixCache
from langchain_llama_stop.engine.request import Job
from langchain_llama_stop.tokens.encoding import common_length


def read_jobs(model: Any, group: Sequence[Job]) -> tuple[Batch, torch.Tensor, PrefixCache | None]:
    """Reads what is not known of the prompts of jobs, in one pass.

    Args:
        model: The model.
        group: The jobs; where they have answers already, these are read with the prompts.

    Returns:
        Their rows, the scores behind them, (rows, 1, vocab), and the model's prefix cache, if one
        of them wants it.
    """
    unread = [(job, row, ids) for job in group for row, ids in job.unread().items()]
    owners = [(job, row) for job, row, _ in unread]
    prompts = [ids for _, _, ids in unread]
    cache = PrefixCache.of(model, max(job.prefix_cache for job in group))
    known = [
        cache.find(prompt) if cache and job.prefix_cache else (None, 0)
        for (job, _), prompt in zip(owners, prompts, strict=True)
    ]
    if len(prompts) == 1 and known[0][0] and known[0][1] == len(prompts[0]):
        batch = Batch(owners, known, 1, model.device)
        assert known[0][0].logits is not None
        return batch, known[0][0].logits[None, None], cache
    # A prefix that all have in common is read once.
    shared = min(len(p) - 1 for p in prompts)
    for prompt in prompts[1:]:
        shared = common_length(prompts[0][:shared], prompt)
    limit = min(job.prefix_cache for job in group)
    best = max(count for _, count in known)
    shared = 0 if group[0].apart else shared  # it has been tried
    if cache and limit and len(prompts) > 1 and shared >= SHORTEST and shared > best:
        ids = prompts[0][:shared]
        batch, _ = read(model, owners[:1], [ids], [cache.find(ids)])
        entry = batch.prefix(0, ids, 0, None)
        cache.put(entry, limit)
        known = [(entry, shared)] * len(prompts)
    if len(prompts) > 1 and has_windows(model.config):
        known = [(None, 0) for _ in known]  # else there were padding behind what is known
    known = [(p, min(n, len(i) - 1)) for (p, n), i in zip(known, prompts, strict=True)]
    return *read(model, owners, prompts, known), cache
