"""The command line: `llama-stop demo` and `llama-stop ask`.

Everything heavy is imported inside the functions that need it, so that `--help` is instant.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._version import __version__

if TYPE_CHECKING:
    from rich.table import Table
    from transformers import TextGenerationPipeline

DEMO_SYSTEM = "You are a helpful travel guide."
DEMO_QUESTION = "What can I do in Paris?"

_DEMO_EPILOG = """\
examples:
  llama-stop demo
  llama-stop demo --question "How do I bake bread?" --max-new-tokens 64
  llama-stop demo --svg demo.svg
"""
_ASK_EPILOG = r"""
examples:
  llama-stop ask "What can I do in Paris?"
  llama-stop ask --max-new-tokens 64 --temperature 0.7 --seed 1 "Tell me a story."
  llama-stop ask --model meta-llama/Llama-2-7b-chat-hf --system "Be brief." "What is NF4?"
  cat prompt.txt | llama-stop ask --raw --stop "\nObservation:" -

The answer goes to stdout as it comes, everything else to stderr. The last line on stderr says how
it ended: finish_reason (stop, or length for an answer that the budget cut), stop_reason (the stop
string that ended it; None for EOS), eos_source (model, reward or forced; None without EOS).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments without the program's name. None: those of the process.

    Returns:
        The exit code: 0; 2 after an error, which is one line on stderr; 130 after Ctrl-C; 141
        when what reads stdout has closed it.

    Raises:
        SystemExit: From argparse, for `--help`, `--version` and arguments it cannot read.
    """
    args = build_parser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model may write what the terminal's encoding does not have.
            stream.reconfigure(errors="replace")
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY"):  # read when these are imported
        os.environ.setdefault(name, "error")
    # Threads that spin while they wait take the cores from each other on a busy machine: without
    # this, decoding was seen to take ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            args.run(args)
            sys.stdout.flush()
    except KeyboardInterrupt:
        print(file=sys.stderr)  # the shell's prompt begins on a line of its own
        return 130
    except BrokenPipeError:
        # Python flushes stdout once more at its exit: let that go nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, ImportError) as error:
        print(f"llama-stop: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Describes the arguments.

    Returns:
        The parser; what it parses has `run`, the command to call with it.
    """
    parser = argparse.ArgumentParser(
        prog="llama-stop",
        description="Ask local Llama models for answers that end properly.",
        epilog="Start with `llama-stop demo`: it runs offline, on a small model that comes along.",
    )
    parser.add_argument("--version", action="version", version=f"llama-stop {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    purpose = "Show one question answered twice: by the plain pipeline and by LlamaStopLLM."
    sub = _command(commands, "demo", _demo, purpose, _DEMO_EPILOG)
    sub.add_argument("--question", default=DEMO_QUESTION, help="what to ask (default: %(default)s)")
    _add_common(sub, max_new_tokens=96)
    sub.add_argument("--svg", metavar="FILE", help="write the table to FILE as a picture, too")

    purpose = "Stream a model's answer to one question to stdout."
    sub = _command(commands, "ask", _ask, purpose, _ASK_EPILOG)
    sub.add_argument("question", help='what to ask; "-" reads it from stdin')
    sub.add_argument(
        "--model",
        default="demo",
        help='"demo", local folder, .gguf file or hub id (default: %(default)s)',
    )
    sub.add_argument("--adapter", help="PEFT adapter, folder or hub id, to put onto the model")
    _add_common(sub, max_new_tokens=256)
    sub.add_argument(
        "--stop",
        action="append",
        default=[],
        type=_unescaped,
        metavar="STR",
        help=r"end the answer before STR; repeatable; \n and \t in it are newline and tab",
    )
    sub.add_argument("--temperature", type=float, default=0.0, help="0 (default) is greedy")
    sub.add_argument("--seed", type=int, help="make sampling repeatable (default: random)")
    sub.add_argument("--system", metavar="TEXT", help="system prompt (default: the template's own)")
    sub.add_argument("--raw", action="store_true", help="do not apply the model's chat template")
    sub.add_argument(
        "--no-eos-reward",
        dest="eos_reward",
        action="store_false",
        help="leave the model alone when the budget runs out (default: land at a sentence end)",
    )
    return parser


def _demo(args: argparse.Namespace) -> None:
    """Answers one question twice, and prints both answers side by side."""
    from rich.console import Console

    from langchain_llama_stop.options import GenerationOptions

    _require_text(args.question)
    GenerationOptions(max_new_tokens=args.max_new_tokens)  # wrong values are said before loading
    with _progress() as tell:
        pipeline = _load("demo", args.quantization, None, tell)
        prompt = _chat_prompt(pipeline.tokenizer, args.question, DEMO_SYSTEM)
        tell("The plain pipeline answers")
        plain = _plain_answer(pipeline, prompt, args.max_new_tokens)
        tell("LlamaStopLLM answers")
        ours = _llama_stop_answer(pipeline, prompt, args.max_new_tokens)
    table = _table(args.question, args.max_new_tokens, plain, ours)
    console = Console()
    console.print(table)
    console.print(
        'Next: [bold]llama-stop ask "your question"[/]; --help tells of stops and other models.'
        "\nIn Python: README.md, and in examples/ a chain, RAG and an agent."
    )
    if args.svg:
        picture = Console(record=True, width=101, file=io.StringIO())
        picture.print(table)
        picture.save_svg(args.svg, title="llama-stop demo")
        console.print(f"The table is in {args.svg}.", markup=False)


def _ask(args: argparse.Namespace) -> None:
    """Streams the answer to one question to stdout, and a summary to stderr."""
    from langchain_llama_stop.options import GenerationOptions

    names = ("max_new_tokens", "temperature", "seed", "stop", "eos_reward")
    options = GenerationOptions.parse({name: getattr(args, name) for name in names})
    if args.raw and args.system:
        raise ValueError("`--system` needs the chat template, which `--raw` leaves out: drop one.")
    question = sys.stdin.read().removesuffix("\n") if args.question == "-" else args.question
    _require_text(question)
    with _progress(transient=True) as tell:
        pipeline = _load(args.model, args.quantization, args.adapter, tell)
        prompt = question if args.raw else _chat_prompt(pipeline.tokenizer, question, args.system)

    from rich.console import Console

    from langchain_llama_stop.generation import stream_generate

    started, response = time.perf_counter(), None
    for chunk in stream_generate(pipeline, prompt, options):
        print(chunk.text, end="", flush=True)
        response = chunk.response
    seconds = time.perf_counter() - started
    assert response is not None  # the last chunk carries it
    print(flush=True)
    tokens = len(response.token_ids)
    Console(stderr=True, soft_wrap=True).print(
        f"{tokens} tokens · finish_reason={response.finish_reason} · "
        f"stop_reason={response.stop_reason!r} · eos_source={response.eos_source} · "
        f"{tokens / seconds:.1f} tokens/s",
        style="dim",
        markup=False,
        highlight=False,
    )


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], purpose: str, epilog: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=purpose,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    return parser


