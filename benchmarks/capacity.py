"""What H100 GPUs would serve, estimated from their memory bandwidth and the measured reward.

A decode step reads all weights and all rows' keys and values once; prefill is bound by arithmetic.
The cost of the reward is measured on the CPU that runs this. `make bench-capacity` runs it.
"""

import random
import time
from dataclasses import dataclass

import torch

from langchain_llama_stop import EosReward, EosTokenRewardLogitsProcessor, load_pipeline
from langchain_llama_stop.ending.logits_processor import edit_rows_

BANDWIDTH, MEMORY, FLOPS = 3.35e12, 80e9, 990e12  # H100 SXM: bytes/s, bytes, dense bfloat16
REACHED = 0.6  # share of bandwidth and arithmetic that good kernels reach
USED = 0.9  # share of the memory that vLLM takes
PROMPT, ANSWER = 750, 256  # tokens
EXCHANGE = 12e-6  # seconds of an all-reduce between GPUs of one machine; two per layer


@dataclass
class Model:
    """The sizes of a model that matter here, in bfloat16.

    Attributes:
        name: Its name.
        weights: Parameters.
        layers: Layers.
        cached: Numbers per token and layer in the KV cache: keys and values of all heads.
        gpus: GPUs that share it.
    """

    name: str
    weights: float
    layers: int
    cached: int
    gpus: int


MODELS = (
    Model("Llama-2-7b, 1 GPU", 6.74e9, 32, 2 * 32 * 128, 1),
    Model("Llama-2-70b, 4 GPUs", 69e9, 80, 2 * 8 * 128, 4),
    Model("Llama-2-70b, 8 GPUs", 69e9, 80, 2 * 8 * 128, 8),
)


def reward_seconds(rows: int, vocabulary: int = 32_000, steps: int = 512) -> float:
    """Seconds of the reward per step, for rows that grow by a token each from random places on."""
    tokenizer = load_pipeline("demo").tokenizer
    text = "The lamp of a lighthouse turns all night. It warns ships of rocks. They keep away. "
    ids = tokenizer(text * 20)["input_ids"][:ANSWER]
    processor = EosTokenRewardLogitsProcessor(
        tokenizer, max_new_tokens=ANSWER, prompt_length=0, reward=EosReward(hindsight=False)
    )
    draw = random.Random(0)
    lengths = [draw.randrange(ANSWER) for _ in range(rows)]
    answers = [processor.answer(ids[:PROMPT]) for _ in range(rows)]
    scores = torch.randn(rows, vocabulary)
    spent = 0.0
    for _ in range(steps):
        for row, length in enumerate(lengths):  # the next request takes the place of a finished one
            lengths[row] = (length + 1) % ANSWER
            if not lengths[row]:
                answers[row] = processor.answer(ids[:PROMPT])
            scores[row, ids[lengths[row]] % vocabulary] = 20.0  # what the model writes next
        begin = time.perf_counter()
        edits = []
        for row, length in enumerate(lengths):
            if length >= processor.zone:
                answers[row].grow(ids[len(answers[row].ids) : length])
                edits.append(processor.row_edit(row, answers[row]))
        edit_rows_(scores, edits)
        spent += time.perf_counter() - begin
        for row, length in enumerate(lengths):
            scores[row, [ids[length] % vocabulary, tokenizer.eos_token_id]] = 0.0
    return spent / steps


def main() -> None:
    """Prints the table."""
    torch.set_num_threads(1)
    print("| | rows | step | tokens/s | the reward | answers/s | per machine of 8 |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for model in MODELS:
        weights, cached = 2 * model.weights, 2 * model.layers * model.cached
        room = USED * MEMORY * model.gpus - weights
        rows = min(256, int(room / (cached * (PROMPT + ANSWER))))
        # On average a row is half-way through its answer.
        read = weights + rows * cached * (PROMPT + ANSWER / 2)
        exchange = 2 * model.layers * EXCHANGE if model.gpus > 1 else 0.0
        step = read / (REACHED * BANDWIDTH * model.gpus) + exchange
        reward = reward_seconds(rows)
        prompt = 2 * model.weights * PROMPT / (REACHED * FLOPS * model.gpus)
        answers = 1 / (prompt + ANSWER * (step + reward) / rows)
        print(
            f"| {model.name} | {rows} | {step * 1e3:.1f} ms | {rows / (step + reward):,.0f} "
            f"| {reward * 1e3:.2f} ms ({reward / step:.1%}) | {answers:.1f} "
            f"| {answers * 8 / model.gpus:.0f} |"
        )


if __name__ == "__main__":
    main()
