"""What `speed.py` and `growth.py` share: loading, pairs of runs, memory, a table of ratios."""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

from langchain_llama_stop import load_pipeline

SHAPES = {
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 4096,
    },
    "thin-32": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": 4096,
    },
}
"""Models by their config. A step of "thin-32" is bound by the host, as it is on a GPU."""


def arguments(description: str, works: list[str]) -> argparse.ArgumentParser:
    """A parser of the options that both benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu (default), or cuda")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "nf4"], default="float32")
    parser.add_argument(
        "--shape", choices=[*SHAPES], help="random weights of this shape, not the demo model's"
    )
    parser.add_argument("--repeats", type=int, default=3, help="of each comparison (default 3)")
    parser.add_argument("--only", nargs="+", choices=works, default=works, metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: tries the script only")
    return parser


def load(args: argparse.Namespace) -> Any:
    """Loads the demo model, or one of random weights, as the options say."""
    transformers.logging.set_verbosity_error()
    how = {"quantization": "nf4"} if args.dtype == "nf4" else {"dtype": args.dtype}
    how["device_map"] = {"": args.device}
    if args.shape is None:
        return load_pipeline("demo", **how)
    with tempfile.TemporaryDirectory() as folder:
        save_random_model(args.shape, folder, args.device)
        return load_pipeline(folder, **how)


def save_random_model(shape: str, folder: str, device: str) -> None:
    """Writes a model of random bfloat16 weights, with the demo model's tokenizer, into a folder.

    Its answers are noise, but it needs the time and memory of a real model of its shape.
    """
    tokenizer = load_pipeline("demo").tokenizer
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPES[shape],
    )
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def machine(args: argparse.Namespace) -> str:
    """The machine and the versions that figures belong to."""
    cuda = args.device.startswith("cuda")
    hardware = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} threads"
    return (
        f"{args.shape or 'demo model'}, {platform.machine()}, {hardware}, {args.dtype}, "
        f"torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def synchronize() -> None:
    """Waits for the GPU, if one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def alternate(
    works: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Runs works alternately, after one warm-up run of each.

    Args:
        works: What to time, by name.
        repeats: How often each is timed in both orders, so that drift cancels out.

    Returns:
        Seconds of each work, for each repeat the mean of both orders; and its results.
    """
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    results: dict[str, list[Any]] = {name: [] for name in works}
    for _ in range(repeats):
        spent = dict.fromkeys(works, 0.0)
        for name in (*works, *reversed(works)):
            synchronize()
            begin = time.perf_counter()
            results[name].append(works[name]())
            synchronize()
            spent[name] += (time.perf_counter() - begin) / 2
        for name in works:
            times[name].append(spent[name])
    return times, results


@contextmanager
def forward_rows(model: Any) -> Iterator[list[int]]:
    """Collects the number of rows of each forward pass."""
    rows: list[int] = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[0])
    )
    try:
        yield rows
    finally:
        hook.remove()


def peak_growth(work: Callable[[], object], device: str) -> int:
    """Bytes of peak memory that a work adds."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    Path("/proc/self/clear_refs").write_text("5")  # resets the peak, which loading has set
    before = status("VmRSS")
    work()
    return status("VmHWM") - before


def compare(
    work: str,
    peer: str,
    theirs: list[float],
    ours: list[float],
    unit: str = "s",
    *,
    at_least: float | None = None,
    under: float | None = None,
) -> dict[str, Any]:
    """One line of the table.

    Args:
        work: What was measured.
        peer: The name of the other side.
        theirs: The peer's figures, one for each repeat; less is better.
        ours: Ours.
        unit: Of both.
        at_least: The aim for the peer's figure over ours.
        under: The aim for our figure.

    Returns:
        These values, the ratios, and whether the median meets the aim.
    """
    ratios = [a / b for a, b in zip(theirs, ours, strict=True)]
    aim, met = "–", None
    if at_least is not None:
        aim, met = f"≥ {at_least:.3g}", statistics.median(ratios) >= at_least
    elif under is not None:
        aim, met = f"ours < {under:g} {unit}", statistics.median(ours) < under
    line = {"work": work, "peer": peer, "unit": unit, "theirs": theirs, "ours": ours}
    return {**line, "ratios": ratios, "aim": aim, "met": met}


def equal(what: str, texts: list[str], others: list[str]) -> dict[str, Any]:
    """A note on whether two sides gave the same texts, which they must in float32."""
    same = sum(a == b for a, b in zip(texts, others, strict=True))
    return {"note": f"{what}: {same} of {len(texts)} texts equal", "equal": same == len(texts)}


def table(lines: list[dict]) -> str:
    """The Markdown table."""
    rows = ["| work | peer | peer's | ours | ratio (min–max) | aim | met? |"]
    rows.append("|---|---|--:|--:|--:|---|---|")
    for line in lines:
        ratios = line["ratios"]
        digits = 2 if max(ratios) < 100 else 0
        median, low, high = (
            f"{ratio:,.{digits}f}"
            for ratio in (statistics.median(ratios), min(ratios), max(ratios))
        )
        theirs, ours = (f"{statistics.median(line[side]):.3g}" for side in ("theirs", "ours"))
        met = {None: "–", True: "yes", False: "**no**"}[line["met"]]
        unit = line["unit"]
        cells = (line["work"], line["peer"], f"{theirs} {unit}", f"{ours} {unit}")
        rows.append(f"| {' | '.join(cells)} | {median} ({low}–{high}) | {line['aim']} | {met} |")
    return "\n".join(rows)
