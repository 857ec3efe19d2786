"""Ends that the model writes itself, beside those of hindsight: `make bench-search`.

An answer over its budget is ended in hindsight, as `eos_reward` does. Besides, the model continues
it anew from its last true ends: its next-best first tokens, greedy after each, until EOS or until
the budget is used up. The continuation whose way costs least per token, EOS included, is taken if
it costs less than the way to the end of hindsight.

Two kinds of ends count: "eos", where the model itself chose EOS in a continuation, and "any", at
each true end of a continuation. `--half tune` prints a grid of settings, as they were chosen.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from termination import TAIL, Answer, plain_answers, read_prompts, summary
from transformers import LogitsProcessor

from langchain_llama_stop import GenerationOptions, generate, load_pipeline
from langchain_llama_stop.ending.boundaries import may_end
from langchain_llama_stop.ending.reward import BEFORE_ZONE, EosReward

HERE = Path(__file__).parent
ENDS, FIRST = 3, 5  # the last true ends, and the first tokens tried from each
BUDGETS = [32, 64, 128, 256]  # of the plain answers; the last shows how they would have gone on
COLUMNS = ["landed", "reads finished", "used", "tail, nats", "EOS", "changed", "passes", "tokens"]


class Setting(NamedTuple):
    """What is searched, and by which measure a way is chosen."""

    kind: str  # of ends: "eos" or "any"
    ends: int  # the last true ends
    span: str  # of a way: the "answer", from the "zone" on, or its "tail"
    margin: float = 0.0  # nats per token that a way has to be cheaper

    def __str__(self) -> str:
        """The name in the table."""
        return f"{self.kind}, {self.ends} x {FIRST}, {self.span}, {self.margin:g}"


CHOSEN = [Setting("eos", 3, "zone"), Setting("any", 1, "zone"), Setting("any", 3, "zone")]
GRID = [
    Setting(kind, ends, span, margin)
    for kind in ("eos", "any")
    for ends in (1, 3)
    for span in ("answer", "zone", "tail")
    for margin in (0.0, 0.2)
]


@dataclass(frozen=True)
class Continuation:
    """What the model wrote from a true end, and what it cost in nats."""

    after: int  # tokens of the plain answer
    ids: list[int]  # without EOS
    costs: list[float]  # of each
    eos: list[float]  # of EOS after each
    ended: bool  # whether the model itself chose EOS


class Way(NamedTuple):
    """An answer that ends in a continuation."""

    after: int  # tokens of the plain answer
    kind: str  # of its end: "eos", or "any" for a true end
    ids: list[int]  # of the answer, without EOS
    costs: list[float]  # of each, and of EOS
    whole: list[int]  # with what the model wrote after it


class Costs(LogitsProcessor):
    """Records the nats of the greedy token and of EOS at each step."""

    def __init__(self, eos: int) -> None:
        """Takes the EOS id."""
        self.id, self.best, self.eos = eos, [], []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Records, and changes nothing."""
        logprobs = scores[0].log_softmax(-1)
        self.best.append(-float(logprobs.max()))
        self.eos.append(-float(logprobs[self.id]))
        return scores


@torch.no_grad()
def logprobs_of(pipeline: Any, chat: str, ids: list[int]) -> torch.Tensor:
    """The plain model's log-probabilities before each token and after the last, (n + 1, vocab)."""
    whole = torch.tensor([pipeline.tokenizer(chat)["input_ids"] + ids], device=pipeline.device)
    logits = pipeline.model(whole, logits_to_keep=len(ids) + 1).logits[0].float().cpu()
    return logits.log_softmax(-1)


def costs_of(logprobs: torch.Tensor, ids: list[int], eos: int) -> list[float]:
    """The nats of each token, and of EOS after them."""
    return (-logprobs[range(len(ids) + 1), [*ids, eos]]).tolist()


def true_ends(tokenizer: Any, ids: list[int], first: int = 1) -> list[int]:
    """After how many tokens, but not all of them, the text truly ends, judged by what follows."""
    whole = tokenizer.decode(ids)
    found = []
    for count in range(first, len(ids)):
        text = tokenizer.decode(ids[:count])
        if whole.startswith(text) and may_end(text, "sentence", whole[len(text) :]):
            found.append(count)
    return found


