"""Fine-tuning on a CPU or a GPU, measured before and after: `make finetune-demo`.

The demo model (NF4, QLoRA) learns to end its answers within 128 tokens, on the project's own short
answers or on those of a JSONL file. Rows whose `lang` is not "en" are left out. It measures answers
to prompts that were held out, and to open questions, which the untrained model hardly ever ends.
All answers are greedy and without the EOS reward.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import transformers
from measuring import machine
from termination import read_prompts

from langchain_llama_stop import GenerationOptions, finetune, generate, load_pipeline
from langchain_llama_stop.training.data import read_rows
from langchain_llama_stop.training.report import ending_shares

HERE = Path(__file__).parent
BUDGET = 128


def ends(pipeline, prompts: list[str]) -> str:
    """How answers to questions end, as cells of a table."""
    texts = [
        pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    options = {"max_new_tokens": BUDGET, "temperature": 0, "eos_reward": False}
    found = ending_shares(generate(pipeline, texts, GenerationOptions.parse(options)))
    return "{ended:.0%} | {landed:.0%} | {mean_tokens:.0f}".format(**found)


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    own = HERE.parent / "examples" / "short_answers.jsonl"
    parser.add_argument("--data", type=Path, default=own, help="JSONL file (default: our own)")
    parser.add_argument("--output-dir", default="adapter", help="folder for the adapter")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.jsonl")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    rows = [row for row in read_rows(args.data) if row.get("lang", "en") == "en"]
    began = time.perf_counter()
    report = finetune(
        "demo",
        rows,
        args.output_dir,
        resume=args.resume,
        progress=lambda stage: print(f"{stage} ...", file=sys.stderr, flush=True),
        max_new_tokens=BUDGET,
        max_length=384,
        held_out=args.held_out,
        epochs=args.epochs,
        learning_rate=args.learning_rate,
    )
    minutes = (time.perf_counter() - began) / 60
    args.device, args.dtype = "cuda" if torch.cuda.is_available() else "cpu", "nf4"
    args.shape = None
    print(f"{machine(args)}; {args.data.name}: {report.examples} conversations, ", end="")
    print(f"{args.epochs} epochs; {report.seconds / 60:.1f} min of training, {minutes:.1f} in all")
    print(f"\n{report.table()}\n", flush=True)
    prompts = read_prompts(args.prompts)
    print(f"| {len(prompts)} open questions, {BUDGET} tokens | end by EOS | landed | mean tokens |")
    print("|---|--:|--:|--:|")
    for name, adapter in (("before", None), ("after", args.output_dir)):
        pipeline = load_pipeline("demo", "nf4", adapter)
        print(f"| {name} | {ends(pipeline, prompts)} |", flush=True)


if __name__ == "__main__":
    main()
