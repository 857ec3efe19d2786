"""A hint in the log: a chat model is given a prompt without its chat template."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import Any

from langchain_llama_stop.chat.control_tokens import control_tokens
from langchain_llama_stop.chat.template import own_template
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.tokens.weak_cache import cached_per_object

_LOGGER = logging.getLogger("langchain_llama_stop")


@dataclass(slots=True)
class _Hint:
    """What a prompt in a model's template holds, until the hint is given."""

    marks: re.Pattern[str] | None


@cached_per_object
def _hint(tokenizer: Any) -> _Hint:
    template = own_template(tokenizer)
    return _Hint(control_tokens(tokenizer, template) if template else None)


def hint_at_template(tokenizer: Any, prompts: list[str], options: GenerationOptions) -> None:
    """Says, once a tokenizer, that a prompt holds nothing of the chat template that there is.

    A BOS at its beginning tells nothing. With stop strings a text is continued on purpose.
    """
    hint = _hint(tokenizer)
    if hint.marks is None or options.stop:
        return
    for prompt in prompts:
        if not hint.marks.search(prompt.removeprefix(tokenizer.bos_token or "")):
            hint.marks = None
            _LOGGER.warning(
                "The model has a chat template, but the prompt was not made by it: the model "
                "continues the text instead of answering it. ChatLlamaStop applies the template, "
                "and so does `tokenizer.apply_chat_template`."
            )
            return
