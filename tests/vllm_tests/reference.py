"""What the demo model answers in process, for the tests on vLLM: its transformers is an older one.

Run with the environment of the repository: `python tests/vllm_tests/reference.py FILE`.
"""

import json
import sys
from pathlib import Path

from langchain_llama_stop import EosReward, GenerationOptions, generate, load_pipeline

QUESTIONS = [
    "What can I do in Paris?",
    "Why is the sky blue?",
    "How do I cook rice?",
    "Tell me a story about a lighthouse.",
    "Explain how a bicycle stays upright.",
    "What is a prime number?",
]
BUDGETS = [32, 64]


def main(file: str) -> None:
    """Writes the model's folder, the ids of the prompts and, by budget, those of the answers."""
    pipeline = load_pipeline("demo", dtype="float32")
    render = pipeline.tokenizer.apply_chat_template
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [render(c, add_generation_prompt=True, return_dict=True)["input_ids"] for c in chats]
    options = GenerationOptions.parse(
        {"temperature": 0, "batch_size": 1, "eos_reward": EosReward(hindsight=False)}
    )
    answers = {
        budget: generate(pipeline, prompts, options.updated({"max_new_tokens": budget}))
        for budget in BUDGETS
    }
    ids = {budget: [list(a.token_ids) for a in found] for budget, found in answers.items()}
    found = {"folder": pipeline.model.name_or_path, "prompts": prompts, "answers": ids}
    Path(file).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
