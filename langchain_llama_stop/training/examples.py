"""Conversations into the tokens that a model is trained on, and a look at what it will learn.

Each answer is rendered by the model's own chat template, behind exactly the tokens that a chat
would put before it, and supervised up to its EOS. Nothing else is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

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
        ids: All of it.
        answers: Where the supervised tokens of each answer begin and end, its EOS included.
    """

    ids: tuple[int, ...]
    answers: tuple[tuple[int, int], ...]

    @property
    def labels(self) -> list[int]:
        """The ids with `IGNORED` in place of all that is not supervised."""
        labels = [IGNORED] * len(self.ids)
        for begin, end in self.answers:
            labels[begin:end] = self.ids[begin:end]
        return labels

    @property
    def prompt(self) -> tuple[int, ...]:
        """What stands before the last answer."""
        return self.ids[: self.answers[-1][0]]

    @property
    def reference(self) -> tuple[int, ...]:
        """The last answer."""
        begin, end = self.answers[-1]
        return self.ids[begin:end]


def check_template(tokenizer: PreTrainedTokenizerBase, template: str) -> None:
    """Refuses templates that put something between a prompt and its answer.

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja).

    Raises:
        ValueError: If a chat would put other tokens before an answer than training does: those
            of a reasoning model do, with its thoughts.
    """
    asked = [{"role": "user", "content": "?"}]
    prompt = str(
        tokenizer.apply_chat_template(
            asked, chat_template=template, add_generation_prompt=True, tokenize=False
        )
    ).rstrip()
    before = around_answer(tokenizer, template)[0]
    if not before.startswith(prompt) or before[len(prompt) :].strip():
        raise ValueError(
            f"A chat has to begin an answer behind {prompt[-40:]!r}, as the template's generation "
            f"prompt says, but with an answer the template gives {before[-60:]!r}. Thoughts of a "
            "reasoning model cannot be taught: set a `pipeline.tokenizer.chat_template` without "
            "them, and give the pipeline."
        )


def example(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    template: str,
    eos: Collection[int],
) -> Example:
    """Renders and encodes a conversation, and finds its answers in it.

    What a template puts behind the EOS of the last answer is left out.

    Args:
        tokenizer: The model's tokenizer.
        conversation: Ends with an answer.
        template: The chat template (Jinja).
        eos: The model's EOS ids.

    Returns:
        The example. An earlier answer that stands behind other tokens there than in a chat (some
        templates render these differently) is not supervised.

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
        till = ids if last else chat_ids(tokenizer, conversation[: turn + 1], template=template)
        # A space before the answer may have become one with the last token of the prompt.
        begin = common_length(prompt, ids) if last else len(prompt)
        if last or ids[: len(till)] == till and till[:begin] == prompt:
            ends = [i for i in range(begin, len(till)) if till[i] in eos]
            answers.append((begin, ends[-1] + 1 if ends else len(till)))
    return Example(tuple(ids[: answers[-1][1]]), tuple(answers))


def marked(tokenizer: PreTrainedTokenizerBase, labelled: Example) -> list[tuple[str, bool]]:
    """Gives an example as a person reads it.

    Args:
        tokenizer: The model's tokenizer.
        labelled: The example.

    Returns:
        Pieces of its text, special tokens included, and whether their tokens are supervised.
    """
    cuts = [0, *(place for answer in labelled.answers for place in answer), len(labelled.ids)]
    # From the beginning each time: alone, a piece may lose the space that it begins with.
    texts = [str(tokenizer.decode(list(labelled.ids[:cut]))) for cut in cuts]
    pieces = [
        (text[len(before) :], number % 2 == 1)
        for number, (before, text) in enumerate(pairwise(texts))
    ]
    return [piece for piece in pieces if piece[0]]


@dataclass(frozen=True, slots=True)
class Supervision:
    """Whether training will show the model where answers end.

    Attributes:
        examples: How many were looked at.
        ended: How many of them have a loss on an EOS at the end of each answer.
        reasons: Why the others have not, the commonest first, with their counts.
    """

    examples: int
    ended: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def share(self) -> float:
        """The share of examples whose EOS is supervised, 0 to 1."""
        return self.ended / self.examples


def supervision(
    batches: Iterable[Mapping[str, torch.Tensor]],
    eos: Collection[int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Supervision:
    """Looks at batches as the model will get them.

    Args:
        batches: `input_ids`, `labels` and `attention_mask`, (batch, length) each.
        eos: The model's EOS ids.
        tokenizer: The model's tokenizer.
        max_length: Tokens to which rows are cut.

    Returns:
        The share of rows in which each supervised run ends by EOS, and why others do not.
    """
    count, reasons = 0, Counter[str]()
    for batch in batches:
        columns = (batch[name].tolist() for name in ("input_ids", "labels", "attention_mask"))
        for ids, labels, attended in zip(*columns, strict=True):
            count += 1
            length = sum(attended)  # what is behind is padding
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
    runs = [[i for i, _ in run] for shown, run in groupby(enumerate(labels), _has_loss) if shown]
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
            "the chat template puts no EOS behind an answer: set a `pipeline.tokenizer."
            "chat_template` with `eos_token` there, and give the pipeline"
        )
    return "" if runs else "no token is supervised"


def _has_loss(place: tuple[int, int]) -> bool:
    return place[1] != IGNORED
