"""What the commands share: stages on stderr, loading, prompts, answers in pieces."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._checks import check_text
from langchain_llama_stop._optional import Progress

if TYPE_CHECKING:
    from transformers import TextGenerationPipeline


@dataclass(frozen=True)
class Piece:
    """A piece of a streamed answer: new text, new thoughts; the last one has the metadata."""

    text: str
    thoughts: str = ""
    info: dict[str, Any] = field(default_factory=dict)


def require_text(question: str) -> None:
    """Refuses an empty question, and one that is no text."""
    check_text("`question`", question)
    if not question.strip():
        raise ValueError(
            f"`question` has to hold at least one word, but is {question!r}: write one, or pipe "
            f'it in and give "-".'
        )


@contextmanager
def show_stages(transient: bool = False) -> Iterator[Progress]:
    """Shows stages on stderr, each with its seconds; yields the function that begins the next one.

    If `transient`, they vanish at the end.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn

    console = Console(stderr=True)
    bar = Bar(
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description} [dim]{task.elapsed:.1f} s"),
        console=console,
        transient=transient,
        disable=not console.is_terminal,
    )

    def end_stage() -> None:
        for stage in bar.task_ids[-1:]:
            bar.update(stage, completed=1)
            bar.stop_task(stage)

    def begin_stage(name: str) -> None:
        end_stage()
        bar.add_task(escape(name), total=1)

    with bar:
        yield begin_stage
        end_stage()


def load(
    model: str, quantization: str, adapter: str | None, progress: Progress, **more: Any
) -> TextGenerationPipeline:
    """Calls `load_pipeline` with arguments of the command line; `quantization` may be "none"."""
    from langchain_llama_stop.loading import load_pipeline

    name = None if quantization == "none" else quantization
    return load_pipeline(model, name, adapter, progress=progress, **more)


def is_chat_model(tokenizer: Any, name: str) -> bool:
    """Whether there is a chat template for a model of this name."""
    from langchain_llama_stop.chat.template import chat_template

    try:
        return bool(chat_template(tokenizer, name))
    except ValueError:
        return False


def chat_pieces(chat: Any, messages: Sequence[Any], **options: Any) -> Iterator[Piece]:
    """Streams the answer of a chat model."""
    for chunk in chat.stream(messages, **options):
        info = dict(chunk.response_metadata)
        if info:
            info["usage_metadata"] = chunk.usage_metadata
        yield Piece(chunk.text, chunk.additional_kwargs.get("reasoning_content", ""), info)


def text_pieces(pipeline: Any, prompt: str, options: dict[str, Any]) -> Iterator[Piece]:
    """Streams how a model continues a text."""
    from langchain_llama_stop.engine.generate import stream_generate
    from langchain_llama_stop.options import GenerationOptions

    for chunk in stream_generate(pipeline, prompt, GenerationOptions.parse(options)):
        answer, info = chunk.response, {}
        if answer:
            tokens = len(answer.token_ids)
            info = {
                "finish_reason": answer.finish_reason,
                "stop_reason": answer.stop_reason,
                "eos_source": answer.eos_source,
                "model_name": pipeline.model.name_or_path,
                "usage_metadata": {
                    "input_tokens": answer.prompt_tokens,
                    "output_tokens": tokens,
                    "total_tokens": answer.prompt_tokens + tokens,
                },
            }
            if answer.logprobs is not None:
                info["logprobs"] = {"content": answer.logprobs}
        yield Piece(chunk.text, info=info)


def plain(text: str) -> str:
    """Leaves out control characters, by which an answer could change the terminal."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) != "Cc")


def show_thoughts(thoughts: str) -> None:
    """Prints what a model thinks to stderr."""
    if thoughts:
        print(plain(thoughts), end="", file=sys.stderr, flush=True)


def print_summary(info: dict[str, Any], seconds: float) -> None:
    """Prints how an answer has ended to stderr, in one line."""
    from rich.console import Console

    tokens = info["usage_metadata"]["output_tokens"]
    Console(stderr=True, soft_wrap=True).print(
        f"{tokens} tokens · finish_reason={info['finish_reason']} · "
        f"stop_reason={info['stop_reason']!r} · eos_source={info['eos_source']} · "
        f"{tokens / seconds:.1f} tokens/s",
        style="dim",
        markup=False,
        highlight=False,
    )


def chat_prompt(tokenizer: Any, question: str, system: str | None) -> str:
    """Puts a question into the model's chat template; without a template it stays as it is."""
    if not tokenizer.chat_template:
        if system:
            raise ValueError(
                "`--system` needs a chat template, but the model's tokenizer has none: leave it "
                "out, and write what you want into the question."
            )
        return question
    from jinja2 import TemplateError

    messages = [{"role": "user", "content": question}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    try:
        render = tokenizer.apply_chat_template
        return str(render(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise ValueError(f"The model's chat template refuses the messages: {error}.") from error
