"""How cost grows, for us and for bare `model.generate`: `make bench-growth`.

Seconds per answer of the demo model as one thing grows: the prompt, the batch, the answer; and
seconds to the first token of a new turn as a conversation grows, with the prefix cache and without.
Nothing here is a test: figures depend on the machine. Twenty minutes on two cores.
"""

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measuring import alternate, arguments, load, machine
from peers import bare_generate, exactly, first_words, new_turns, passage

from langchain_llama_stop import LlamaStopLLM

SIZES = {
    "prompt": [128, 256, 512, 1024, 2048, 4096],
    "batch": [1, 2, 4, 8, 16, 32],
    "answer": [16, 32, 64, 128, 256, 512],
    "history": [0, 500, 1000, 2000, 4000],
}
QUICK = {"prompt": [16, 64], "batch": [1, 4], "answer": [4, 16], "history": [0, 100]}
PROMPT, ANSWER = 32, {"prompt": 8, "batch": 16}
CACHE = 8192
# Blue and vermilion of Okabe and Ito's palette, which colour-blind people can tell apart.
LINES = {
    "with": ("with the prefix cache", "#0072B2", "o-"),
    "without": ("without", "#D55E00", "s--"),
}


def answers(pipeline: Any, prompts: list[str], tokens: int, repeats: int) -> dict[str, list[float]]:
    """Seconds for a batch of answers of `tokens` tokens each, ours and bare."""
    llm = LlamaStopLLM(pipeline=pipeline, batch_size=len(prompts), **exactly(tokens))
    works = {
        "ours": lambda: llm.batch(prompts),
        "bare": lambda: bare_generate(pipeline, prompts, tokens, min_new_tokens=tokens),
    }
    return alternate(works, repeats)[0]


def measure(
    pipeline: Any, name: str, size: int, words: Iterator[str], repeats: int
) -> dict[str, Any]:
    """One point of a sweep: seconds of each side, and the tokens that it produces."""
    if name == "history":
        times = new_turns(pipeline, size, words, repeats, limit=CACHE, peer=False)
        return {"size": size, "tokens": 1, "seconds": times}
    length = size if name == "prompt" else PROMPT
    rows = size if name == "batch" else 1
    tokens = size if name == "answer" else ANSWER[name]
    # Each prompt has its own first word, so that no two rows share a prefix.
    texts = [passage(pipeline.tokenizer, length - 2, start) for start in range(rows)]
    prompts = [f"{next(words)}: {text}" for text in texts]
    times = answers(pipeline, prompts, tokens, repeats)
    return {"size": size, "tokens": rows * tokens, "seconds": times}


def draw(points: list[dict], file: Path) -> None:
    """Draws the sweep over the history: the medians, and the range of the repeats."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.2))  # a page shows it 800 pixels wide
    sizes = [point["size"] for point in points]
    last = {}
    for side, (label, colour, style) in LINES.items():
        repeats = [point["seconds"][side] for point in points]
        medians = [statistics.median(r) for r in repeats]
        last[side] = medians[-1]
        axis.plot(sizes, medians, style, color=colour, label=label, linewidth=2, clip_on=False)
        low, high = map(min, repeats), map(max, repeats)
        axis.fill_between(sizes, list(low), list(high), color=colour, alpha=0.15, linewidth=0)
    axis.set_title(
        f"After {sizes[-1]:,} tokens of history the first token comes after\n"
        f"{last['with']:.2g} s with the prefix cache, {last['without']:.2g} s without",
        fontsize=12,
    )
    axis.set_xlabel("tokens of the history", fontsize=12)
    axis.set_ylabel("seconds to the first token", fontsize=12)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=11)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=11, frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=200)


def table(report: dict) -> str:
    """The figures as a Markdown table."""
    lines = ["| | size | seconds (median) | seconds per token | first over second |"]
    lines.append("|---|--:|--:|--:|--:|")
    for name, points in report["sweeps"].items():
        for point in points:
            sides = point["seconds"]
            a, b = (statistics.median(times) for times in sides.values())
            per = " / ".join(f"{s / point['tokens']:.4f}" for s in (a, b))
            per = "–" if name == "history" else per
            size = f"{point['size']:,}"
            what = f"{name}: {' / '.join(sides)}"
            lines.append(f"| {what} | {size} | {a:.3f} / {b:.3f} | {per} | {a / b:.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Measures, or reads a report; then prints, writes and draws it."""
    parser = arguments(__doc__.split("\n")[0], list(SIZES))
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw `history` into this file")
    parser.add_argument(
        "--replot", type=Path, metavar="FILE", help="read this JSON instead of measuring"
    )
    args = parser.parse_args()
    if args.plot and not args.replot and "history" not in args.only:
        parser.error("--plot draws `history`: name it in --only too, or leave --only out")
    if args.replot:
        report = json.loads(args.replot.read_text())
    else:
        pipeline = load(args)
        words = first_words(pipeline.tokenizer)
        report = {"machine": machine(args), "repeats": args.repeats, "sweeps": {}}
        for name in args.only:
            points = report["sweeps"][name] = []
            for size in (QUICK if args.quick else SIZES)[name]:
                print(f"{name} {size} ...", flush=True)
                points.append(measure(pipeline, name, size, words, args.repeats))
                if args.json:  # after each point, so that an interrupted run leaves something
                    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(f"\n{report['machine']}, {report['repeats']} repeats\n\n{table(report)}")
    if args.plot:
        draw(report["sweeps"]["history"], args.plot)


if __name__ == "__main__":
    main()
