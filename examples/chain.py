"""A chain: prompt | LLM | parser, streamed with one question, then called with a batch of them.

Run it with `python examples/chain.py`. The prompt is the chat template with a variable in it.
"""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate

from langchain_llama_stop import LlamaStopLLM


def main() -> list[str]:
    """Prints the answers and returns them."""
    llm = LlamaStopLLM.from_model_id("demo", quantization="nf4", max_new_tokens=64, temperature=0)
    template = llm.pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Explain in simple words: what is {thing}?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    chain = PromptTemplate.from_template(template) | llm | StrOutputParser()

    answers = [""]
    for piece in chain.stream({"thing": "a bridge"}):
        print(piece, end="", flush=True)
        answers[0] += piece

    answers += chain.batch([{"thing": "a library"}, {"thing": "an echo"}])  # as one padded batch
    for answer in answers[1:]:
        print(f"\n---\n{answer}")
    return answers


if __name__ == "__main__":
    main()