def continuations(pipeline: Any, chat: str, ids: list[int], budget: int) -> list[dict]:
    """Lets the model continue a plain answer from its last true ends."""
    tokenizer = pipeline.tokenizer
    eos = tokenizer.eos_token_id
    ends = [n for n in true_ends(tokenizer, ids) if n <= budget - 3][-ENDS:]
    logprobs = logprobs_of(pipeline, chat, ids)
    rows = []
    for after in ends:
        order = logprobs[after].topk(FIRST + 2).indices.tolist()
        first = [token for token in order if token not in (eos, ids[after])][:FIRST]
        for token in first:
            costs = Costs(eos)
            options = {
                "eos_reward": False,
                "temperature": 0,
                "max_new_tokens": budget - after - 1,
                "logits_processor": [costs],
                "batch_size": 16,
            }
            prompt = tokenizer(chat)["input_ids"] + ids[:after] + [token]
            answer = generate(pipeline, [prompt], GenerationOptions.parse(options))[0]
            written = [token, *answer.token_ids]
            written = written[: -1 if len(written) + after == budget else None]
            ended = answer.token_ids[-1] == eos
            written = [t for t in written if t != eos]
            nats = [-float(logprobs[after, token]), *costs.best]
            count = len(written)
            row = Continuation(after, written, nats[:count], costs.eos[:count], ended)
            rows.append(asdict(row))
    return rows


def mean_cost(costs: list[float], span: str, budget: int) -> float:
    """The mean nats of a way, EOS included."""
    zone = max(0, EosReward().zone(budget) - BEFORE_ZONE)
    first = {"answer": 0, "zone": min(zone, len(costs) - 1), "tail": max(0, len(costs) - TAIL - 1)}
    part = costs[first[span] :]
    return sum(part) / len(part)


def ways_of(tokenizer: Any, plain: list[int], own: list[float], row: Continuation) -> list[Way]:
    """The ways to the ends of a continuation.

    Args:
        tokenizer: The tokenizer.
        plain: The ids of the plain answer.
        own: The nats of each of them.
        row: The continuation.
    """
    ids, costs = plain[: row.after] + row.ids, own[: row.after] + row.costs
    counts = true_ends(tokenizer, ids, row.after + 1)
    ends = [("any", n) for n in counts] + [("eos", len(ids))] * row.ended
    return [
        Way(row.after, kind, ids[:n], [*costs[:n], row.eos[n - row.after - 1]], ids)
        for kind, n in ends
    ]


def search(rows: list[Continuation], ways: list[Way], setting: Setting, most: float, budget: int):
    """The cheapest way, if it costs less than `most`; the passes of the search, and its tokens."""
    after = sorted({row.after for row in rows})[-setting.ends :]
    tokens = [len(row.ids) for row in rows if row.after in after]
    best, most = None, most - setting.margin
    for way in ways:
        allowed = setting.kind == "any" or way.kind == "eos"
        if allowed and way.after in after:
            cost = mean_cost(way.costs, setting.span, budget)
            if cost < most:
                best, most = way, cost
    return best, max(tokens, default=0), sum(tokens)


def cached(file: Path | None, key: str, compute: Any) -> Any:
    """What is computed, or what the file has of it."""
    kept = json.loads(file.read_text()) if file and file.exists() else {}
    if key not in kept:
        kept[key] = compute()
        if file:
            file.write_text(json.dumps(kept))
    return kept[key]


