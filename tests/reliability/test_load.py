"""Threads and tasks by the dozen on one model: each gets what it would get alone, in fair order.

LLAMA_STOP_LONG=1 runs for ten minutes.
"""

import asyncio
import gc
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from langchain_llama_stop import LlamaStopLLM
from tests.fakes.generation import tiny
from tests.fakes.threads import Arrivals, Gate, at_rest, wait_for

SECONDS = 600 if os.environ.get("LLAMA_STOP_LONG") else 4
OPTIONS = [
    {"max_new_tokens": 12},
    {"max_new_tokens": 30, "eos_reward": False},
    {"max_new_tokens": 20, "stop": ["a", "e"]},
    {"max_new_tokens": 16, "temperature": 1.0, "seed": 3},
    {"max_new_tokens": 9, "json_schema": {"type": "integer"}},
    {"max_new_tokens": 24, "repetition_penalty": 1.3, "top_k": 5},
    {"max_new_tokens": 20, "prefix_cache": 0, "prompt_lookup_num_tokens": 3},
]
PROMPTS = [f"Question {n}: " + "why? " * (n % 5) for n in range(10)]


def resident():
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@pytest.mark.slow
def test_32_threads_and_200_tasks_get_what_each_would_get_alone():
    llm = LlamaStopLLM(pipeline=tiny(), temperature=0)
    cases = [(prompt, options) for prompt in PROMPTS for options in OPTIONS]
    expected = [llm.invoke(prompt, **options) for prompt, options in cases]
    until, done, sizes = time.monotonic() + SECONDS, [], []

    def check(number, path, text):
        assert text == expected[number], (path, cases[number])
        done.append(path)

    def worker(seed):
        draw = random.Random(seed)
        while time.monotonic() < until:
            number = draw.randrange(len(cases))
            prompt, options = cases[number]
            kind = draw.choice(["invoke", "stream", "left", "batch"])
            if kind == "stream":
                check(number, kind, "".join(llm.stream(prompt, **options)))
            elif kind == "left":
                stream = llm.stream(prompt, **options)
                assert expected[number].startswith(next(stream))
                stream.close()
                done.append(kind)
            elif kind == "batch":
                same = [n for n, (_, other) in enumerate(cases) if other is options][:3]
                texts = llm.batch([cases[n][0] for n in same], **options)
                for n, text in zip(same, texts, strict=True):
                    check(n, kind, text)
            else:
                check(number, kind, llm.invoke(prompt, **options))

    async def task(seed):
        draw = random.Random(1000 + seed)
        while time.monotonic() < until:
            number = draw.randrange(len(cases))
            prompt, options = cases[number]
            if draw.random() < 0.2:
                call = asyncio.create_task(llm.ainvoke(prompt, **options))
                await asyncio.sleep(draw.random() / 50)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
                done.append("cancelled")
            else:
                check(number, "ainvoke", await llm.ainvoke(prompt, **options))

    async def tasks():
        await asyncio.gather(*map(task, range(200)))

    with ThreadPoolExecutor(33) as pool:
        futures = [pool.submit(worker, seed) for seed in range(32)]
        futures.append(pool.submit(asyncio.run, tasks()))
        while not all(future.done() for future in futures):
            sizes.append(resident())
            time.sleep(SECONDS / 8)
        for future in futures:
            future.result()
    counts = {path: done.count(path) for path in sorted(set(done))}
    print(f"{SECONDS} s: {len(done)} calls {counts}, none differs; {len(cases)} kinds")
    print("resident MiB:", *map(round, sizes))
    assert len(counts) == 6 and at_rest(llm.pipeline)
    half = sizes[len(sizes) // 2 :]
    assert max(half) < 1.2 * min(half) + 50  # flat


def test_nobody_waits_for_more_than_a_bounded_number_of_later_calls():
    """Calls are prefilled in the order of their arrival; none is overtaken."""
    pipeline, order = tiny(), []
    llm = LlamaStopLLM(pipeline=pipeline, temperature=0, max_new_tokens=6, batch_size=4)
    gate = Gate(pipeline)
    gate.open.clear()
    with ThreadPoolExecutor(61) as pool:
        pool.submit(llm.invoke, "first")
        assert gate.waits.wait(30)
        for number in range(60):
            arrivals = [Arrivals(order, number)]
            pool.submit(llm.invoke, PROMPTS[number % len(PROMPTS)], logits_processor=arrivals)
            wait_for(pipeline, number + 1)
        gate.open.set()
    assert order == list(range(60)) and max(gate.rows) == 4
