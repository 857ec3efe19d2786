"""What is diagnosed: a pipeline, the options of a call, a prompt; and the facts checks need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from langchain_llama_stop._optional import Progress
from langchain_llama_stop.chat.template import around_answer, chat_ids, own_template, turn_end_ids
from langchain_llama_stop.diagnosis.eos_scores import EosScores, eos_scores
from langchain_llama_stop.engine.config import eos_token_ids, lookup, refusals, vocabulary_size
from langchain_llama_stop.engine.refusals import Refusal, encode_settings
from langchain_llama_stop.options import GenerationOptions

DataCollator = Callable[[list[dict[str, Any]]], Any]
"""Makes a batch with `labels` from rows of `input_ids`, `attention_mask` and `labels`."""


@dataclass
class Case:
    """What is diagnosed, and the facts that checks need; each is computed once, when first used.

    Attributes:
        pipeline: The pipeline.
        options: The options of a call.
        prompt: A prompt of the user, or None.
        references: Questions and complete answers; () leaves the model's own scores out.
        data_collator: The collator of a fine-tuning, or None.
        progress: Called before the model runs.
    """

    pipeline: Any
    options: GenerationOptions
    prompt: str | None = None
    references: Sequence[tuple[str, str]] = ()
    data_collator: DataCollator | None = None
    progress: Progress | None = None

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.pipeline.tokenizer

    @cached_property
    def template(self) -> str:
        """The chat template; "" if there is none."""
        return own_template(self.tokenizer)

    @cached_property
    def template_error(self) -> str:
        """Why the template cannot render a conversation; "" if it can."""
        try:
            turn_end_ids(self.tokenizer, self.template or "{{ messages }}")
        except Exception as error:  # a template can raise anything
            return " ".join(str(error).split()) or type(error).__name__
        return ""

    @cached_property
    def turn_end(self) -> int | None:
        """The token with which the template ends an answer; None without any.

        The token that opens the next turn is one only where it is EOS (GLM's `<|user|>`).
        """
        if not self.template or self.template_error:
            return None
        before, after = around_answer(self.tokenizer, self.template)
        for token_id in turn_end_ids(self.tokenizer, self.template):
            token = self.tokenizer.added_tokens_decoder[token_id].content
            opens = token in before.partition("?")[0] and token not in after
            if token_id in self.eos or not opens:
                return token_id
        return None

    @cached_property
    def eos(self) -> list[int]:
        """The EOS ids; [] if there are none."""
        try:
            return eos_token_ids(self.pipeline, self.options)
        except ValueError:
            return []

    @cached_property
    def prompt_ids(self) -> list[int]:
        """The prompt as the model gets it; without one, a question in the template."""
        if self.prompt is not None:
            return list(self.tokenizer(self.prompt, **encode_settings(self.pipeline))["input_ids"])
        if not self.template or self.template_error:
            return []
        question = [{"role": "user", "content": "What is tea?"}]
        return chat_ids(self.tokenizer, question, template=self.template)

    @cached_property
    def eos_scores(self) -> EosScores | None:
        """The model's own scores for EOS; None if it cannot be asked, or there is no reference."""
        askable = self.eos and all(token_id in range(self.vocabulary) for token_id in self.eos)
        if not self.references or not askable or (self.template and self.template_error):
            return None
        if self.progress:
            self.progress("Asking the model where it would end")
        return eos_scores(self.pipeline, self.references, self.eos, self.turn_end)

    @property
    def vocabulary(self) -> int:
        """The number of tokens that the model has embeddings for."""
        return vocabulary_size(self.pipeline.model)

    @cached_property
    def refusals(self) -> list[Refusal]:
        """What the pipeline and the model say and no call does."""
        return list(refusals(self.pipeline, self.options))

    def lookup(self, name: str) -> Any:
        """Returns a setting of transformers' `GenerationConfig`, as a call would use it."""
        return lookup(self.pipeline, self.options, name)

    def text_ids(self, text: str) -> list[int]:
        """Encodes a text; special tokens in it become control tokens."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def token_text(self, token_id: int) -> str:
        """Returns a token with its id, for messages."""
        return f"{self.tokenizer.convert_ids_to_tokens(token_id)} ({token_id})"

    def unset_line(self, name: str) -> str:
        """Returns the line that removes a generation setting, in the place where it was set."""
        if name in self.options.pipeline_kwargs:
            return f"no {name!r} in `pipeline_kwargs`"
        if getattr(self.pipeline.model.generation_config, name, None):
            return f"pipeline.model.generation_config.{name} = None"
        return f"no {name!r} in the settings that the pipeline was built with"

    def eos_line(self, ids: Sequence[int]) -> str:
        """Returns the line that sets the EOS ids, in the place where they were set."""
        if "eos_token_id" in self.options.pipeline_kwargs:
            return f"pipeline_kwargs={{'eos_token_id': {list(ids)}}}"
        return f"pipeline.model.generation_config.eos_token_id = {list(ids)}"
