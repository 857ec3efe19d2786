"""Turns conversations into the tokens that a model is trained on, and checks what it will learn.

Each answer is rendered by the model's own chat template, after exactly the tokens that a chat would
put before it. Its tokens have a loss, its EOS included; no other tokens have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from langchain_llama_stop.chat.rendering import Rendering
from langchain_llama_stop.chat.template import around_answer, chat_ids
from langchain_llama_stop.tokens.encoding import common_length
from langchain_llama_stop.training.data import Conversation

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token without loss, as in torch's cross entropy."""


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation in tokens.

    Attributes:
        ids: All its tokens.
        answers: Begin and end (exclusive) of each answer that is supervised, its EOS included.
    """

    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]

    @property
    def labels(self) -> list[int]:
        """The ids, with `IGNORED` in place of each token that has no loss."""
        labels = [IGNORED] * len(self.ids)
        for begin, end in self.answers:
            labels[begin:end] = self.ids[begin:end]
        return labels

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the last answer."""
        return self.ids[: self.answers[-1][0]]

    @property
    def reference(self) -> tuple[int, ...]:
        """The last answer, its EOS included."""
        begin, end = self.answers[-1]
        return self.ids[begin:end]


def check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Refuses templates by which a chat and training put different tokens before an answer.

    Raises:
        ValueError: If they do, as templates of reasoning models with their thoughts.
    """
    question = [{"role": "user", "content": "?"}]
    prompt = Rendering(tokenizer, template, {}, ()).render(question, True).rstrip()
    before = around_answer(tokenizer, template)[0]
    if not before.startswith(prompt) or before[len(prompt) :].strip():
        raise ValueError(
            f"A chat has to begin an answer after {prompt[-40:]!r}, as the template's generation "
            f"prompt says, but with an answer the template gives {before[-60:]!r}. Thoughts of a "
            "reasoning model cannot be taught: set a `pipeline.tokenizer.chat_template` without "
            "them, and give the pipeline."
        )


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    template: str,
    eos: Collection[int],
) -> Example:
    """Renders and encodes a conversation, which ends with an answer, and locates its answers.

    What a template puts after the EOS of the last answer is left out. Some templates render earlier
    answers differently from the last one: an earlier answer has no loss if the tokens before it are
    not those that a chat would put there.

    Raises:
        ValueError: If the template cannot render the conversation.
    """
    ids = chat_ids(tokenizer, conversation, template=template)
    answers = []
    for turn, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        last = turn + 1 == len(conversation)
        prompt = chat_ids(tokenizer, conversation[:turn], template=template)
        whole = ids if last else chat_ids(tokenizer, conversation[: turn + 1], template=template)
        # A space before the answer may have been merged into the last token of the prompt.
        begin = common_length(prompt, ids) if last else len(prompt)
        if last or ids[: len(whole)] == whole and whole[:begin] == prompt:
            ends = [i for i in range(begin, len(whole)) if whole[i] in eos]
            answers.append((begin, ends[-1] + 1 if ends else len(whole)))
    return Example(tuple(ids[: answers[-1][1]]), tuple(answers))


def supervised_pieces(
    tokenizer: PreTrainedTokenizerBase, example: Example
) -> list[tuple[str, bool]]:
    """Decodes an example for a person to read.

    Returns:
        Pieces of its text, special tokens included, and for each whether its tokens have a loss.
    """
    cuts = [0, *(index for answer in example.answers for index in answer), len(example.ids)]
    # Decoded from the beginning each time: alone, a piece may lose its leading space.
    texts = [str(tokenizer.decode(list(example.ids[:cut]))) for cut in cuts]
    pieces = [
        (text[len(before) :], number % 2 == 1)
        for number, (before, text) in enumerate(pairwise(texts))
    ]
    return [piece for piece in pieces if piece[0]]


@dataclass(frozen=True, slots=True)
class Supervision:
    """Whether training will show the model where answers end.

    Attributes:
        examples: Number of examples.
        supervised: How many of them have a loss on the EOS of each answer.
        reasons: Why the others have not, with their counts, the most frequent first.
    """

    examples: int
    supervised: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """The share of examples whose EOS is supervised, 0 to 1."""
        return self.supervised / self.examples


def supervision(
    batches: Iterable[Mapping[str, torch.Tensor]],
    eos: Collection[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Supervision:
    """Counts the rows in which each supervised run of tokens ends with EOS.

    Args:
        batches: As the model will get them: `input_ids`, `labels` and `attention_mask`, each
            (batch, length).
        eos: The model's EOS ids.
        tokenizer: Names tokens in the reasons.
        max_length: Tokens to which rows are cut.
    """
    count, reasons = 0, Counter[str]()
    for batch in batches:
        columns = (batch[name].tolist() for name in ("input_ids", "labels", "attention_mask"))
        for ids, labels, attended in zip(*columns, strict=True):
            count += 1
            length = sum(attended)  # what follows is padding
            if reason := _reason(ids[:length], labels[:length], eos, tokenizer, max_length):
                reasons[reason] += 1
    return Supervision(count, count - sum(reasons.values()), tuple(reasons.most_common()))


def _reason(
    ids: list[int],
    labels: list[int],
    eos: Collection[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> str:
    """Why the EOS of an answer in a row has no loss; "" if each has one."""
    groups = groupby(range(len(labels)), lambda i: labels[i] != IGNORED)
    runs = [list(run) for has_loss, run in groups if has_loss]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for run in runs:
        last = run[-1]
        if labels[last] in eos:
            continue
        if last + 1 < len(ids) and ids[last + 1] in eos:
            return "EOS stands there, but its label is masked (a collator that masks the pad id)"
        if last + 1 >= max_length:
            return f"they are cut at `max_length` {max_length}"
        if others := [labels[i] for i in run if labels[i] in special]:
            return (
                f"an answer ends with {tokenizer.convert_ids_to_tokens(others[-1])} "
                f"({others[-1]}), which is not among the EOS ids {sorted(eos)}: set "
                "`pipeline.model.generation_config.eos_token_id`, and give the pipeline"
            )
        return (
            "the chat template puts no EOS after an answer: set a `pipeline.tokenizer."
            "chat_template` with `eos_token` there, and give the pipeline"
        )
    return "" if runs else "no token is supervised"
