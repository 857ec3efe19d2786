"""One request at the scheduler: its sequences, the pass that it needs next, and what ended it."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from langchain_llama_stop.engine.decode import Pass, Passes
from langchain_llama_stop.engine.forward import run_model
from langchain_llama_stop.tokens.encoding import tokenizer_lock


class Request:
    """Sequences of one call that are decoded together.

    Attributes:
        next_pass: The forward pass that the request needs next; None if it is finished.
        steps: How many times the request has advanced.
        error: The error that ended it, if one did.
        prefill_alone: Whether it may share no prefill, because one with others has failed.
        prompt_logits: The logits after the prompt, (vocab,), of a request with one sequence.
        model_kwargs: What transformers passes on from step to step, of an unbatchable request.
    """

    def __init__(
        self,
        passes: Passes,
        prompts: list[list[int]],
        answers: list[list[int]],
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_rows: int,
        prefix_cache: int,
        unbatchable: bool,
    ) -> None:
        """Starts the decode loop of a call.

        Args:
            passes: The decode loop.
            prompts: The ids of each sequence's prompt.
            answers: The ids of each sequence's answer, which grow.
            tokenizer: Its lock is held while the request advances.
            max_rows: Rows that a batch may have once the request has joined it. It gets lower
                when memory ran out for them.
            prefix_cache: Tokens that the model's prefix cache may hold.
            unbatchable: Whether its passes cannot be shared.
        """
        self.passes, self.prompts, self.answers = passes, prompts, answers
        self.max_rows, self.prefix_cache, self.unbatchable = max_rows, prefix_cache, unbatchable
        self.next_pass: Pass | None = next(passes)
        self.steps = 0
        self.error: BaseException | None = None
        self.prefill_alone = False
        self.prompt_logits: torch.Tensor | None = None
        self.model_kwargs: dict[str, Any] = {}
        self._lock = tokenizer_lock(tokenizer)

    def advance(self, logits: torch.Tensor) -> None:
        """Takes the logits of a pass, (rows of the pass, 1 or more tokens, vocab)."""
        try:
            with self._lock:
                self.next_pass = self.passes.send(logits)
        except StopIteration:
            self.next_pass = None
        except BaseException as error:
            self.end(error)
            if not isinstance(error, Exception):
                raise
        self.steps += 1

    def end(self, error: BaseException | None = None) -> None:
        """Ends the request early; its caller gets the error."""
        self.error, self.next_pass, self.model_kwargs = error, None, {}
        self.passes.close()

    @property
    def finished(self) -> bool:
        """Whether the request needs no more passes."""
        return self.next_pass is None

    @property
    def running_rows(self) -> int:
        """How many of its sequences are not finished."""
        next_pass = self.next_pass  # the leader may set it to None at any time
        return len(next_pass.rows) if next_pass else 0

    def is_running(self, row: int) -> bool:
        """Whether a sequence, by its index in the request, is not finished."""
        return self.next_pass is not None and row in self.next_pass.rows

    def prefill_ids(self) -> dict[int, list[int]]:
        """Prompt and answer so far of each running sequence: the next logits are those after it."""
        texts = enumerate(zip(self.prompts, self.answers, strict=True))
        return {row: [*p, *a] for row, (p, a) in texts if self.is_running(row)}


def unbatched_pass(model: Any, request: Request) -> torch.Tensor:
    """One forward pass of a request that cannot share a batch; returns (rows, 1, vocab).

    Its state is recurrent, or it uses no cache: the pass is made as transformers' own loop does.
    """
    next_pass = request.next_pass
    assert next_pass is not None
    if not request.steps:
        request.model_kwargs = next_pass.model_kwargs
    kwargs = request.model_kwargs
    inputs = model.prepare_inputs_for_generation(
        next_pass.input_ids,
        next_sequence_length=1 if request.steps and kwargs["use_cache"] else None,
        is_first_iteration=not request.steps,
        **kwargs,
    )
    outputs = run_model(model, inputs)
    request.model_kwargs = model._update_model_kwargs_for_generation(outputs, kwargs)
    logits: torch.Tensor = outputs.logits[:, -1:]
    return logits[next_pass.rows]
