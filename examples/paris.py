"""One question, answered twice: by LangChain's HuggingFacePipeline and by LlamaStopLLM.

Run it with `python examples/paris.py`; `llama-stop demo` shows the same two answers as a table.
"""

from langchain_huggingface import HuggingFacePipeline

from langchain_llama_stop import LlamaStopLLM, load_pipeline


def main() -> tuple[str, str]:
    """Prints both answers and returns them."""
    pipeline = load_pipeline("demo", quantization="nf4")
    prompt = pipeline.tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "You are a helpful travel guide."},
            {"role": "user", "content": "What can I do in Paris?"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )

    plain = HuggingFacePipeline(pipeline=pipeline)
    settings = {"max_new_tokens": 96, "do_sample": False, "return_full_text": False}
    cut = plain.invoke(prompt, pipeline_kwargs=settings)
    print(f"--- HuggingFacePipeline, cut at the token limit:\n{cut}\n")

    llm = LlamaStopLLM(pipeline=pipeline, max_new_tokens=96, temperature=0)
    whole = llm.invoke(prompt)
    print(f"--- LlamaStopLLM, the same model and the same limit:\n{whole}")
    return cut, whole


if __name__ == "__main__":
    main()
