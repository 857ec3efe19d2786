"""One request at the engine: a sequence, what chooses its tokens, and where its answer goes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any

import torch

from langchain_llama_stop.engine.decode import Decoder
from langchain_llama_stop.engine.forward import Logits, run_model
from langchain_llama_stop.engine.oom import out_of_memory, without_frames
from langchain_llama_stop.engine.outbox import Outbox
from langchain_llama_stop.engine.sequence import Sequence


class Request:
    """A sequence that is being decoded.

    Attributes:
        sequence: The prompt and its answer.
        finished: Whether it needs no more passes.
        aborted: Whether its caller does not want it any more; set from any thread.
        failed: Whether an error has ended it.
        steps: How many passes it has taken.
        max_rows: Requests of its kind, shared passes or not, that may run once it does. It gets
            lower when memory has run out for them.
        starved: Whether memory has run out with it: then `max_rows` counts both kinds, and holds
            for those that come later.
        prefill_alone: Whether it may share no prefill, because one with others has failed.
        prompt_logits: The logits after the prompt, (vocab,).
        threads: Threads that its caller lets torch use for one operation.
    """

    def __init__(
        self,
        sequence: Sequence,
        decoder: Decoder,
        outbox: Outbox,
        context: Context,
        *,
        until: float,
        max_rows: int,
        prefix_cache: int,
        unbatchable: bool,
        model_kwargs: dict[str, Any],
        fresh_kwargs: Callable[[], dict[str, Any]],
    ) -> None:
        """Starts before the prefill.

        Args:
            sequence: The prompt and its answer.
            decoder: Chooses its tokens.
            outbox: Where pieces of the answer, and its end, go to.
            context: The caller's context variables: the caller's own processors run in it.
            until: The time by `time.monotonic` at which the request leaves in any case.
            max_rows: Requests that may run once it does.
            prefix_cache: Tokens that the model's prefix cache may hold.
            unbatchable: Whether its passes cannot be shared.
            model_kwargs: What transformers passes on from step to step, if they cannot.
            fresh_kwargs: Makes them anew.
        """
        self.sequence, self.decoder, self.max_rows = sequence, decoder, max_rows
        self.prefix_cache, self.unbatchable = prefix_cache, unbatchable
        self.model_kwargs, self.fresh_kwargs = model_kwargs, fresh_kwargs
        self.threads = torch.get_num_threads()
        self._outbox, self._context, self._until, self._sent = outbox, context, until, 0
        self._writing = threading.Lock()
        self.finished = self.failed = self.aborted = self.starved = self.prefill_alone = False
        self.steps = 0
        self.prompt_logits: torch.Tensor | None = None

    @property
    def ids(self) -> list[int]:
        """Prompt and answer so far: the next logits are those after them."""
        return self.sequence.ids + self.sequence.generated

    @property
    def newest(self) -> int:
        """The newest token of the answer."""
        return self.sequence.generated[-1]

    @property
    def leaves(self) -> bool:
        """Whether its caller does not wait for it any more."""
        return self.aborted or time.monotonic() >= self._until

    def restart(self) -> None:
        """Lets one that shares no passes make all of them again: one that failed has spoiled them.

        The answer so far stays as it is; see `unbatched_pass`.
        """
        self.steps, self.model_kwargs = 0, {}

    def advance(
        self, logits: torch.Tensor, greedy: list[tuple[int, float]]
    ) -> BaseException | None:
        """Takes the logits of a pass; see `Decoder.decode`.

        Returns:
            An error if memory has run out; if the decoder is `repeatable`, the same logits can be
            taken again. Any other error ends the request.
        """
        with self._writing:
            if self.aborted:
                return None
            try:
                self._context.run(self.decoder.decode, logits, greedy)
            except BaseException as error:  # an interrupt too: it is meant for this call alone
                if out_of_memory(error):
                    return without_frames(error)
                self.end(error)
                return None
        self.steps += 1
        if self.sequence.finished:
            self.end()
        elif len(text := self.sequence.streamable) > self._sent:
            self._outbox.put((text[self._sent :], None))
            self._sent = len(text)
        return None

    def wait_until_left(self) -> None:
        """Waits until nobody writes to the sequence any more, after the request was aborted."""
        with self._writing:
            return

    def end(self, error: BaseException | None = None) -> None:
        """Ends the request, early or not; its caller gets the error."""
        if not self.finished:
            self.finished, self.failed, self.model_kwargs = True, error is not None, {}
            self._outbox.put((None, error))


def unbatched_pass(model: Any, request: Request) -> Logits:
    """One forward pass of a request that cannot share a batch; returns the logits, (1, 1, vocab).

    Its state is recurrent, or it uses no cache: the pass is made as transformers' own loop does.
    After a restart the passes over the answer so far come again, one by one: read at once, they
    could give another state.
    """
    kwargs = request.model_kwargs or request.fresh_kwargs()
    length = len(request.sequence.ids) + request.steps
    inputs = model.prepare_inputs_for_generation(
        request.decoder.input_ids[:, :length],
        next_sequence_length=1 if request.steps and kwargs["use_cache"] else None,
        is_first_iteration=not request.steps,
        **kwargs,
    )
    outputs = run_model(model, inputs)
    request.model_kwargs = model._update_model_kwargs_for_generation(outputs, kwargs)
    return Logits.of(outputs.logits[:, -1:])
