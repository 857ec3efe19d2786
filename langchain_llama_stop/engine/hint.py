"""The answer hint: a sentence in a prompt's text that asks for brevity."""

from __future__ import annotations

import contextlib
from typing import Any

from jinja2 import TemplateError


def add_hint(tokenizer: Any, prompt: str, hint: str) -> str:
    """Adds the hint at the end of the user's last turn, or before a text without a chat template.

    The tokenizer's chat template tells how a user's turn ends.
    """
    turn_ends = ["[/INST]"]
    if tokenizer.chat_template:
        question = "\x00"
        asked = [{"role": "user", "content": question}]
        with contextlib.suppress(TemplateError, TypeError, ValueError):  # it wants tools, or blocks
            rendered = tokenizer.apply_chat_template(
                asked, tokenize=False, add_generation_prompt=True
            )
            turn_ends.insert(0, rendered.partition(question)[2])
    body = prompt.rstrip()
    for turn_end in map(str.strip, turn_ends):
        if turn_end and body.endswith(turn_end):
            cut = body.rindex(turn_end)
            turn = prompt[:cut]
            space = turn[len(turn.rstrip()) :]
            return f"{turn.rstrip()}\n\n{hint}{space}{prompt[cut:]}"
    return f"{hint}\n\n{prompt}"
