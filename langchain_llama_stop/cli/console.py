"""What the commands share: stages on stderr, loading, one question in the chat template."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._optional import Progress

if TYPE_CHECKING:
    from transformers import TextGenerationPipeline


def require_text(question: str) -> None:
    """Refuses an empty question."""
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
    model: str, quantization: str, adapter: str | None, progress: Progress
) -> TextGenerationPipeline:
    """Calls `load_pipeline` with arguments of the command line; `quantization` may be "none"."""
    from langchain_llama_stop.loading import load_pipeline

    name = None if quantization == "none" else quantization
    return load_pipeline(model, name, adapter, progress=progress)


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
