"""What the same work costs beside peers: `make bench`.

Every comparison is a ratio of alternating runs in one process: the time of langchain-huggingface,
of bare transformers, or of our own classes with other options, over ours. A ratio of 2 means that
ours takes half the time. Nothing here is a test: figures depend on the machine. Twenty minutes on
two cores.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from measuring import (
    alternate,
    arguments,
    compare,
    equal,
    forward_rows,
    load,
    machine,
    peak_growth,
    table,
)
from overhead import microseconds, processors
from peers import (
    GREEDY,
    EndsAt,
    bare_generate,
    exactly,
    first_words,
    new_turns,
    passage,
    peer_chat,
    peer_options,
    peer_pipeline,
)
from transformers import LogitsProcessorList, StopStringCriteria
from transformers.generation.stopping_criteria import STOP_STRING_EMBEDDING_CACHE

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM, StopSequenceCriteria

STOPS = ["\nObservation:", "\n\nHuman:", "<end>", "###"]
CITIES = """Paris Rome Vienna Prague Lisbon Athens Oslo Dublin Madrid Berlin Cairo Lima Tokyo Delhi
Quebec Sydney""".split()


def one_prompt(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """One prompt, invoked and streamed, beside bare transformers and HuggingFacePipeline."""
    tokens = 4 if args.quick else 48
    prompt = passage(pipeline.tokenizer, 20)
    llm, peer = LlamaStopLLM(pipeline=pipeline, **exactly(tokens)), peer_pipeline(pipeline)
    options = peer_options(tokens, min_new_tokens=tokens)
    works = {
        "bare": lambda: bare_generate(pipeline, [prompt], tokens, min_new_tokens=tokens),
        "peer": lambda: peer.invoke(prompt, **options),
        "invoke": lambda: llm.invoke(prompt),
        "landed": lambda: llm.invoke(prompt, eos_reward=True),
        "stream": lambda: list(llm.stream(prompt)),
    }
    times, _ = alternate(works, args.repeats)
    bare, work = "model.generate", f"one prompt, {tokens} tokens"
    return [
        compare(f"{work}, invoke", bare, times["bare"], times["invoke"], at_least=1 / 1.01),
        compare(f"{work}, stream", bare, times["bare"], times["stream"], at_least=1 / 1.03),
        compare(f"{work}, with the EOS reward", bare, times["bare"], times["landed"]),
        compare(f"{work}, invoke", "HuggingFacePipeline", times["peer"], times["invoke"]),
    ]


def reward(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """The EOS reward at each step, beside transformers' own length penalty."""
    found = [processors(pipeline.tokenizer) for _ in range(1 if args.quick else args.repeats)]

    def figures(name: str) -> list[float]:
        place = {"processor": name, "vocabulary": 128_000, "batch": 32}
        return [s["us"] for steps in found for s in steps if place.items() <= s.items()]

    peer = "transformers' exponential decay"
    theirs = figures(peer)
    lines = []
    for where, aim in (("outside the landing zone", 3), ("inside, in hindsight", 150)):
        work, ours = f"EOS reward, 128k x 32, {where}", figures(f"ours, {where}")
        lines.append(compare(work, peer, theirs, ours, "µs", under=aim))
    return lines


def batch_works(pipeline: Any, quick: bool) -> dict[str, Callable[[], list[str]]]:
    """The batch of 8 prompts of 10 to 150 tokens, 48 new tokens each, by each side."""
    tokens = 4 if quick else 48
    lengths = [10, 20, 40, 60, 80, 100, 120, 150]
    prompts = [passage(pipeline.tokenizer, n, start) for start, n in enumerate(lengths)]
    llm = LlamaStopLLM(pipeline=pipeline, **exactly(tokens))
    one_by_one, batched = peer_pipeline(pipeline), peer_pipeline(pipeline, batch_size=8)
    options = peer_options(tokens, min_new_tokens=tokens)
    return {
        "HuggingFacePipeline": lambda: one_by_one.batch(prompts, **options),
        "HuggingFacePipeline, pipeline built with batch_size=8": lambda: batched.batch(
            prompts, **options
        ),
        "ours": lambda: llm.batch(prompts),
    }