def _add_common(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    parser.add_argument(
        "--max-new-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help="token budget of an answer (default: %(default)s)",
    )
    parser.add_argument(
        "--quantization",
        choices=("nf4", "int8", "none"),
        default="nf4",
        help="how the weights are loaded; none: as they are (default: %(default)s)",
    )


def _unescaped(text: str) -> str:
    r"""A shell argument with its \n, \t and \\ replaced by what they stand for."""
    characters = {"n": "\n", "t": "\t", "\\": "\\"}
    return re.sub(r"\\([nt\\])", lambda match: characters[match[1]], text)


def _require_text(question: str) -> None:
    if not question.strip():
        raise ValueError(
            f"`question` has to hold at least one word, but is {question!r}: write one, or pipe "
            f'it in and give "-".'
        )


@contextmanager
def _progress(transient: bool = False) -> Iterator[Callable[[str], None]]:
    """Shows stages on stderr, each with its seconds; yields what begins the next one."""
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


def _load(
    model: str, quantization: str, adapter: str | None, tell: Callable[[str], None]
) -> TextGenerationPipeline:
    from langchain_llama_stop.loading import load_pipeline

    weights = None if quantization == "none" else quantization
    return load_pipeline(model, weights, adapter, progress=tell)


def _chat_prompt(tokenizer: Any, question: str, system: str | None) -> str:
    """The question in the model's chat template, or as it is for a model that has none."""
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


@dataclass(frozen=True)
class _Answer:
    """One column of the demo's table."""

    name: str
    text: str
    tokens: int
    cut: bool  # by the token limit
    finish_reason: str
    eos_source: str


def _plain_answer(pipeline: TextGenerationPipeline, prompt: str, budget: int) -> _Answer:
    import torch
    from langchain_huggingface import HuggingFacePipeline

    from langchain_llama_stop.options import GenerationOptions
    from langchain_llama_stop.settings import eos_token_ids

    ids: list[int] = []

    def count(input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """A stopping criterion that never stops: the pipeline gives no other way to count."""
        ids.append(int(input_ids[0, -1]))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    text = HuggingFacePipeline(pipeline=pipeline).invoke(
        prompt,
        pipeline_kwargs={
            "max_new_tokens": budget,
            "do_sample": False,
            "return_full_text": False,
            "stopping_criteria": [count],
        },
    )
    cut = ids[-1] not in eos_token_ids(pipeline, GenerationOptions())
    return _Answer(
        name="Plain HuggingFacePipeline",
        text=text,
        tokens=len(ids),
        cut=cut,
        finish_reason=f"{'length' if cut else 'stop'} (the pipeline does not say)",
        eos_source="none" if cut else "model",
    )


def _llama_stop_answer(pipeline: TextGenerationPipeline, prompt: str, budget: int) -> _Answer:
    from langchain_llama_stop.llms import LlamaStopLLM

    llm = LlamaStopLLM(pipeline=pipeline, max_new_tokens=budget, temperature=0)
    generation = llm.generate([prompt]).generations[0][0]
    info = generation.generation_info
    assert info is not None  # LlamaStopLLM always gives it
    return _Answer(
        name="LlamaStopLLM",
        text=generation.text,
        tokens=info["usage_metadata"]["output_tokens"],
        cut=info["finish_reason"] == "length",
        finish_reason=info["finish_reason"],
        eos_source=info["eos_source"] or "none",
    )


def _table(question: str, budget: int, *answers: _Answer) -> Table:
    from rich.box import HORIZONTALS
    from rich.table import Table
    from rich.text import Text

    from langchain_llama_stop.boundaries import may_end

    # On a line of their own: behind the text they may be wrapped.
    cut, end = ("\n✂ cut here", "bold red"), ("\n✓ ends here", "bold green")
    texts = [Text.assemble(a.text, end if not a.cut and may_end(a.text) else cut) for a in answers]
    table = Table(
        title=Text(f"“{question}” in {budget} tokens", style="bold"),
        box=HORIZONTALS,  # vertical lines have gaps in the picture
        padding=(0, 1),
        expand=True,
    )
    table.add_column("", style="dim", no_wrap=True)
    for answer in answers:
        table.add_column(answer.name, ratio=1, header_style="red" if answer.cut else "green")
    table.add_row("answer", *texts)
    table.add_section()
    table.add_row("tokens used", *(f"{answer.tokens} of {budget}" for answer in answers))
    table.add_row("finish_reason", *(answer.finish_reason for answer in answers))
    table.add_row("eos_source", *(answer.eos_source for answer in answers))
    return table


if __name__ == "__main__":
    sys.exit(main())
