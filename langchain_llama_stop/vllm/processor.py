"""The EOS reward inside a vLLM server, as a logits processor of vLLM's own kind.

    vllm serve MODEL --logits-processors langchain_llama_stop.vllm:EosRewardLogitsProcessor

A request turns it on by `SamplingParams.extra_args`, over HTTP by `vllm_xargs`: `eos_reward` is 1
(or true), and the fields of `EosReward` are `eos_reward_start`, `eos_reward_strength` and so on.
The budget is the request's `max_tokens`. EOS are the ids that the tokenizer and the generation
config name, not the request's own stop ids. Other requests are left as they are. The rule is that
of `EosTokenRewardLogitsProcessor` without hindsight, as a server sends each token at once.

vLLM has two model runners with different interfaces, V1 and V2; one class serves both. A slot is
the index that vLLM gives a request: of its row in the batch (V1), or of its buffers (V2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as LogitsProcessorV2

from langchain_llama_stop.ending.answer import Answer
from langchain_llama_stop.ending.logits_processor import (
    EosTokenRewardLogitsProcessor,
    RowEdit,
    edit_rows_,
)
from langchain_llama_stop.vllm.xargs import request_reward


class EosRewardLogitsProcessor(LogitsProcessor, LogitsProcessorV2):  # type: ignore[misc]
    """Rewards EOS in the requests that turn it on, for both of vLLM's model runners."""

    def __init__(
        self, vllm_config: Any, device_or_states: Any, is_pin_memory: bool = False
    ) -> None:
        """Loads the tokenizer. vLLM gives the device (V1) or the buffers of all requests (V2)."""
        config = vllm_config.model_config
        self._tokenizer = AutoTokenizer.from_pretrained(
            config.tokenizer,
            revision=config.tokenizer_revision,
            trust_remote_code=config.trust_remote_code,
        )
        eos = config.try_get_generation_config().get("eos_token_id")
        self._eos = {eos} if isinstance(eos, int) else set(eos or ())
        self._states = device_or_states
        # By slot: the request's processor, its answer, and for V1 the list that its output ids are
        # appended to.
        self._requests: dict[int, tuple[EosTokenRewardLogitsProcessor, Answer, list[int]]] = {}

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuses a request with a bad option before it is admitted.

        Raises:
            ValueError: If an option is unknown or out of its range.
        """
        request_reward(sampling_params.extra_args)

    def is_argmax_invariant(self) -> bool:
        """Returns False: greedy choices may change."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Follows requests that are removed, added and moved, in this order (V1)."""
        if batch_update is None:
            return
        for slot in batch_update.removed:
            self._requests.pop(slot, None)
        for slot, params, prompt_ids, output_ids in batch_update.added:
            self._add(slot, params, prompt_ids or [], output_ids)  # None: embeddings
        for a, b, direction in batch_update.moved:
            first, second = self._requests.pop(a, None), self._requests.pop(b, None)
            if first:
                self._requests[b] = first
            if second and direction == MoveDirectionality.SWAP:
                self._requests[a] = second

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Takes a request into a slot, and returns whether its scores may change (V2)."""
        return self._add(req_idx, sampling_params, [], [])

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Changes the scores of rows in their landing zone, in place.

        Args:
            logits: Next-token scores, (rows, vocab).
            ctx: Which rows belong to which slots (V2); None where each slot is a row (V1).

        Returns:
            `logits`.
        """
        if not self._requests:
            return logits
        # All rows in one call: one by one, each would wait for the device at each step.
        edits = list(self._v1_edits() if ctx is None else self._v2_edits(ctx))
        return edit_rows_(logits, edits)

    def _add(
        self, slot: int, params: SamplingParams, prompt_ids: list[int], output_ids: list[int]
    ) -> bool:
        self._requests.pop(slot, None)
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
        self._requests[slot] = (processor, processor.answer(prompt_ids), output_ids)
        return True

    def _v1_edits(self) -> Iterator[RowEdit]:
        """The edits of rows in their landing zone; each slot is a row."""
        for slot, (processor, answer, output_ids) in self._requests.items():
            generated = len(output_ids)
            if generated < processor.zone:
                continue
            if output_ids[-1:] == [-1]:  # a token that has not been copied from the device yet
                generated = output_ids.index(-1)
            if processor.zone <= generated < processor.max_new_tokens:
                answer.grow(output_ids[len(answer.ids) : generated])
                yield processor.row_edit(slot, answer)

    def _v2_edits(self, ctx: Any) -> Iterator[RowEdit]:
        """The same for V2, which keeps the generated tokens in buffers on the device."""
        prompt_lengths, processors = self._states.prompt_len.np, {}
        for slot, most in zip(ctx.idx_mapping_np, ctx.seq_lens_upper_bound_np, strict=True):
            request = self._requests.get(int(slot))
            # The host has these bounds: outside the landing zone nothing waits for the device.
            if request and most - prompt_lengths[slot] >= request[0].zone:
                processors[int(slot)] = request[0]
        if not processors:
            return
        # All slots in one copy, as each copy waits for the device.
        slots = torch.tensor(list(processors), device=self._states.total_len.gpu.device)
        lengths = self._states.total_len.gpu[slots].tolist()
        tokens = self._states.all_token_ids.gpu[slots, : max(lengths)].tolist()
        sequences = {
            slot: ids[:length]
            for slot, length, ids in zip(processors, lengths, tokens, strict=True)
        }
        row_slots = ctx.expanded_idx_mapping.tolist()
        inputs = list(zip(row_slots, ctx.pos.tolist(), ctx.input_ids.tolist(), strict=True))
        for row, (slot, position, _) in enumerate(inputs):
            if slot not in processors:
                continue
            processor, ids, prompt_length = processors[slot], sequences[slot], prompt_lengths[slot]
            # With speculative decoding, the rows before hold the draft tokens of this slot.
            drafts = [i for s, at, i in inputs if s == slot and len(ids) <= at <= position]
            output_ids = [*ids, *drafts][prompt_length : position + 1]
            if processor.zone <= len(output_ids) < processor.max_new_tokens:
                answer = processor.answer(ids[:prompt_length])
                answer.grow(output_ids)
                yield processor.row_edit(row, answer)