def batch(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """8 prompts of mixed length in one call."""
    times, texts = alternate(batch_works(pipeline, args.quick), args.repeats)
    first, second, ours = times
    return [
        compare("batch of 8", first, times[first], times[ours], at_least=4.5),
        compare("batch of 8", second, times[second], times[ours]),
        equal("batch of 8, one by one and ours", texts[first][-1], texts[ours][-1]),
    ]


def uneven(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """32 prompts in one batch: 28 answers are short, 4 are long."""
    short, long = (2, 8) if args.quick else (8, 128)
    words = first_words(pipeline.tokenizer)
    texts = [passage(pipeline.tokenizer, 12 + n % 20, n) for n in range(32)]
    lengths = {f"{next(words)}: {t}": short if n % 8 else long for n, t in enumerate(texts)}
    ends = EndsAt(pipeline.tokenizer, lengths)
    settings = {"logits_processor": [ends], "max_new_tokens": long, "batch_size": len(lengths)}
    llm = LlamaStopLLM(pipeline=pipeline, **GREEDY, **settings, prefix_cache=0)

    def ours() -> tuple[list[str], int]:
        with forward_rows(pipeline.model) as rows:
            answers = [found[0] for found in llm.generate(list(lengths)).generations]
        produced = [a.generation_info["usage_metadata"]["output_tokens"] for a in answers]
        if produced != list(lengths.values()):
            raise RuntimeError(f"Answers did not end at their lengths: {produced}")
        return [answer.text for answer in answers], sum(rows)

    def bare() -> tuple[list[str], int]:
        processors = LogitsProcessorList([ends])
        with forward_rows(pipeline.model) as rows:
            answers = bare_generate(pipeline, list(lengths), long, logits_processor=processors)
        return answers, sum(rows)

    times, results = alternate({"bare": bare, "ours": ours}, args.repeats)
    tokens = sum(lengths.values())
    (bare_texts, bare_rows), (our_texts, our_rows) = results["bare"][-1], results["ours"][-1]
    what = f"32 answers: 28 of {short}, 4 of {long} tokens"
    note = (
        f"{what}: {tokens:,} tokens; tokens per row of a forward pass {tokens / our_rows:.2f} "
        f"({our_rows:,} rows), model.generate {tokens / bare_rows:.2f} ({bare_rows:,} rows)"
    )
    return [
        compare(what, "model.generate", times["bare"], times["ours"]),
        {"note": note},
        equal("32 answers, model.generate and ours", bare_texts, our_texts),
    ]


def conversation(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """The first token of a new turn after a history of 1,500 tokens."""
    tokens = 150 if args.quick else 1500
    words = first_words(pipeline.tokenizer)
    times = new_turns(pipeline, tokens, words, args.repeats, limit=4096)
    work, ours = f"first token behind {tokens:,} tokens of history", times["with"]
    return [
        compare(work, "ours, no prefix cache", times["without"], ours, at_least=15),
        compare(work, "ChatHuggingFace", times["peer"], ours, at_least=15),
    ]


def rag(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """An answer that quotes its context."""
    tokens = 12 if args.quick else 96
    # The demo model quotes this passage; others it may retell in its own words.
    text = passage(pipeline.tokenizer, 100 if args.quick else 440, start=9)
    question = f"Repeat the passage word for word.\n\nPassage: {text}"
    prompt = pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    llm, peer = LlamaStopLLM(pipeline=pipeline, **exactly(tokens)), peer_pipeline(pipeline)
    options = peer_options(tokens, min_new_tokens=tokens)
    works = {
        "ours, no lookup": lambda: llm.invoke(prompt, prompt_lookup_num_tokens=0),
        "HuggingFacePipeline": lambda: peer.invoke(prompt, **options),
        "ours": lambda: llm.invoke(prompt, prompt_lookup_num_tokens=None),
    }
    times, texts = alternate(works, args.repeats)
    with forward_rows(pipeline.model) as passes:
        works["ours"]()
    work, ours = f"quoting {tokens} tokens of the prompt", texts["ours"][-1:]
    names = list(works)[:2]
    return [
        *(compare(work, n, times[n], times["ours"], at_least=3) for n in names),
        {"note": f"{work}: {len(passes)} forward passes"},
        *(equal(f"quoting, {n} and ours", texts[n][-1:], ours) for n in names),
    ]


def timed(work: Callable[..., Any], *args: argparse.Namespace) -> tuple[str, float]:
    """The text of an answer, and the time at which it was complete."""
    return work(*args).content, time.perf_counter()


def concurrent(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """16 questions at once."""
    tokens = 4 if args.quick else 32
    questions = [f"What can I do in {city} on a Sunday?" for city in CITIES]
    chat, peer = ChatLlamaStop(pipeline=pipeline, **exactly(tokens)), peer_chat(pipeline)
    ask = partial(peer.invoke, **peer_options(tokens, min_new_tokens=tokens))

    async def at_once() -> list[tuple[str, float]]:
        async def answer(question: str) -> tuple[str, float]:
            message = await chat.ainvoke(question)
            return message.content, time.perf_counter()

        return await asyncio.gather(*map(answer, questions))

    def latencies(work: Callable[[], list[tuple[str, float]]]) -> tuple[list[str], list[float]]:
        begin = time.perf_counter()
        found = work()
        return [text for text, _ in found], sorted(end - begin for _, end in found)

    def in_threads() -> list[tuple[str, float]]:
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(partial(timed, ask), questions))

    works = {
        "peer": lambda: latencies(in_threads),
        "ours": lambda: latencies(lambda: asyncio.run(at_once())),
    }
    times, results = alternate(works, args.repeats)
    work, name = "16 chats at once", "ChatHuggingFace, 4 threads"
    lines = [compare(work, name, times["peer"], times["ours"], at_least=3)]
    for share in (50, 95):
        place = round(share / 100 * (len(questions) - 1))
        figures = {side: [run[1][place] for run in results[side]] for side in works}
        lines.append(compare(f"{work}, p{share} latency", name, figures["peer"], figures["ours"]))
    alone = [chat.invoke(question).content for question in questions]
    return [*lines, equal("16 chats, at once and one by one", results["ours"][-1][0], alone)]


def shared_prefix(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """8 prompts with one system prompt, beside 8 that differ from their first token on."""
    tokenizer, words = pipeline.tokenizer, first_words(pipeline.tokenizer)
    length = 60 if args.quick else 600
    system = passage(tokenizer, length)
    questions = [passage(tokenizer, 20, start) for start in range(5, 13)]
    llm = LlamaStopLLM(pipeline=pipeline, **{**exactly(8), "prefix_cache": 4096})

    def answer(heads: list[str]) -> list[str]:
        pairs = zip(heads, questions, strict=True)
        return llm.batch([f"{head}: {system}\n\nQuestion: {q}\nAnswer:" for head, q in pairs])

    # No two runs begin with the same words: a kept prefix would make the second one cheap.
    works = {
        "apart": lambda: answer([next(words) for _ in questions]),
        "shared": lambda: answer([next(words)] * len(questions)),
    }
    times, _ = alternate(works, args.repeats)
    work = f"8 prompts that share {length} tokens"
    return [compare(work, "ours, nothing shared", times["apart"], times["shared"])]


def imports(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """Imports, each in an interpreter of its own."""
    core, peer, ours = "langchain_core.language_models", "langchain_huggingface", "ours"
    theirs, chat = "its ChatHuggingFace", "our ChatLlamaStop"
    codes = {
        core: "import langchain_core.language_models",
        peer: "import langchain_huggingface",
        ours: "import langchain_llama_stop",
        theirs: "from langchain_huggingface import ChatHuggingFace",
        chat: "from langchain_llama_stop import ChatLlamaStop",
    }
    works = {
        name: partial(subprocess.run, [sys.executable, "-c", code], check=True)
        for name, code in codes.items()
    }
    times, _ = alternate(works, 1 if args.quick else 2 * args.repeats + 1)
    return [
        compare("import", core, times[core], times[ours], at_least=1 / 1.05),
        compare("import", peer, times[peer], times[ours]),
        compare("import of the chat class", theirs, times[theirs], times[chat]),
    ]


def stop_strings(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """The criteria of 4 stop strings: set-up per call, then 8 rows of 64 tokens per step."""
    tokenizer = pipeline.tokenizer
    texts = [passage(tokenizer, 80, start) for start in range(8)]
    ids = torch.tensor([tokenizer(text)["input_ids"][:64] for text in texts])
    ids = ids.to(pipeline.model.device)

    def theirs() -> StopStringCriteria:
        STOP_STRING_EMBEDDING_CACHE.clear()  # else only the first call of a process pays
        return StopStringCriteria(tokenizer, STOPS)

    def ours() -> StopSequenceCriteria:
        return StopSequenceCriteria(tokenizer, stop=STOPS, prompt_length=0)

    lines = []
    works = {
        ("set-up of 4 stop strings", "ms", 1e-3, 1): (theirs, ours),
        ("4 stop strings, per row and step", "µs", 1 / 8, 30): (
            partial(theirs(), ids, None),
            partial(ours(), ids, None),
        ),
    }
    for (work, unit, factor, aim), sides in works.items():
        pairs = [[microseconds(side) * factor for side in sides] for _ in range(args.repeats)]
        peer, own = (list(figures) for figures in zip(*pairs, strict=True))
        lines.append(compare(work, "StopStringCriteria", peer, own, unit, under=aim))
    return lines


def memory(pipeline: Any, args: argparse.Namespace) -> list[dict]:
    """What the batch of 8 takes, each side in a process of its own; and the prefix cache."""
    notes = []
    shape = ["--shape", args.shape] if args.shape else []
    for name in batch_works(pipeline, args.quick):
        options = ["--device", args.device, "--dtype", args.dtype, "--memory-of", name, *shape]
        options += ["--quick"] if args.quick else []
        command = [sys.executable, __file__, *options]
        grown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        mib = int(grown.splitlines()[-1]) / 2**20
        notes.append({"note": f"peak memory of the batch of 8, {name}: {mib:,.0f} MiB"})
    config = pipeline.model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    itemsize = pipeline.model.dtype.itemsize
    size = 2 * config.num_hidden_layers * config.num_key_value_heads * head * itemsize
    full = 4096 * size / 2**20
    note = f"prefix cache: {size:,} bytes per token; {full:,.0f} MiB hold 4,096 tokens"
    return [*notes, {"note": note}]


WORKS = {
    "one-prompt": one_prompt,
    "reward": reward,
    "batch": batch,
    "uneven": uneven,
    "conversation": conversation,
    "rag": rag,
    "concurrent": concurrent,
    "shared-prefix": shared_prefix,
    "import": imports,
    "stop-strings": stop_strings,
    "memory": memory,
}


def main() -> None:
    """Runs the works, prints the table and the notes below it."""
    parser = arguments(__doc__.split("\n")[0], list(WORKS))
    parser.add_argument("--memory-of", help="only print the peak memory of this side's batch of 8")
    args = parser.parse_args()
    pipeline = load(args)
    if args.memory_of:
        bare_generate(
            pipeline, ["The town"], 2
        )  # the first pass allocates memory that belongs to no side
        print(peak_growth(batch_works(pipeline, args.quick)[args.memory_of], args.device))
        return
    found: list[dict] = []
    for name in args.only:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found += WORKS[name](pipeline, args)
        if args.json:  # after each work, so that an interrupted run leaves something
            report = {"machine": machine(args), "repeats": args.repeats, "found": found}
            args.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"{machine(args)}, {args.repeats} repeats\n")
    print(table([line for line in found if "ratios" in line]), end="\n\n")
    notes = [line for line in found if "note" in line]
    print("\n".join(f"- {line['note']}" for line in notes))
    if args.dtype == "float32" and not all(line.get("equal", True) for line in notes):
        raise SystemExit("Texts that have to be equal in float32 are not.")


if __name__ == "__main__":
    main()
