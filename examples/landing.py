"""One question at four budgets: each answer ends where an answer may end.

Run it with `python examples/landing.py ["Your question?"]`.
"""

import sys

from langchain_core.outputs import Generation

from langchain_llama_stop import LlamaStopLLM


def main(question: str = "How does a bicycle stay upright?") -> list[Generation]:
    """Prints the four answers and returns them."""
    llm = LlamaStopLLM.from_model_id("demo", quantization="nf4", temperature=0)
    prompt = llm.pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    answers = []
    for budget in (32, 64, 128, 256):
        answer = llm.generate([prompt], max_new_tokens=budget).generations[0][0]
        info = answer.generation_info
        used = info["usage_metadata"]["output_tokens"]
        print(f"--- budget {budget}, used {used}, ended by {info['eos_source']}:\n{answer.text}\n")
        answers.append(answer)
    return answers


if __name__ == "__main__":
    main(*sys.argv[1:2])
