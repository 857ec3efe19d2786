"""How answers end with each method: `make bench-termination`.

The model answers every prompt with every method, at several budgets and temperatures. An answer has
*landed* if it ends by EOS, at a true end, with nothing left open. It *reads finished* if besides it
ends in no fragment: no number is cut, and its last sentence has at least three words.
Every second prompt was used for tuning; only the others are reported.

Methods that only differ in where they end share one generation: its tokens and scores are given to
a sequence of the engine for each of them.
"""

import argparse
import json
import os
import re
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from logits_processor_zoo.transformers import GenLengthLogitsProcessor
from rich.console import Console
from rich.table import Table
from transformers import LogitsProcessor

from langchain_llama_stop import GenerationOptions, generate, load_pipeline
from langchain_llama_stop.ending.boundaries import end_offsets, is_true_end, open_constructs
from langchain_llama_stop.ending.open_words import OPEN_WORDS
from langchain_llama_stop.engine.config import eos_token_ids
from langchain_llama_stop.engine.sequence import Sequence, Step
from langchain_llama_stop.engine.start import build_landing

HERE = Path(__file__).parent
HINT = "Answer in {sentences} sentences or fewer."
TAIL, PUSHED = 16, 3.0  # tokens whose cost is measured; nats below the most likely token
CLOSING = set(".!?。！？…\"')]}*`_~|<>/\n”’»」")
PLAIN = {"eos_reward": False}


