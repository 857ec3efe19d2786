"""What a stream holds back: it gives out only text that no later token can change.

In chat, `chat_models.py` also holds back what may become a tool call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_llama_stop.ending.stop_strings import held_back, held_back_ids

if TYPE_CHECKING:
    from langchain_llama_stop.engine.sequence import Sequence


def settled_text(sequence: Sequence) -> str:
    """The text of a growing answer that no further token can change, outside of landing."""
    builder, options, ids = sequence.builder, sequence.options, sequence.generated
    assert builder is not None
    decode = sequence.detokenizer.decode
    # Pending bytes may still become any character, so that a stop string may continue right
    # after the settled text.
    text = builder.text[: builder.settled]
    if options.stop:
        text = text[: len(text) - held_back(text, options.stop)]
    if special_stops := sequence.special_stops(ids):
        full = decode(ids, special=True)
        full = full[: sequence.detokenizer.settled(ids, full, special=True)]
        length = len(full) - held_back(full, special_stops)
        text = text[: len(sequence.visible_text(ids, length))]
    if held := held_back_ids(ids, options.stop_token_ids) if options.stop_token_ids else 0:
        text = text[: len(decode(ids[:-held]))]
    return text[: sequence.last_end(text, growing=True)] if options.on_length == "trim" else text
