"""Messages into the ids of a prompt, by the tokenizer's own chat template, and safely.

No text in a message or a tool can become a control token (see `control_tokens.py`): `<|im_end|>`
or `[/INST]` in it ends no turn and opens none.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.chat.control_tokens import Placeholders, control_tokens, segment_ids
from langchain_llama_stop.chat.tool_formats import FORMATS, ToolFormat, tool_format
from langchain_llama_stop.tokens.encoding import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_log = logging.getLogger("langchain_llama_stop")

Message = dict[str, Any]
"""`role` ("system", "user", "assistant", "tool") and `content`; as in OpenAI's form, `tool_calls`
(assistant), `name` and `tool_call_id` (tool)."""

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}"
    "{% for message in messages %}"
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
    continue_final_message: bool = False,
    split_special_tokens: bool = True,
) -> list[int]:
    """Renders and encodes a conversation.

    Args:
        tokenizer: The model's tokenizer.
        messages: The messages, at least one; neighbours of one role are merged.
        template: The chat template (Jinja).
        tools: Tools in OpenAI's form. Where the template knows none, the system message describes
            them.
        show_example: Whether such a description is followed by an exchange that shows how tools
            are used. Small models call none without it when they may choose.
        continue_final_message: Whether the last message is the beginning of the answer.
        split_special_tokens: Whether contents are plain text; else control tokens in them are
            read as such.

    Returns:
        The ids of the prompt, up to where the answer begins or continues.

    Raises:
        ValueError: If the template cannot render the conversation.
    """
    fmt = tool_format(template)
    if knows_tools(template):
        fmt = FORMATS[0]  # only for calls that the template refuses: `_views` writes them as text
    elif tools:
        _log.debug("The chat template knows no tools: a system message describes %d", len(tools))
        count = next((n for n, m in enumerate(messages) if m["role"] != "system"), len(messages))
        description = {"role": "system", "content": fmt.tools_text(tools)}
        example = fmt.example() if show_example else ()
        messages = [description, *messages[:count], *example, *messages[count:]]
        tools = ()
    control = control_tokens(tokenizer, template)
    for view in _views(merged(messages), template, fmt):
        placeholders = Placeholders(control)
        safe_tools: Any = [placeholders.replace_hostile(tool) for tool in tools]
        try:
            rendered = tokenizer.apply_chat_template(
                [placeholders.replace_message(message) for message in view],
                tools=safe_tools or None,
                chat_template=template,
                # No new answer begins after an answer: its tokens are counted, or it is continued.
                add_generation_prompt=view[-1]["role"] != "assistant",
                tokenize=False,
            )
        except Exception as error:  # templates raise errors of any type
            problem: Exception | str = error
            # Only its type is logged: its text may quote a message.
            _log.debug("The chat template refused these roles (%s)", type(error).__name__)
            continue
        segments = list(placeholders.segments(str(rendered)))
        numbers = [number for number, _ in segments]
        if all(numbers.count(number) == 1 for number in placeholders.required):
            if continue_final_message:
                segments = segments[: 1 + numbers.index(placeholders.required[-1])]
            if not split_special_tokens:
                whole = "".join(text for _, text in segments)
                return encode(tokenizer, whole, add_special_tokens=False)
            return segment_ids(tokenizer, control, segments)
        problem = "it leaves out or repeats what messages say"
        _log.debug("The chat template left out or repeated a text with these roles")
    raise ValueError(
        f"The chat template cannot render these {len(messages)} messages ({problem}): check their "
        "roles and order."
    )


def knows_tools(template: str) -> bool:
    """Whether a chat template (Jinja) describes tools to the model itself."""
    return re.search(r"\btools\b", template) is not None


def merged(messages: Sequence[Message]) -> list[Message]:
    """Joins neighbours of one role, except tools' results, into one message each."""
    joined: list[Message] = []
    for message in messages:
        last = joined[-1] if joined else None
        if last and last["role"] == message["role"] != "tool":
            texts = [m["content"] for m in (last, message) if m["content"]]
            calls = [*last.get("tool_calls", ()), *message.get("tool_calls", ())]
            joined[-1] = {**last, "content": "\n\n".join(texts)}
            if calls:
                joined[-1]["tool_calls"] = calls
        else:
            joined.append(dict(message))
    return joined


def _views(messages: list[Message], template: str, fmt: ToolFormat) -> Iterator[list[Message]]:
    """The conversation as it is, then in roles that every template has."""
    if "tool_calls" in template or not any(m.get("tool_calls") for m in messages):
        yield messages
    simple = []  # without calls and results of tools
    for message in messages:
        role, content = message["role"], message["content"] or ""
        if role == "tool":
            name = f" of {message['name']}" if message.get("name") else ""
            role, content = "user", f"Result{name}: {content}"
        elif functions := [call["function"] for call in message.get("tool_calls", ())]:
            calls = fmt.write([(f["name"], f.get("arguments", {})) for f in functions])
            content = f"{content}\n{calls}" if content else calls
        simple.append({"role": role, "content": content})
    simple = merged(simple)
    yield simple
    # A template without a system role, or one whose conversations start with a user.
    system = simple[0]["content"] if simple[0]["role"] == "system" else ""
    rest = simple[1:] if system else simple
    if not rest or rest[0]["role"] != "user":
        rest = [{"role": "user", "content": ""}, *rest]
    text = "\n\n".join(filter(None, (system, rest[0]["content"])))
    yield [{**rest[0], "content": text}, *rest[1:]]


def around_answer(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    """Finds what a template (Jinja) writes around the answer to a question, "?".

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template.

    Returns:
        The text before the answer, and the text after it.
    """
    answer = "\ue000"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    before, _, after = str(text).partition(answer)
    return before, after


def turn_end_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Finds the token with which the template ends an answer: a special one, or an added one.

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja).

    Returns:
        Its id in a list; [] if no such token follows an answer.
    """
    after = around_answer(tokenizer, template)[1].lstrip()
    added = sorted(tokenizer.added_tokens_decoder.items(), key=lambda item: not item[1].special)
    return [i for i, token in added if token.content and after.startswith(token.content)][:1]
