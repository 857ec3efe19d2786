"""Messages into the ids of a prompt, by the tokenizer's own chat template, and safely.

What stands in a message or a tool can never become a control token (see `placeholders`):
`<|im_end|>` or `[/INST]` in them end no turn and open none.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langchain_llama_stop.chat.control_tokens import Placeholders, control_tokens, segment_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, Any]
"""`role` ("system", "user", "assistant", "tool"), `content`, and as in OpenAI's form `tool_calls`
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

_EXAMPLE: tuple[Message, ...] = (
    {"role": "user", "content": "What time is it in Rome?"},
    {
        "role": "assistant",
        "content": '<tool_call>\n{"name": "get_time", "arguments": {"city": "Rome"}}\n</tool_call>',
    },
    {"role": "user", "content": "Result of get_time: 10:45"},
    {"role": "assistant", "content": "It is 10:45 in Rome."},
)
"""How tools are used."""


def own_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Gives the chat template that a tokenizer carries.

    Args:
        tokenizer: The model's tokenizer.

    Returns:
        The template (Jinja), the default one of several; "" if there is none.
    """
    template = tokenizer.chat_template
    return str((template.get("default") if isinstance(template, dict) else template) or "")


def chat_template(tokenizer: PreTrainedTokenizerBase, name: str = "") -> str:
    """Finds the chat template of a model.

    Args:
        tokenizer: The model's tokenizer.
        name: The model's name, by which Llama 2 is known.

    Returns:
        The tokenizer's own template, else Llama 2's for a Llama 2 chat model, with a warning.

    Raises:
        ValueError: If the tokenizer has none and the model is no Llama 2 chat model.
    """
    if template := own_template(tokenizer):
        return template
    if re.search(r"llama-?2.*chat", name, re.IGNORECASE):
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
        tools: Tools in OpenAI's form; told in the system message where the template knows none.
        show_example: Whether one exchange behind it shows then how they are used: a small model
            that may choose calls none otherwise.
        continue_final_message: Whether the last message is an answer that has begun.
        split_special_tokens: Whether contents are plain text; else control tokens in them are
            read as such.

    Returns:
        The ids of the prompt, up to where the answer begins or goes on.

    Raises:
        ValueError: If the template cannot render the conversation.
    """
    if tools and not knows_tools(template):
        count = next((n for n, m in enumerate(messages) if m["role"] != "system"), len(messages))
        told = {"role": "system", "content": tools_text(tools)}
        example = _EXAMPLE if show_example else ()
        messages = [told, *messages[:count], *example, *messages[count:]]
        tools = ()
    control = control_tokens(tokenizer, template)
    for view in _views(merged(messages), template):
        held = Placeholders(control)
        shown: Any = [held.guarded(tool) for tool in tools]
        try:
            text = tokenizer.apply_chat_template(
                [held.message(message) for message in view],
                tools=shown or None,
                chat_template=template,
                # Behind an answer no other one begins: its tokens are counted, or it goes on.
                add_generation_prompt=view[-1]["role"] != "assistant",
                tokenize=False,
            )
        except Exception as error:  # a template raises what it likes
            problem: Exception | str = error
            continue
        segments = list(held.segments(str(text)))
        found = [number for number, _ in segments]
        if all(found.count(number) == 1 for number in held.needed):
            if continue_final_message:
                segments = segments[: 1 + found.index(held.needed[-1])]
            if not split_special_tokens:
                whole = "".join(text for _, text in segments)
                ids: list[int] = tokenizer(whole, add_special_tokens=False)["input_ids"]
                return ids
            return segment_ids(tokenizer, control, segments)
        problem = "it leaves out or repeats what messages say"
    raise ValueError(
        f"The chat template cannot render these {len(messages)} messages ({problem}): check their "
        "roles and order."
    )


def knows_tools(template: str) -> bool:
    """Says whether a chat template tells the model of tools itself.

    Args:
        template: The chat template (Jinja).

    Returns:
        Whether it does.
    """
    return re.search(r"\btools\b", template) is not None


def tools_text(tools: Sequence[Mapping[str, Any]]) -> str:
    """Tells a model of its tools, for templates that know none.

    Args:
        tools: Tools in OpenAI's form.

    Returns:
        A text for the system message.
    """
    lines = [json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools]
    return (
        "You can call these functions:\n"
        + "\n".join(lines)
        + "\n\nTo call a function, answer with nothing but this:\n"
        '<tool_call>\n{"name": <the function>, "arguments": <its arguments as JSON>}\n</tool_call>'
    )


def merged(messages: Sequence[Message]) -> list[Message]:
    """Joins neighbours of one role, except tools' results.

    Args:
        messages: The messages.

    Returns:
        The conversation with fewer, longer ones.
    """
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


def _views(messages: list[Message], template: str) -> Iterator[list[Message]]:
    """The conversation as it is, then in roles that every template has."""
    if "tool_calls" in template or not any(m.get("tool_calls") for m in messages):
        yield messages
    spoken = []
    for message in messages:
        content = message["content"]
        if message["role"] == "tool":
            name = f" of {message['name']}" if message.get("name") else ""
            spoken.append({"role": "user", "content": f"Result{name}: {content}"})
            continue
        calls = "\n".join(
            f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
            for call in message.get("tool_calls", ())
        )
        spoken.append(
            {"role": message["role"], "content": "\n".join(filter(None, (content, calls)))}
        )
    spoken = merged(spoken)
    yield spoken
    # A template without a system role, or one whose conversations begin with a user.
    system = spoken[0]["content"] if spoken[0]["role"] == "system" else ""
    rest = spoken[1:] if system else spoken
    if not rest or rest[0]["role"] != "user":
        rest = [{"role": "user", "content": ""}, *rest]
    text = "\n\n".join(filter(None, (system, rest[0]["content"])))
    yield [{**rest[0], "content": text}, *rest[1:]]


def around_answer(tokenizer: PreTrainedTokenizerBase, template: str) -> tuple[str, str]:
    """Finds what a template writes before and behind the answer to a question, "?".

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja).

    Returns:
        Both texts.
    """
    said = "\ue000"
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}]
    text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    before, _, behind = str(text).partition(said)
    return before, behind


def turn_end_ids(tokenizer: PreTrainedTokenizerBase, template: str) -> list[int]:
    """Finds the token with which the template ends an answer: a special one, or an added one.

    Args:
        tokenizer: The model's tokenizer.
        template: The chat template (Jinja).

    Returns:
        Its id in a list; [] if an answer is not followed by one.
    """
    behind = around_answer(tokenizer, template)[1].lstrip()
    added = sorted(tokenizer.added_tokens_decoder.items(), key=lambda item: not item[1].special)
    return [i for i, token in added if token.content and behind.startswith(token.content)][:1]
