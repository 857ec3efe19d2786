"""What the commands share: stages on stderr, loading, one question in the chat template."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import TextGenerationPipeline


def require_text(question: str) -> None:
    """Refuses a question without a word.

    Args:
        question: The question.

    Raises:
        ValueError: If there is none.
    """
    if not question.strip():
        raise ValueError(
            f"`question` has to hold at least one word, but is {question!r}: write one, or pipe "
            f'it in and give "-".'
        )


@contextmanager
def progress(transient: bool = False) -> Iterator[Callable[[str], None]]:
    """Shows stages on stderr, each with its seconds.

    Args:
        transient: Whether they vanish at the end.

    Yields:
        What begins the next stage.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn

    console = Console(stderr=True)
    bar = Progress(
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
    model: str, quantization: str, adapter: str | None, tell: Callable[[str], None]
) -> TextGenerationPipeline:
    """Loads a model as the arguments say.

    Args:
        model: As for `load_pipeline`.
        quantization: As there, or "none".
        adapter: As there.
        tell: Told of each stage.

    Returns:
        The pipeline.
    """
    from langchain_llama_stop.loading import load_pipeline

    weights = None if quantization == "none" else quantization
    return load_pipeline(model, weights, adapter, progress=tell)


def chat_prompt(tokenizer: Any, question: str, system: str | None) -> str:
    """Puts a question into the model's chat template.

    Args:
        tokenizer: The model's tokenizer.
        question: The question.
        system: A system prompt, if there is one.

    Returns:
        The prompt; the question as it is for a model that has no template.

    Raises:
        ValueError: If there is a system prompt but no template, or the template refuses them.
    """
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
