"""Concurrent answers: in this process, from vLLM's server, and from vLLM with the EOS reward.

Every answer is as long as its budget (EOS is forbidden before), so that all sides compute equally
many tokens and the servers differ only in the reward's work. `make bench-serving` runs it.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from measuring import alternate, load, machine

from langchain_llama_stop import ChatLlamaStop, ChatLlamaStopServer, EosReward
from tests.vllm_server import Server

REWARD = EosReward(hindsight=False)
QUESTIONS = Path(__file__).with_name("prompts.jsonl")


def at_once(chat: Any, questions: list[str]) -> tuple[float, list[float]]:
    """Seconds until all answers are complete, and until the first token of each."""
    begin = time.perf_counter()

    def answer(question: str) -> float:
        stream = chat.stream(question)
        next(piece for piece in stream if piece.content)
        first = time.perf_counter() - begin
        for _ in stream:
            pass
        return first

    with ThreadPoolExecutor(len(questions)) as pool:
        firsts = list(pool.map(answer, questions))
    return time.perf_counter() - begin, firsts


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrent", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--tokens", type=int, default=48, help="of each answer (default 48)")
    parser.add_argument("--repeats", type=int, default=2, help="in both orders (default 2)")
    parser.add_argument("--only", nargs="+", metavar="SIDE", help="sides to run (default all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to it")
    args = parser.parse_args()
    args.device, args.dtype, args.shape = "cpu", "float32", None
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    settings = {"temperature": 0, "max_tokens": args.tokens}
    pipeline = load(args)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        servers: dict[str, Server] = {}

        def started(name: str, processor: bool) -> str:
            server = Server(pipeline.model.name_or_path, folder / f"{name}.txt", processor)
            servers[stack.enter_context(server).url] = server
            server.pause()
            return server.url

        def served(url: str, reward: bool) -> ChatLlamaStopServer:
            body = {"min_tokens": args.tokens}
            return ChatLlamaStopServer(
                model="demo", base_url=url, extra_body=body, eos_reward=reward, **settings
            )

        def measured(chat: Any, questions: list[str]) -> tuple[float, list[float]]:
            """Runs one side with the other servers paused: idle ones use the CPU too."""
            server = servers.get(getattr(chat, "base_urls", [""])[0])
            if server:
                server.resume()
            try:
                return at_once(chat, questions)
            finally:
                if server:
                    server.pause()

        plain, rewarding = started("plain", False), started("rewarding", True)
        sides: dict[str, Any] = {
            "in process, with the reward": ChatLlamaStop(
                pipeline=pipeline,
                eos_reward=REWARD,
                batch_size=64,
                pipeline_kwargs={"min_new_tokens": args.tokens},
                **settings,
            ),
            "vLLM": served(plain, False),
            "vLLM with the processor, not asked": served(rewarding, False),
            "vLLM with the reward": served(rewarding, True),
        }
        sides = {name: side for name, side in sides.items() if name in (args.only or sides)}
        print(f"{machine(args)}; {args.tokens} tokens per answer\n")
        print(
            "| answers at once | side | tokens/s (min–max) | of vLLM's | first token, p50 | p95 |"
        )
        print("|--:|---|--:|--:|--:|--:|", flush=True)
        figures = []
        for count in args.concurrent:
            questions = list(itertools.islice(itertools.cycle(prompts), count))
            works = {name: partial(measured, chat, questions) for name, chat in sides.items()}
            times, results = alternate(works, args.repeats)  # seconds around resume and pause too
            for name in sides:
                rates = [count * args.tokens / spent for spent in times[name]]
                ratios = [a / b for a, b in zip(times.get("vLLM", []), times[name], strict=False)]
                firsts = sorted(first for _, group in results[name] for first in group)
                half, late = (firsts[int(share * (len(firsts) - 1))] for share in (0.5, 0.95))
                ratio = "–"
                if ratios and name != "vLLM":
                    ratio = f"{statistics.median(ratios):.3f} ({min(ratios):.3f}–{max(ratios):.3f})"
                rate = f"{statistics.median(rates):.0f} ({min(rates):.0f}–{max(rates):.0f})"
                print(
                    f"| {count} | {name} | {rate} | {ratio} | {half:.2f} s | {late:.2f} s |",
                    flush=True,
                )
                figures.append({"count": count, "side": name, "rates": rates, "ratios": ratios})
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
