"""Which conversations reach the model, with `ChatHuggingFace` and with us.

Conversations as agents and other providers' models leave them are sent to the demo model, under its
own chat template and under one as Gemma 2 has it: no system, turns that alternate. A logits
processor sees the prompt. It holds if all texts are in it, in their order and as text, and if an
answer begins after them. Prints a Markdown table: `make bench-conversations`.
"""

import argparse
import importlib.metadata
import logging
from typing import Any

import torch
import transformers
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_huggingface import ChatHuggingFace, HuggingFacePipeline

from langchain_llama_stop import ChatLlamaStop, load_pipeline

ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Turns have to alternate.') }}{% endif %}"
    "{{ '<|im_start|>' + {'user': 'user', 'assistant': 'assistant'}[m.role] + '\\n' }}"
    "{{ m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ANSWER = "<|im_start|>assistant\n"
CALL = {"name": "look", "args": {"city": "Oslo"}, "id": "toolu_0123456789abcdef"}
PICTURE = {"type": "image", "base64": "iVBORw0K", "mime_type": "image/png"}


def asks(*tail: BaseMessage) -> list[BaseMessage]:
    """A conversation that begins with a question."""
    return [HumanMessage("Ask."), *tail]


SHAPES: dict[str, list[BaseMessage]] = {
    "a question": asks(),
    "a system message first": [SystemMessage("Brief."), *asks()],
    "a system message in the middle": asks(
        AIMessage("Said."), SystemMessage("Brief."), HumanMessage("More?")
    ),
    "the last message is an AI message": asks(AIMessage("Said.")),
    "two questions in a row": asks(HumanMessage("More?")),
    "an empty AI message": asks(AIMessage(""), HumanMessage("More?")),
    "an AI message first": [AIMessage("Said."), *asks()],
    "a call and its result": asks(
        AIMessage("", tool_calls=[CALL]), ToolMessage("Cold.", tool_call_id=CALL["id"])
    ),
    "a result whose call is gone": asks(ToolMessage("Cold.", tool_call_id="x")),
    "a result of text and a picture": asks(
        AIMessage("", tool_calls=[CALL]),
        ToolMessage([{"type": "text", "text": "Cold."}, PICTURE], tool_call_id=CALL["id"]),
    ),
    "a `ChatMessage` of a critic": asks(ChatMessage("Bad.", role="critic"), HumanMessage("More?")),
    "text in blocks": [HumanMessage([{"type": "text", "text": "Ask."}])],
    "thoughts of another provider": asks(
        AIMessage([{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Said."}]),
        HumanMessage("More?"),
    ),
    "a refusal": asks(
        AIMessage([{"type": "refusal", "refusal": "I cannot."}]), HumanMessage("More?")
    ),
}


class Prompt:
    """A logits processor that keeps the prompt."""

    ids: list[int] | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Changes nothing."""
        if self.ids is None:
            self.ids = input_ids[0].tolist()
        return scores


def texts(messages: list[BaseMessage]) -> list[str]:
    """What has to reach the model, in its order."""
    said = list[str]()
    for message in messages:
        refusals = [b.get("refusal", "") for b in message.content if isinstance(b, dict)]
        calls = [call["name"] for call in getattr(message, "tool_calls", ())]
        said += [message.text, *refusals, *calls]
    return [text for text in said if text]


def outcome(chat: Any, tokenizer: Any, messages: list[BaseMessage], **options: Any) -> str:
    """What comes of a conversation: "told", or what goes wrong."""
    seen = Prompt()
    try:
        if isinstance(chat, ChatHuggingFace):
            processors = transformers.LogitsProcessorList([seen])
            chat.invoke(messages, pipeline_kwargs={"logits_processor": processors, **options})
        else:
            chat.invoke(messages, logits_processor=[seen], **options)
    except Exception as error:  # of any type: this is what is looked for
        return type(error).__name__
    prompt, end = tokenizer.decode(seen.ids), 0
    for text in texts(messages):
        found = prompt.find(text, end)
        if found < 0:
            return f"{text!r} is left out"
        end = found + len(text)
    if "'type':" in prompt:
        return "blocks as Python writes them"
    return "told" if prompt.endswith(ANSWER) else "no answer begins"


def main() -> None:
    """Sends all conversations to both classes under both templates, and prints the table."""
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    pipeline = load_pipeline("demo", dtype="float32")
    tokenizer, model = pipeline.tokenizer, pipeline.model
    plain = transformers.pipeline(
        "text-generation", model=model, tokenizer=tokenizer, return_full_text=False
    )
    other = ChatHuggingFace(
        llm=HuggingFacePipeline(pipeline=plain), tokenizer=tokenizer, model_id="demo"
    )
    ours = ChatLlamaStop(pipeline=pipeline, temperature=0)
    for name in ("langchain-huggingface", "transformers"):
        print(f"{name} {importlib.metadata.version(name)}")
    heads = ("ChatHuggingFace", "ChatLlamaStop")
    both = " | ".join([*heads, *(f"{head}, turns alternate" for head in heads)])
    print(f"\n| conversation | {both} |")
    print("|---|---|---|---|---|")
    own, count = tokenizer.chat_template, [0] * 4
    for shape, messages in SHAPES.items():
        cells = list[str]()
        for template in (own, ALTERNATING):
            tokenizer.chat_template = template
            cells.append(outcome(other, tokenizer, messages, max_new_tokens=1, do_sample=False))
            cells.append(outcome(ours, tokenizer, messages, max_tokens=1))
        count = [n + (cell == "told") for n, cell in zip(count, cells, strict=True)]
        print(f"| {shape} | {' | '.join(cells)} |", flush=True)
    print(f"| told | {' | '.join(f'{n} of {len(SHAPES)}' for n in count)} |")


if __name__ == "__main__":
    main()
