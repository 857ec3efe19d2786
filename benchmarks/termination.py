"""How answers end with each method: `make bench-termination`.

The demo model (float32) answers every prompt with every method, at several budgets, greedy and at
temperature 0.7. An answer has *landed* if it ends by EOS, at a true end, with nothing left open.
Every second prompt was used for tuning; only the others are reported.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from logits_processor_zoo.transformers import GenLengthLogitsProcessor
from rich.console import Console
from rich.table import Table
from transformers import LogitsProcessor

from langchain_llama_stop import GenerationOptions, generate, load_pipeline
from langchain_llama_stop.ending.boundaries import is_true_end, last_end, open_constructs

HERE = Path(__file__).parent
HINT = "Answer in {sentences} sentences or fewer."
TAIL, PUSHED = 16, 3.0  # tokens whose cost is measured; nats below the most likely token
CLOSING = set(".!?。！？…\"')]}*`_”’»」")


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


METHODS: dict[str, Callable] = {
    "none": lambda tokenizer, budget: {},
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
    "trimmed afterwards": lambda tokenizer, budget: {},
    "answer_hint": lambda tokenizer, budget: {"answer_hint": HINT},
    "ours": lambda tokenizer, budget: {"eos_reward": True},
    "ours, answer_hint": lambda tokenizer, budget: {"eos_reward": True, "answer_hint": HINT},
}


def read_prompts(file: Path) -> list[str]:
    """Reads prompts out of a JSONL file: `prompt`, `turns` (first), or "### Human:" `input`."""
    prompts = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "turns" in row:
            prompts.append(row["turns"][0])
        elif "### Human:" in row.get("input", ""):
            turns = row["input"].split("### Human:")
            if row.get("lang") == "en" and len(turns) == 2:
                prompts.append(turns[1].removesuffix("### Assistant:").strip())
        else:
            prompts.append(row["prompt"])
    return list(dict.fromkeys(prompts))


def answers(pipeline, prompts: list[str], options: dict, batch: int) -> list[dict]:
    """Answers all prompts, in batches of similar length, each with processors of its own."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[dict] = [{}] * len(prompts)
    for begin in range(0, len(order), batch):
        chosen = order[begin : begin + batch]
        parsed = GenerationOptions.parse({"batch_size": batch, "seed": 0, **options()})
        for i, r in zip(
            chosen, generate(pipeline, [prompts[i] for i in chosen], parsed), strict=True
        ):
            eos = bool(r.eos_source)
            ids = list(r.token_ids[:-1] if eos else r.token_ids)
            found[i] = {"ids": ids, "eos": eos, "text": r.text, "source": r.eos_source}
    return found


@torch.no_grad()
def tail_scores(pipeline, prompt: str, ids: list[int]) -> tuple[float, list[float]]:
    """The plain model's cost of an answer's tail.

    Returns:
        Mean negative log-likelihood of the last tokens and of EOS after them, in nats; and for
        each of the last four tokens, how far it is below the most likely token.
    """
    tokenizer = pipeline.tokenizer
    prompt_ids = tokenizer(prompt)["input_ids"]
    whole = torch.tensor([prompt_ids + ids])
    count = min(TAIL, len(ids))
    logits = pipeline.model(whole, logits_to_keep=count + 1).logits[0]
    scores = logits.log_softmax(-1)  # (count + 1, vocab)
    targets = torch.tensor([*ids[len(ids) - count :], tokenizer.eos_token_id])
    own = scores[torch.arange(count + 1), targets]
    gaps = scores.amax(-1) - own
    return -own.mean().item(), gaps[:-1][-4:].tolist()


def judge(answer: dict, natural: bool) -> bool:
    """Whether an answer has landed; if the model ended it itself, a bare "42." is an end too."""
    text = answer["text"] + ("\n" if natural else "")
    return answer["eos"] and is_true_end(text) and not open_constructs(text)


def evaluate(pipeline, prompts: list[str], budget: int, temperature: float, args) -> dict:
    """Runs all methods at one budget and temperature."""
    tokenizer = pipeline.tokenizer
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
        )
        for p in prompts
    ]
    results: dict[str, dict] = {}
    plain: list[dict] = []
    for name in METHODS:
        if args.methods and name not in args.methods and name != "none":
            continue

        def options(name: str = name) -> dict:
            return {
                "max_new_tokens": budget,
                "temperature": temperature,
                "eos_reward": False,
                **METHODS[name](tokenizer, budget),
            }

        if name == "trimmed afterwards":
            rows = [trim(tokenizer, row) for row in plain]
        else:
            rows = answers(pipeline, chats, options, args.batch)
        plain = plain or rows
        results[name] = summary(pipeline, chats, plain, rows, budget)
        print(f"{budget} tokens, temperature {temperature:g}: {name}", flush=True)
    return results


def trim(tokenizer, row: dict) -> dict:
    """Cuts a plain answer back to its last true end."""
    if row["eos"]:
        return row
    text = row["text"][: last_end(row["text"])]
    ids = row["ids"]
    count = next((n for n in range(len(ids) + 1) if len(tokenizer.decode(ids[:n])) >= len(text)), 0)
    return {"ids": ids[:count], "eos": bool(text), "text": text, "source": None}


