"""Messages into the ids of a prompt, by the tokenizer's own chat template, and safely.

No text in a message or a tool can become a control token (see `control_tokens.py`): `<|im_end|>`
or `[/INST]` in it ends no turn and opens none.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.chat.control_tokens import Guard, control_ids
from langchain_llama_stop.chat.rendering import Rendering
from langchain_llama_stop.chat.reshape import Message, as_text, described, fitting, with_system
from langchain_llama_stop.chat.thoughts import opened_thought
from langchain_llama_stop.chat.tool_formats import tool_format
from langchain_llama_stop.tokens.encoding import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger("langchain_llama_stop")

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('The roles take turns.') }}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('The roles are user and assistant.') }}{% endif %}"
    "{% endfor %}"
)
"""Llama 2's template, for tokenizers of that family that carry none."""


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns the chat template (Jinja) of a tokenizer, the default of several; "" if none."""
    template = tokenizer.chat_template
    return str((template.get("default") if isinstance(template, dict) else template) or "")


def chat_template(tokenizer: PreTrainedTokenizerBase, name: str = "") -> str:
    """Finds the chat template of a model.

    Args:
        tokenizer: The model's tokenizer.
        name: The model's name; it tells whether the model is a Llama 2 chat model.

    Returns:
        The tokenizer's own template, else Llama 2's for a Llama 2 chat model, with a warning.

    Raises:
        ValueError: If the tokenizer has none and the model is no Llama 2 chat model.
    """
    if template := own_template(tokenizer):
        return template
    if re.search(r"llama-?2.*chat", name, re.IGNORECASE):
        _log.debug("%s has no chat template: Llama 2's own is used", name)
        warnings.warn(
            f"The tokenizer of {name} carries no chat template: Llama 2's own is used ([INST], "
            "<<SYS>>). Set `tokenizer.chat_template` for another one.",
            stacklevel=2,
        )
        return LLAMA_2
    raise ValueError(
        f"The tokenizer of {name or 'this model'} has no chat template: it is a base model, or its "
        "template was lost. Set `pipeline.tokenizer.chat_template`, take the -Instruct or -chat "
        "variant, or use LlamaStopLLM with prompts of your own."
    )


def chat_ids(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    template: str,
    tools: Sequence[Mapping[str, Any]] = (),
    show_example: bool = True,
    answer_next: bool = False,
    continue_final_message: bool = False,
    close_thought: bool = False,
    split_special_tokens: bool = True,
    template_kwargs: Mapping[str, Any] = {},  # noqa: B006
) -> list[int]:
    """Renders and encodes a conversation.

    Args:
        tokenizer: The model's tokenizer.
        messages: The messages, at least one. Where the template refuses them or leaves out what
            they say, they are told in other turns (see `reshape.py`).
        template: The chat template (Jinja).
        tools: Tools in OpenAI's form. Where the template knows none, the system message describes
            them.
        show_example: Whether such a description is followed by an exchange that shows how tools
            are used. Small models call none without it when they may choose.
        answer_next: Whether an answer begins after the messages, also where the last one is an
            answer; else its tokens are counted, and nothing is begun after it.
        continue_final_message: Whether the last message is the beginning of the answer.
        close_thought: Whether a thought that the template begins for the answer ends at once.
        split_special_tokens: Whether contents are plain text; else control tokens in them are
            read as such.
        template_kwargs: What the template is given besides (`enable_thinking`).

    Returns:
        The ids of the prompt, up to where the answer begins or continues.

    Raises:
        ValueError: If the template cannot render the conversation.
    """
    rendering = Rendering(tokenizer, template, template_kwargs, tools)
    fmt = tool_format(template)
    if tools and knows_tools(template) and not rendering.tells_tools():
        rendering = replace(rendering, tools=described(tools))
    if tools and not (knows_tools(template) and rendering.tells_tools()):
        _log.debug("The chat template knows no tools: a system message describes %d", len(tools))
        messages = with_system(messages, fmt.tools_text(tools))
        if show_example:
            others = (n for n, message in enumerate(messages) if message["role"] != "system")
            start = next(others, len(messages))
            messages = [*messages[:start], *fmt.example(), *messages[start:]]
        rendering = Rendering(tokenizer, template, template_kwargs, ())
    told = [rendering.in_known_role(message) for message in messages]
    views = [told] if rendering.takes_calls(told) else []
    if not views or any(m["role"] == "tool" or m.get("tool_calls") for m in told):
        views.append(as_text(told, fmt.write))
    takes = partial(rendering.takes, answer_next=answer_next)
    found = (fitting(view, takes, answer_next=answer_next) for view in views)
    shape = next((shape for shape in found if shape is not None), None)
    if shape is None:
        raise ValueError(
            f"The chat template cannot render these {len(messages)} messages "
            f"({rendering.problem}): check their roles and order."
        )
    guard = Guard(tokenizer, template, [shape, list(tools)])
    final = [guard.message(message) for message in shape]
    rendering = replace(rendering, tools=guard.value(list(rendering.tools)))
    if continue_final_message:
        text = rendering.up_to_end_of(final)
    else:
        text = rendering.render(final, answer_next or final[-1]["role"] != "assistant")
    if close_thought and (tag := opened_thought(text)):
        text = f"{text.rstrip()}\n\n{tag}\n\n"
    if not split_special_tokens:
        return encode(tokenizer, guard.real(text), add_special_tokens=False)
    return guard.encode(text)


def knows_tools(template: str) -> bool:
    """Whether a chat template (Jinja) describes tools to the model itself."""
    return re.search(r"\btools\b", template) is not None


def around_answer(
    tokenizer: PreTrainedTokenizerBase, template: str, *, turn_follows: bool = False
) -> tuple[str, str]:
    """Finds what a template (Jinja) writes around the answer to a question, "?".

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template.
        turn_follows: Whether the user's next turn, "!", follows the answer.

    Returns:
        The text before the answer, and the text after it.
    """
    answer = "\ue000"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    if turn_follows:
        messages.append({"role": "user", "content": "!"})
    text = Rendering(tokenizer, template, {}, ()).render(messages, False)
    before, _, after = text.partition(answer)
    return before, after


def turn_end_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Finds the control token with which the template ends an answer, the special ones first.

    Some templates write none after the last answer: there it is the token that comes between an
    answer and the user's next words.

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja).

    Returns:
        Its id in a list; [] if no such token follows an answer.
    """
    ends = control_ids(tokenizer, template)
    for turn_follows in (False, True):
        after = around_answer(tokenizer, template, turn_follows=turn_follows)[1].lstrip()
        for i in ends:
            if after.startswith(tokenizer.added_tokens_decoder[i].content):
                return [i]
    return []