def evaluate(pipeline: Any, prompts: list[str], settings: list[Setting], args: Any):
    """Yields each budget with the measures of hindsight and of each setting."""
    tokenizer = pipeline.tokenizer
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
        )
        for p in prompts
    ]
    every = argparse.Namespace(budgets=BUDGETS, batch=16)

    def plainly() -> list:
        found = plain_answers(pipeline, chats, 0.0, every)
        return [[*key, [asdict(row) for row in rows]] for key, rows in found.items()]

    key = f"{args.half} {len(prompts)}"
    stored = cached(args.cache, f"plain {key}", plainly)
    answers = {(name, n): [Answer(**row) for row in rows] for name, n, rows in stored}
    whole = [row.text for row in answers["none", BUDGETS[-1]]]
    for budget in args.budgets:
        plain, ours = answers["none", budget], answers["ours", budget]
        # Those that stay whole need no search.
        over = [i for i, row in enumerate(plain) if not row.source and ours[i].ids != row.ids]

        def continued(budget: int = budget, over: list = over, plain: list = plain) -> list:
            given = [chats[i] for i in over], [plain[i].ids for i in over]
            with ThreadPoolExecutor(16) as pool:
                return list(pool.map(continuations, repeat(pipeline), *given, repeat(budget)))

        stored = cached(args.cache, f"continuations {key} {budget}", continued)
        rows = {i: [Continuation(**c) for c in s] for i, s in zip(over, stored, strict=True)}
        ways, costs = {}, {}
        for i in over:
            eos, ids = tokenizer.eos_token_id, plain[i].ids
            own = costs_of(logprobs_of(pipeline, chats[i], ids), ids, eos)
            ways[i] = [way for row in rows[i] for way in ways_of(tokenizer, ids, own, row)]
            ids = ours[i].ids
            costs[i] = costs_of(logprobs_of(pipeline, chats[i], ids), ids, eos)
        given = {"budget": budget, "trimmed": answers["trimmed afterwards", budget]}
        measures, found = {}, {}
        for setting in [None, *settings]:
            new, texts, passes, tokens, eos = list(ours), list(whole), [], [], []
            for i in over:
                way, last = None, costs[i][-1]
                if setting:
                    most = mean_cost(costs[i], setting.span, budget)
                    way, *more = search(rows[i], ways[i], setting, most, budget)
                    passes.append(more[0])
                    tokens.append(more[1])
                if way:
                    last = way.costs[-1]
                    new[i] = Answer(way.ids, tokenizer.decode(way.ids), "reward")
                    texts[i] = tokenizer.decode(way.whole)
                eos.append(last)
            name = str(setting or "hindsight")
            found[name] = new
            measures[name] = summary(pipeline, chats, plain, new, whole=texts, **given) | {
                "eos": mean(eos),
                "changed": sum(a != b for a, b in zip(new, ours, strict=True)),
                "passes": sum(passes) / len(over),
                "tokens": sum(tokens) / len(over),
            }
        reached = [any(row.ended for row in rows[i]) for i in over]
        yield budget, measures, found, (len(over), sum(reached))


def main() -> None:
    """Prints one table a budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, action="append", help="JSONL file; repeatable")
    parser.add_argument("--half", choices=["tune", "report"], default="report")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS[:-1])
    parser.add_argument("--limit", type=int, help="use this many prompts of each file")
    parser.add_argument("--show", action="store_true", help="print the answers that change")
    parser.add_argument("--cache", type=Path, help="keep what the model writes in this file")
    args = parser.parse_args()
    prompts = []
    for file in args.prompts or [HERE / "prompts.jsonl"]:
        prompts += read_prompts(file)[args.half == "report" :: 2][: args.limit]
    pipeline, console = load_pipeline("demo", dtype="float32"), Console(width=150)
    settings = GRID if args.half == "tune" else CHOSEN
    for budget, measures, found, (over, reached) in evaluate(pipeline, prompts, settings, args):
        table = Table(
            title=f"{len(prompts)} prompts, {budget} tokens: {over} answers searched, "
            f"the model reached EOS in {reached}"
        )
        table.add_column("ends", no_wrap=True)
        for column in COLUMNS:
            table.add_column(column, justify="right")
        for name, r in measures.items():
            shares = [f"{r[key]:.1%}" for key in ("landed", "finished", "used")]
            counts = [f"{r[key]:.0f}" for key in ("changed", "passes", "tokens")]
            nats = [f"{r[key]:.2f}" for key in ("tail_cost", "eos")]
            table.add_row(name, *shares, *nats, *counts)
        console.print(table)
        for name, rows in found.items() if args.show else ():
            for prompt, old, new in zip(prompts, found["hindsight"], rows, strict=True):
                if old != new:
                    print(
                        f"\n=== {prompt} ({name})\n- …{old.text[-130:]!r}\n+ …{new.text[-200:]!r}"
                    )


if __name__ == "__main__":
    main()
