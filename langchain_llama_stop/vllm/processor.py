"""The EOS reward inside a vLLM server, as a logits processor of vLLM's own kind.

    vllm serve MODEL --logits-processors langchain_llama_stop.vllm:EosRewardLogitsProcessor

A request asks for it by `SamplingParams.extra_args`, over HTTP by `vllm_xargs`: `eos_reward` is 1
(or true), and the fields of `EosReward` go by `eos_reward_start`, `eos_reward_strength` and so on.
The budget is the request's `max_tokens`; EOS are the ids that tokenizer and generation config name,
not the request's own stop ids. For requests that do not ask nothing is done. The score rule is that
of `EosTokenRewardLogitsProcessor`, decided as the text comes: there is no hindsight in a server
whose tokens are given away one by one.

vLLM has two runners with interfaces of their own; one class serves both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from langchain_llama_stop.ending.logits_processor import (
    EosTokenRewardLogitsProcessor,
    RowEdit,
    edit_rows_,
)
from langchain_llama_stop.vllm.xargs import request_reward


class EosRewardLogitsProcessor(LogitsProcessor, LogitsProcessorV2):  # type: ignore[misc]
    """Rewards EOS in the rows of requests that ask for it, for both of vLLM's runners."""

    def __init__(
        self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool = False
    ) -> None:
        """Loads the tokenizer; called by vLLM.

        Args:
            vllm_config: The engine's config.
            device_or_states: The device (V1), or the buffers of all requests (V2).
            is_pin_memory: Not used.
        """
        config = vllm_config.model_config
        self._tokenizer = AutoTokenizer.from_pretrained(
            config.tokenizer,
            revision=config.tokenizer_revision,
            trust_remote_code=config.trust_remote_code,
        )
        eos = config.try_get_generation_config().get("eos_token_id")
        self._eos = {eos} if isinstance(eos, int) else set(eos or ())
        self._states = device_or_states
        # By place in the batch (V1) or slot (V2): the processor, and the live list of ids (V1).
        self._rows: dict[int, tuple[EosTokenRewardLogitsProcessor, list[int]]] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuses a request with a bad option, before it is admitted.

        Args:
            sampling_params: The request's.

        Raises:
            ValueError: If an option is unknown or out of its range.
        """
        request_reward(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """Says that greedy choices may change."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows the requests through the batch (V1).

        Args:
            batch_update: Which were removed, added and moved, in this order; None if none.
        """
        if batch_update is None:
            return
        for place in batch_update.removed:
            self._rows.pop(place, None)
        for place, params, _, output_ids in batch_update.added:
            self._place(place, params, output_ids)
        for a, b, direction in batch_update.moved:
            first, second = self._rows.pop(a, None), self._rows.pop(b, None)
            if first:
                self._rows[b] = first
            if second and direction == MoveDirectionality.SWAP:
                self._rows[a] = second

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Takes a request into a slot (V2).

        Args:
            req_idx: The slot; what it held before is over.
            sampling_params: The request's.

        Returns:
            Whether its scores may be changed.
        """
        return self._place(req_idx, sampling_params, [])

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Lifts the scores of rows that may end, or have to, in place.

        Args:
            logits: Next-token scores, (rows, vocab).
            ctx: Which rows belong to which slots (V2); None where they are places (V1).

        Returns:
            `logits`.
        """
        if not self._rows:
            return logits
        # All rows at once: each step of each by itself would wait for the device.
        found = list(self._in_places() if ctx is None else self._in_slots(ctx))
        return edit_rows_(logits, found)

    def _place(self, place: int, params: SamplingParams, output_ids: list[int]) -> bool:
        self._rows.pop(place, None)
        reward = request_reward(params.extra_args)
        eos = sorted(params.all_stop_token_ids & (self._eos | {params.eos_token_id}))
        if reward is None or params.ignore_eos or not eos or not params.max_tokens:
            return False
        processor = EosTokenRewardLogitsProcessor(
            self._tokenizer,
            max_new_tokens=params.max_tokens,
            prompt_length=0,
            eos_token_id=eos,
            reward=reward,
        )
        self._rows[place] = (processor, output_ids)
        return True

    def _in_places(self) -> Iterator[RowEdit]:
        """The rows in their landing zone, by V1's places."""
        for place, (processor, output_ids) in self._rows.items():
            # -1 stands for a token that the host has not seen yet.
            unseen = output_ids[-1:] == [-1]
            generated = output_ids.index(-1) if unseen else len(output_ids)
            if processor.zone <= generated < processor.max_new_tokens:
                yield processor.row_edit(place, output_ids[:generated])

    def _in_slots(self, ctx: Any) -> Iterator[RowEdit]:
        """The same for V2: what the rows have generated is read from the runner's buffers."""
        prompts, asked = self._states.prompt_len.np, {}
        for slot, most in zip(ctx.idx_mapping_np, ctx.seq_lens_upper_bound_np, strict=True):
            # Known on the host: outside of the landing zone nothing waits for the device.
            if (row := self._rows.get(int(slot))) and most - prompts[slot] >= row[0].zone:
                asked[int(slot)] = row[0]
        if not asked:
            return
        # All rows at once, for each copy waits for the device.
        slots = torch.tensor(list(asked), device=self._states.total_len.gpu.device)
        counts = self._states.total_len.gpu[slots].tolist()
        tokens = self._states.all_token_ids.gpu[slots, : max(counts)].tolist()
        known = dict(zip(asked, zip(counts, tokens, strict=True), strict=True))
        owners = ctx.expanded_idx_mapping.tolist()
        fed = list(zip(owners, ctx.pos.tolist(), ctx.input_ids.tolist(), strict=True))
        for row_, (slot, place, _) in enumerate(fed):
            if slot not in asked:
                continue
            processor, (committed, ids), prompt = asked[slot], known[slot], int(prompts[slot])
            # Draft tokens, under speculative decoding, stand in the rows before.
            drafts = [i for owner, at, i in fed if owner == slot and committed <= at <= place]
            seen = [*ids[prompt:committed], *drafts][: place + 1 - prompt]
            if processor.zone <= len(seen) < processor.max_new_tokens:
                yield processor.row_edit(row_, seen)
