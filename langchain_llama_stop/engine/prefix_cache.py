"""Keys and values of earlier prompts, kept for prompts that begin with the same tokens.

A conversation sends its whole past with every turn, and all prompts of a RAG app begin with the
same instructions. What the model has computed for such a beginning is kept here, found again by
token ids (never by text), and continued.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from langchain_llama_stop._weights import adapter_state
from langchain_llama_stop.engine.fingerprint import Fingerprint, fingerprint
from langchain_llama_stop.engine.kv_cache import LayerStates
from langchain_llama_stop.tokens.encoding import common_length
from langchain_llama_stop.tokens.weak_cache import cached_per_process

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SHORTEST = 32
"""Tokens that a common prefix needs to be reused. Chosen, not tuned: to compute fewer again costs
next to nothing, and in low precision another way of computing them may round differently."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The computed beginning of a text.

    Attributes:
        ids: Its tokens.
        states: Their keys and values, never written to.
        prompt_length: How many of the tokens were a prompt.
        logits: The logits after that prompt, (vocab,): the same prompt again needs no forward
            pass, and gets the very same answer in any precision.
        epoch: The epoch of the cache in which its first token was computed.
    """

    ids: tuple[int, ...]
    states: LayerStates
    prompt_length: int = 0
    logits: torch.Tensor | None = None
    epoch: int = 0


Hit = tuple[Prefix | None, int]
"""An entry for a prompt and how many of its tokens to reuse; (None, 0) without one."""


class PrefixCache:
    """The prefixes kept for one model, bounded in tokens; the least recently used go first.

    Attributes:
        epoch: How many times what the model computes with has changed. What was computed in two of
            them is of no use in either.
    """

    def __init__(self) -> None:
        """Starts empty."""
        self._lock = threading.Lock()
        self._entries: list[Prefix] = []  # the most recently used last
        self.epoch = 0
        # What the entries were computed with.
        self._weights: Fingerprint | None = None
        self._adapters = ""

    def refresh(self, model: PreTrainedModel) -> None:
        """Drops all entries if what the model computes with has changed, or may have.

        Every module and tensor is looked at: that takes longer the more there are, however large.
        """
        self.watch_adapters(model)
        weights = fingerprint(model, self._weights)
        if self._weights is None or not weights.same_as(self._weights):
            self._start_epoch()
        self._weights = weights

    def watch_adapters(self, model: PreTrainedModel) -> None:
        """Drops all entries if other adapters are active: quick enough for every pass.

        Those that run now are of no use later, even if the former adapters come back.
        """
        adapters = adapter_state(model)
        if adapters != self._adapters:
            self._start_epoch()
        self._adapters = adapters

    def _start_epoch(self) -> None:
        self.clear()
        self.epoch += 1

    def clear(self) -> int:
        """Drops all entries; returns how many tokens they held."""
        with self._lock:
            tokens, self._entries = self.tokens, []
        return tokens

    @property
    def tokens(self) -> int:
        """Tokens kept now."""
        return sum(len(entry.ids) for entry in self._entries)

    def find(self, ids: list[int]) -> Hit:
        """Finds the longest entry that a prompt begins with.

        All of the prompt is reused if the logits after it are kept too, else at most all but its
        last token.
        """
        with self._lock:
            best, length = None, SHORTEST - 1
            for entry in self._entries:
                shared = common_length(ids, entry.ids)
                if shared == len(ids) and (entry.logits is None or entry.prompt_length != shared):
                    shared -= 1
                if shared > length:
                    best, length = entry, shared
            if best is None:
                return None, 0
            self._entries.remove(best)
            self._entries.append(best)
            return best, length

    def put(self, entry: Prefix, limit: int) -> None:
        """Adds an entry in place of those that it continues, cut to `limit` tokens in all."""
        if len(entry.ids) > limit:
            states = [s and (s[0][:, :limit], s[1][:, :limit]) for s in entry.states]
            states = [s and (s[0].clone(), s[1].clone()) for s in states]  # no view of the rest
            entry = Prefix(entry.ids[:limit], states, epoch=entry.epoch)
        with self._lock:
            if entry.epoch != self.epoch or any(
                common_length(entry.ids, e.ids) == len(entry.ids) for e in self._entries
            ):
                return  # nothing new, or of other weights
            self._entries = [
                e for e in self._entries if common_length(e.ids, entry.ids) < len(e.ids)
            ]
            self._entries.append(entry)
            while self.tokens > limit:
                self._entries.pop(0)


@cached_per_process
def prefix_cache_of(model: PreTrainedModel) -> PrefixCache:
    """The prefix cache of a model."""
    return PrefixCache()