class ArticleReward(LogitsProcessor):
    """The article's formula: from 80% of the length on, EOS gets 100 times the ratio."""

    def __init__(self, eos: int, budget: int) -> None:
        """Takes the EOS id and the token budget; the first call shows the prompt's length."""
        self.eos, self.budget, self.max_length = eos, budget, 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Raises EOS and scales the other scores down."""
        self.max_length = self.max_length or input_ids.shape[1] + self.budget
        ratio = input_ids.shape[1] / self.max_length
        if ratio > 0.8:
            scores = scores * 10 * ratio * torch.exp(-torch.sign(scores))
            scores[:, self.eos] = 100 * ratio
        return scores


def zoo(boost: float, complete: bool) -> Callable:
    """GenLength of logits-processor-zoo."""
    return lambda tokenizer, budget: {
        "logits_processor": [
            GenLengthLogitsProcessor(tokenizer, boost, complete_sentences=complete)
        ]
    }


# The options of methods that change the tokens, and of those that only change where they end.
METHODS: dict[str, Callable] = {
    "article's formula": lambda tokenizer, budget: {
        "logits_processor": [ArticleReward(tokenizer.eos_token_id, budget)]
    },
    "forced EOS": lambda tokenizer, budget: {
        "pipeline_kwargs": {"forced_eos_token_id": tokenizer.eos_token_id}
    },
    "exponential decay": lambda tokenizer, budget: {
        "pipeline_kwargs": {"exponential_decay_length_penalty": (int(0.8 * budget), 1.1)}
    },
    "zoo 0.1": zoo(0.1, False),
    "zoo 0.1, sentences": zoo(0.1, True),
    "zoo 1.0": zoo(1.0, False),
    "zoo 1.0, sentences": zoo(1.0, True),
    "answer_hint": lambda tokenizer, budget: {"answer_hint": HINT},
    "ours, answer_hint": lambda tokenizer, budget: {"eos_reward": True, "answer_hint": HINT},
    "ours, decided in passing": lambda tokenizer, budget: {"eos_reward": {"hindsight": False}},
}
ENDINGS = {
    "none": PLAIN,
    "trimmed afterwards": {**PLAIN, "on_length": "trim"},
    "ours": {"eos_reward": True},
}


@dataclass(frozen=True)
class Answer:
    """An answer: its ids without EOS, its text, and who ended it ("" if its budget cut it)."""

    ids: list[int]
    text: str
    source: str


class Recorder(LogitsProcessor):
    """Keeps a plain answer's scores, as given to a sequence of the engine for each way to end."""

    def __init__(self, pipeline: Any, prompt: str, options: dict, budgets: list[int]) -> None:
        """Takes what the plain answer is generated with, and the budgets it may end within."""
        self.sequences: dict[tuple[str, int], Sequence] = {}
        for budget in budgets:
            for name, ending in ENDINGS.items():
                own = GenerationOptions.parse({**options, **ending, "max_new_tokens": budget})
                sequence = Sequence(pipeline, prompt, own)
                sequence.eos = tuple(eos_token_ids(pipeline, own))
                sequence.landing = build_landing(sequence, own, list(sequence.eos))
                self.sequences[name, budget] = sequence
        self.scores: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Gives the token that the last scores led to, and keeps the new scores."""
        if self.scores is not None:
            self.take(int(input_ids[0, -1]))
        self.scores = scores.clone()
        return scores

    def take(self, token: int) -> None:
        """Gives one more token to every sequence that has not finished."""
        assert self.scores is not None
        best = float(self.scores.max())
        for sequence in self.sequences.values():
            if not sequence.finished:
                full = len(sequence.generated) + 1 == sequence.budget
                ends = full or token in sequence.eos
                sequence.take(Step(token, ends, None, self.scores, self.scores, best, False))


def read_prompts(file: Path, kinds: list[str] | None = None) -> list[str]:
    """Reads prompts out of a JSONL file: `prompt`, `turns` (first), or "### Human:" `input`."""
    prompts = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if kinds and row.get("kind") not in kinds:
            continue
        if "turns" in row:
            prompts.append(row["turns"][0])
        elif "### Human:" in row.get("input", ""):
            turns = row["input"].split("### Human:")
            if row.get("lang") == "en" and len(turns) == 2:
                prompts.append(turns[1].removesuffix("### Assistant:").strip())
        else:
            prompts.append(row["prompt"])
    return list(dict.fromkeys(prompts))


def answer_of(response: Any, tokenizer: Any) -> Answer:
    """The measured form of a response of the engine."""
    ids, text = list(response.token_ids), response.text
    if response.eos_source:
        ids = ids[:-1] if ids[-1] in tokenizer.all_special_ids else ids
    elif response.finish_reason == "length" and (cut := tokenizer.decode(ids)) != text:
        # Trimmed to a true end: the ids that give the text.
        sizes = (len(tokenizer.decode(ids[:n])) for n in range(len(ids) + 1))
        ids = ids[: next((n for n, size in enumerate(sizes) if size >= len(text)), len(ids))]
        return Answer(ids, text, "trimmed" if cut.startswith(text) else "")
    return Answer(ids, text, response.eos_source or "")


def plain_answers(pipeline, prompts: list[str], temperature: float, args) -> dict:
    """One plain generation a prompt, ended in each way within each budget."""

    def run(prompt: str) -> Recorder:
        options = {"temperature": temperature, "seed": 0}
        recorder = Recorder(pipeline, prompt, options, args.budgets)
        parsed = GenerationOptions.parse(
            {
                **options,
                **PLAIN,
                "max_new_tokens": max(args.budgets),
                "logits_processor": [recorder],
                "batch_size": args.batch,
            }
        )
        recorder.take(generate(pipeline, [prompt], parsed)[0].token_ids[-1])
        return recorder

    with ThreadPoolExecutor(args.batch) as pool:
        recorders = list(pool.map(run, prompts))
    found = {
        key: [answer_of(r.sequences[key].response(), pipeline.tokenizer) for r in recorders]
        for key in recorders[0].sequences
    }
    for budget in args.budgets:  # without a true end trimming leaves nothing
        rows = found["trimmed afterwards", budget]
        found["trimmed afterwards", budget] = [
            row if row.source else Answer([], "", "") for row in rows
        ]
    return found


def answers(pipeline, prompts: list[str], options: Callable, args) -> list[Answer]:
    """Answers all prompts, each with processors of its own; they share the forward passes."""

    def run(prompt: str) -> Answer:
        parsed = GenerationOptions.parse({"batch_size": args.batch, "seed": 0, **options()})
        return answer_of(generate(pipeline, [prompt], parsed)[0], pipeline.tokenizer)

    with ThreadPoolExecutor(args.batch) as pool:
        return list(pool.map(run, prompts))


@cache
@torch.no_grad()
def tail_scores(pipeline, prompt: str, ids: tuple[int, ...]) -> tuple[float, list[float]]:
    """The plain model's cost of an answer's tail.

    Returns:
        Mean negative log-likelihood of the last tokens and of EOS after them, in nats; and for
        each of the last four tokens, how far it is below the most likely token.
    """
    tokenizer = pipeline.tokenizer
    prompt_ids = tokenizer(prompt)["input_ids"]
    whole = torch.tensor([prompt_ids + list(ids)], device=pipeline.device)
    count = min(TAIL, len(ids))
    logits = pipeline.model(whole, logits_to_keep=count + 1).logits[0].float().cpu()
    scores = logits.log_softmax(-1)  # (count + 1, vocab)
    targets = torch.tensor([*ids[len(ids) - count :], tokenizer.eos_token_id])
    own = scores[torch.arange(count + 1), targets]
    gaps = scores.amax(-1) - own
    return -own.mean().item(), gaps[:-1][-4:].tolist()


def has_landed(answer: Answer, whole: str) -> bool:
    """Whether an answer ends, at a true end, with nothing open.

    The newline after the item of a list counts, which is left out where the model ended the answer.
    """
    text = answer.text
    own = answer.source == "model" and text == whole
    newline = whole.startswith(text) and whole[len(text) :].lstrip(" ").startswith("\n")
    text += "\n" * (own or newline)
    return bool(answer.source) and is_true_end(text, "") and not open_constructs(text)


def reads_finished(answer: Answer, whole: str) -> bool:
    """Whether an answer has landed, and ends in no fragment.

    Args:
        answer: The answer.
        whole: The plain answer at the largest budget: where the model ended itself, or where
            numbers go on.
    """
    if answer.text == whole or not has_landed(answer, whole):
        return has_landed(answer, whole)
    text = answer.text.rstrip()
    same = os.path.commonprefix([text, whole])
    added, rest = text[len(same) :], whole[len(same) :]
    if set(added) <= CLOSING:
        number = re.search(r"\d([.,:/]?)\Z", same)
        if number and re.match(r"\d" if number[1] else r"\d|[.,:/]\d", rest):
            return False
    line = text.rpartition("\n")[2].strip()
    if not re.search(r"[.!?…。！？]\W*\Z", line) or line.startswith("|") or text[:1] in "{[":
        return True  # a block, or the item of a list
    ends = [0, *end_offsets(text, final=True)]
    before = max(end for end in ends if end < len(text))
    words = re.findall(r"[^\W_]+(?:['’.:-][^\W_]+)*", text[before:].rpartition("\n\n")[2])
    letters = sum(map(len, words))
    wide = bool(words) and words[-1][-1] >= "\u2e80"
    if answer.source == "closed" and words and words[-1].lower() in OPEN_WORDS:
        return False
    return letters >= 4 if wide else len(words) >= 3


def summary(pipeline, chats: list[str], plain: list[Answer], rows: list[Answer], **given) -> dict:
    """Computes the measures of one method."""
    budget, whole, trimmed = given["budget"], given["whole"], given["trimmed"]
    natural = [i for i, row in enumerate(plain) if row.source]
    over = [i for i, row in enumerate(plain) if not row.source]
    kept = [rows[i] == plain[i] for i in natural]
    used = sorted(min(1, (len(rows[i].ids) + bool(rows[i].source)) / budget) for i in over)
    costs, pushed = [], 0
    for i in over:
        row = rows[i]
        if not row.ids:
            continue
        cost, gaps = tail_scores(pipeline, chats[i], tuple(row.ids))
        if trimmed[i].ids:  # all methods on the same answers: those that trimming leaves a tail
            costs.append(cost)
        last = [pipeline.tokenizer.decode([t]).strip() for t in row.ids[-4:]]
        pushed += any(
            gap > PUSHED and text and set(text) <= CLOSING
            for gap, text in zip(gaps, last, strict=True)
        )
    pairs = list(zip(rows, whole, strict=True))
    landed = [has_landed(row, text) for row, text in pairs]
    finished = [reads_finished(row, text) for row, text in pairs]
    return {
        "answers": len(rows),
        "landed": statistics.mean(landed),
        "finished": statistics.mean(finished),
        "closed": statistics.mean(rows[i].source == "closed" for i in over) if over else 0.0,
        "forced": statistics.mean(rows[i].source == "forced" for i in over) if over else 0.0,
        "natural": len(natural),
        "natural_identical": statistics.mean(kept) if kept else None,
        "used": statistics.mean(used) if used else None,
        "used_p10": used[len(used) // 10] if used else None,
        "tail_cost": statistics.mean(costs) if costs else None,
        "pushed": pushed / max(1, len(over)),
        "unfinished": [rows[i].text[-80:] for i in range(len(rows)) if not finished[i]][:8],
    }


def evaluate(pipeline, prompts: list[str], temperature: float, args):
    """Runs all methods at one temperature; yields each budget with measures and answers."""
    tokenizer = pipeline.tokenizer
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
        )
        for p in prompts
    ]
    plain = plain_answers(pipeline, chats, temperature, args)
    whole = [row.text for row in plain["none", max(args.budgets)]]
    for budget in args.budgets:
        rows = {}
        for name in [*ENDINGS, *METHODS]:
            if args.methods and name not in args.methods and name != "none":
                continue
            if name in ENDINGS:
                rows[name] = plain[name, budget]
            else:

                def options(name: str = name, budget: int = budget) -> dict:
                    own = {"max_new_tokens": budget, "temperature": temperature, **PLAIN}
                    return {**own, **METHODS[name](tokenizer, budget)}

                rows[name] = answers(pipeline, chats, options, args)
            print(f"{budget} tokens, temperature {temperature:g}: {name}", flush=True)
        given = {"budget": budget, "whole": whole, "trimmed": plain["trimmed afterwards", budget]}
        measures = {
            name: summary(pipeline, chats, rows["none"], row, **given) for name, row in rows.items()
        }
        yield budget, measures, rows


def print_table(console: Console, title: str, results: dict[str, dict]) -> None:
    """Prints one budget and temperature."""
    table = Table(title=title)
    table.add_column("method", no_wrap=True)
    columns = ["landed", "reads finished", "closed", "forced", "used", "used p10", "natural kept"]
    for column in [*columns, "tail, nats", "pushed"]:
        table.add_column(column, justify="right")

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.1%}"

    for name, r in results.items():
        kept, tail = r["natural_identical"], r["tail_cost"]
        table.add_row(
            name,
            *(share(r[key]) for key in ("landed", "finished", "closed", "forced")),
            *(share(r[key]) for key in ("used", "used_p10")),
            "–" if kept is None else f"{kept:.0%} of {r['natural']}",
            "–" if tail is None else f"{tail:.2f}",
            share(r["pushed"]),
        )
    console.print(table)


def show(prompts: list[str], rows: dict[str, list[Answer]], count: int) -> None:
    """Prints the ends of some answers, those of all methods together."""
    over = [i for i, row in enumerate(rows["none"]) if not row.source]
    for i in over[:count]:
        print(f"\n=== {prompts[i]}")
        for name, row in rows.items():
            print(f"{name[:20]:20} {row[i].source or 'cut':8} …{row[i].text[-110:]!r}")


def chart(report: dict, file: Path) -> None:
    """Draws landed and used: one bar per method, one panel per budget (greedy only)."""
    import matplotlib.pyplot as plt

    greedy = {k: v for k, v in report["results"].items() if k.endswith(" 0")}
    methods = len(next(iter(greedy.values())))
    columns = min(2, len(greedy))
    rows = -(-len(greedy) // columns)
    size = (8, 0.6 + rows * (0.5 + 0.26 * methods))  # a page shows it 800 pixels wide
    figure, axes = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
    for axis, (key, results) in zip(axes.flat, greedy.items(), strict=False):
        names = list(results)[::-1]
        positions = range(len(names))
        colours = ["#0072B2" if n.startswith("ours") else "#b4bec8" for n in names]
        axis.barh(positions, [100 * results[n]["landed"] for n in names], color=colours)
        used = [100 * results[n]["used"] for n in names]
        axis.scatter(used, positions, s=36, color="black", edgecolor="white", zorder=3)
        axis.set_yticks(positions, names, fontsize=10.5)
        axis.set_title(f"{key.split()[0]} tokens", fontsize=11)
        axis.set_xlim(0, 104)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes.flat[len(greedy) :]:
        axis.axis("off")
    figure.suptitle("Bars: answers that landed. Dots: budget used. In %, greedy", fontsize=12)
    figure.tight_layout()
    figure.savefig(file, dpi=160)


def main() -> None:
    """Runs the benchmark and writes its table, JSON and chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, action="append", help="JSONL file; repeatable")
    parser.add_argument("--kinds", nargs="+", help="only these kinds of kinds.jsonl")
    parser.add_argument("--half", choices=["tune", "report", "all"], default="report")
    parser.add_argument("--model", default="demo", help="a folder or hub id (default: %(default)s)")
    parser.add_argument("--budgets", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--methods", nargs="+", help="only these (and none, the comparison)")
    parser.add_argument("--limit", type=int, help="use this many prompts of each file")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--show", type=int, nargs="?", const=20, default=0, metavar="ANSWERS")
    parser.add_argument("--json", type=Path, help="write the measures to this file")
    parser.add_argument("--chart", type=Path, help="draw the greedy ones into this file")
    parser.add_argument(
        "--replot", type=Path, metavar="FILE", help="only draw: read this JSON instead of measuring"
    )
    args = parser.parse_args()
    if args.replot:
        if not args.chart:
            parser.error("--replot needs --chart: the file to draw into")
        chart(json.loads(args.replot.read_text()), args.chart)
        return
    prompts = []
    own = [HERE / "prompts.jsonl"] * (not args.kinds) + [HERE / "kinds.jsonl"]
    for file in args.prompts or own:
        found = read_prompts(file, args.kinds)
        prompts += {"tune": found[0::2], "report": found[1::2], "all": found}[args.half][
            : args.limit
        ]
    pipeline = load_pipeline(args.model, dtype="float32")
    console = Console(width=150)
    report: dict = {"prompts": len(prompts), "half": args.half, "results": {}}
    for temperature in args.temperatures:
        for budget, results, rows in evaluate(pipeline, prompts, temperature, args):
            report["results"][f"{budget} {temperature:g}"] = results
            if args.json:
                args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False))
            title = f"{len(prompts)} prompts, budget {budget}, temperature {temperature:g}"
            print_table(console, title, results)
            show(prompts, rows, args.show)
    if 0 in args.temperatures and args.chart:
        chart(report, args.chart)


if __name__ == "__main__":
    main()