def summary(pipeline, chats: list[str], plain: list[dict], rows: list[dict], budget: int) -> dict:
    """Computes the measures of one method."""
    natural = [i for i, row in enumerate(plain) if row["eos"]]
    over = [i for i, row in enumerate(plain) if not row["eos"]]
    kept = [rows[i]["ids"] == plain[i]["ids"] and rows[i]["eos"] for i in natural]
    used = sorted((len(rows[i]["ids"]) + rows[i]["eos"]) / budget for i in over)
    costs, pushed, forced = [], 0, 0
    for i in over:
        row = rows[i]
        if not row["ids"]:
            continue
        cost, gaps = tail_scores(pipeline, chats[i], row["ids"])
        costs.append(cost)
        last = [pipeline.tokenizer.decode([t]).strip() for t in row["ids"][-4:]]
        pushed += any(
            gap > PUSHED and text and set(text) <= CLOSING
            for gap, text in zip(gaps, last, strict=True)
        )
        full = len(row["ids"]) + 1 >= budget
        forced += row["eos"] and full and not is_true_end(row["text"])
    landed = [
        judge(row, natural=i in natural and row["source"] == "model") for i, row in enumerate(rows)
    ]
    return {
        "answers": len(rows),
        "landed": statistics.mean(landed),
        "by_eos": statistics.mean(row["eos"] for row in rows),
        "natural": len(natural),
        "natural_identical": statistics.mean(kept) if kept else None,
        "used": statistics.mean(used),
        "used_p10": used[len(used) // 10],
        "tail_cost": statistics.mean(costs),
        "pushed": pushed / len(over),
        "forced": forced / len(over),
        "bare_number": statistics.mean(
            row["text"].rstrip().rpartition("\n")[2].strip(" *.)").isdigit() for row in rows
        ),
        "not_landed": [rows[i]["text"][-60:] for i in range(len(rows)) if not landed[i]][:5],
    }


def print_table(console: Console, title: str, results: dict[str, dict]) -> None:
    """Prints one budget and temperature."""
    table = Table(title=title)
    columns = "method", "landed", "EOS", "used", "p10", "natural kept", "tail cost", "pushed"
    for column in (*columns, "forced", "bare number"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for name, r in results.items():
        kept = r["natural_identical"]
        table.add_row(
            name,
            f"{r['landed']:.1%}",
            f"{r['by_eos']:.1%}",
            f"{r['used']:.1%}",
            f"{r['used_p10']:.1%}",
            "–" if kept is None else f"{kept:.0%} of {r['natural']}",
            f"{r['tail_cost']:.2f}",
            f"{r['pushed']:.1%}",
            f"{r['forced']:.1%}",
            f"{r['bare_number']:.1%}",
        )
    console.print(table)


def chart(report: dict, file: Path) -> None:
    """Draws landed and used: one bar per method, one panel per budget (greedy only)."""
    import matplotlib.pyplot as plt

    greedy = {k: v for k, v in report["results"].items() if k.endswith(" 0")}
    figure, axes = plt.subplots(1, len(greedy), figsize=(3.2 * len(greedy) + 1.6, 4.2), sharey=True)
    for axis, (key, results) in zip(
        axes if len(greedy) > 1 else [axes], greedy.items(), strict=True
    ):
        names = list(results)[::-1]
        positions = range(len(names))
        colours = ["#1b7f5c" if n.startswith("ours") else "#8896a5" for n in names]
        axis.barh(positions, [100 * results[n]["landed"] for n in names], color=colours)
        axis.scatter(
            [100 * results[n]["used"] for n in names], positions, color="#c0392b", s=16, zorder=3
        )
        axis.set_yticks(positions, names, fontsize=8)
        axis.set_title(f"budget {key.split()[0]}", fontsize=10)
        axis.set_xlim(0, 104)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle("Answers that landed (bars) and budget used (dots), in %, greedy", fontsize=11)
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main() -> None:
    """Runs the benchmark and writes its table, JSON and chart."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, action="append", help="JSONL file; repeatable")
    parser.add_argument("--half", choices=["tune", "report", "all"], default="report")
    parser.add_argument("--budgets", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7])
    parser.add_argument("--methods", nargs="+", help="only these (and none, the comparison)")
    parser.add_argument("--limit", type=int, help="use this many prompts of each file")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--json", type=Path, default=HERE / "termination.json")
    parser.add_argument("--chart", type=Path, default=HERE.parent / "assets" / "landing.png")
    args = parser.parse_args()
    prompts = []
    for file in args.prompts or [HERE / "prompts.jsonl"]:
        found = read_prompts(file)[: args.limit]
        prompts += {"tune": found[0::2], "report": found[1::2], "all": found}[args.half]
    pipeline = load_pipeline("demo", dtype="float32")
    console = Console(width=150)
    report: dict = {"prompts": len(prompts), "half": args.half, "results": {}}
    for temperature in args.temperatures:
        for budget in args.budgets:
            results = evaluate(pipeline, prompts, budget, temperature, args)
            report["results"][f"{budget} {temperature:g}"] = results
            args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False))
            title = f"{len(prompts)} prompts, budget {budget}, temperature {temperature:g}"
            print_table(console, title, results)
    if 0 in args.temperatures:
        chart(report, args.chart)


if __name__ == "__main__":
    main()
