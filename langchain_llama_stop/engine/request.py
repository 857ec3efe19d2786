"""One call on its way through the model: what it wants next, how far it is, what has ended it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from langchain_llama_stop.engine.decode import Pass, Passes
from langchain_llama_stop.tokens.encoding import tokenizer_lock


class Job:
    """The rows of one call on their way through the model.

    Attributes:
        steps: How many times the job has got on.
        error: What has ended it, if that was an error.
    """

    def __init__(
        self,
        passes: Passes,
        prompts: Sequence[list[int]],
        answers: Sequence[list[int]],
        *,
        tokenizer: PreTrainedTokenizerBase,
        most_rows: int,
        prefix_cache: int,
        alone: bool,
    ) -> None:
        """Takes what a call has prepared.

        Args:
            passes: Its decoding.
            prompts: Ids of the prompts.
            answers: Ids of the answers, which grow.
            tokenizer: Its lock is held while the job gets on.
            most_rows: Rows that may be in a pass which the job joins; less, once memory has not
                sufficed for them.
            prefix_cache: Tokens that the model's prefix cache may hold.
            alone: Whether its passes cannot be shared.
        """
        self.passes, self.prompts, self.answers = passes, prompts, answers
        self.most_rows, self.prefix_cache, self.alone = most_rows, prefix_cache, alone
        self.wanted: Pass | None = next(passes)
        self.steps = 0
        self.error: BaseException | None = None
        self.apart = False  # to be read by itself: reading it along with others has failed
        self.first: torch.Tensor | None = None  # scores behind a single prompt, (vocab,)
        self.model_kwargs: dict[str, Any] = {}  # of a job that is alone
        self._lock = tokenizer_lock(tokenizer)

    def get_on(self, logits: torch.Tensor) -> None:
        """Takes the scores of a pass.

        Args:
            logits: Scores behind the tokens, (rows of the pass, 1 or more, vocab).
        """
        try:
            with self._lock:
                self.wanted = self.passes.send(logits)
        except StopIteration:
            self.wanted = None
        except BaseException as error:
            self.end(error)
            if not isinstance(error, Exception):
                raise
        self.steps += 1

    def end(self, error: BaseException | None = None) -> None:
        """Ends the job before its time; its caller gets the error."""
        self.error, self.wanted, self.model_kwargs = error, None, {}
        self.passes.close()

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.wanted is None

    @property
    def running(self) -> int:
        """How many rows have not finished."""
        wanted = self.wanted
        return len(wanted.rows) if wanted else 0

    def unread(self) -> dict[int, list[int]]:
        """What has to be read of each row that has not finished: its prompt and its answer so far.

        The scores behind that are what the decoding waits for.
        """
        every = zip(self.prompts, self.answers, strict=True)
        return {row: [*p, *a] for row, (p, a) in enumerate(every) if self.wants(row)}

    def wants(self, row: int) -> bool:
        """Whether a row has not finished."""
        return self.wanted is not None and row in self.wanted.rows


def pass_alone(model: Any, job: Job) -> torch.Tensor:
    """Makes one pass of a job whose states are its own affair, as transformers' own loop does.

    Args:
        model: The model.
        job: The job; it wants a pass.

    Returns:
        The scores behind the tokens, (rows of the pass, 1, vocab).
    """
    wanted = job.wanted
    assert wanted is not None
    if not job.steps:
        job.model_kwargs = wanted.model_kwargs
    kwargs = job.model_kwargs
    inputs = model.prepare_inputs_for_generation(
        wanted.input_ids,
        next_sequence_length=1 if job.steps and kwargs["use_cache"] else None,
        is_first_iteration=not job.steps,
        **kwargs,
    )
    outputs = model(**inputs, return_dict=True)
    job.model_kwargs = model._update_model_kwargs_for_generation(outputs, kwargs)
    logits: torch.Tensor = outputs.logits[:, -1:]
    return logits[wanted.rows]
