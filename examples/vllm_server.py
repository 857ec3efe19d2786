"""Several questions to a vLLM server at once, each with its own options.

    vllm serve MODEL --logits-processors langchain_llama_stop.vllm:EosRewardLogitsProcessor
    python examples/vllm_server.py MODEL [URL ...]

The first line starts the server, the second one runs this script.
"""

import asyncio
import sys

from langchain_llama_stop import ChatLlamaStopServer, EosReward


async def main(model: str, urls: list[str]) -> None:
    """Sends the questions; prints each answer and how it ended."""
    chat = ChatLlamaStopServer(
        model=model, base_url=urls or "http://localhost:8000", temperature=0, max_tokens=64
    )
    questions = {
        "What can I do in Paris?": chat,
        "Name three rivers of France.": chat.bind(max_tokens=32, stop=["\n\n"]),
        "Why is the sky blue?": chat.bind(eos_reward=EosReward(boundary="paragraph")),
        "Tell me a story.": chat.bind(eos_reward=False),  # cut at its 64 tokens
    }
    calls = [bound.ainvoke(question) for question, bound in questions.items()]
    answers = await asyncio.gather(*calls)
    for question, answer in zip(questions, answers, strict=True):
        print(f"{question}\n{answer.content}")
        info = answer.response_metadata
        print(f"[{info['finish_reason']}, {answer.usage_metadata['output_tokens']} tokens]\n")

    async for piece in chat.astream("How do I cook rice?"):
        print(piece.content, end="", flush=True)
    print()


asyncio.run(main(sys.argv[1], sys.argv[2:]))
