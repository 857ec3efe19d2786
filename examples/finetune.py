"""Teaches the demo model to end its answers: QLoRA on a CPU, and what it changes.

Run it with `python examples/finetune.py ["output folder"]`; it takes about ten minutes.
"""

import sys
from pathlib import Path
from typing import Any

from langchain_llama_stop import ChatLlamaStop, FinetuneReport, finetune

ANSWERS = Path(__file__).with_name("short_answers.jsonl")
QUESTION = "What is a lighthouse?"


def main(output_dir: str = "adapter", **options: Any) -> FinetuneReport:
    """Trains, prints the report, and answers one question before and after."""
    settings = {"max_new_tokens": 128, "held_out": 24, "epochs": 3, **options}
    report = finetune("demo", ANSWERS, output_dir, progress=print, **settings)
    print(f"\n{report.table()}\n")
    for adapter in (None, output_dir):
        # Without the EOS reward, to see what the model itself has learned.
        chat = ChatLlamaStop(
            model="demo",
            quantization="nf4",
            adapter=adapter,
            temperature=0,
            eos_reward=False,
            max_new_tokens=settings["max_new_tokens"],
        )
        answer = chat.invoke(QUESTION)
        how = answer.response_metadata["finish_reason"]
        print(f"--- adapter: {adapter}, finish_reason: {how}\n{answer.content}\n")
    return report


if __name__ == "__main__":
    main(*sys.argv[1:2])
