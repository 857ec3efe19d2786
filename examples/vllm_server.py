"""Questions at once to a vLLM server, each with options of its own.

    vllm serve MODEL --logits-processors langchain_llama_stop.vllm:EosRewardLogitsProcessor
    python examples/vllm_server.py MODEL [URL ...]

The second line runs this script.
"""

import asyncio
import sys

from langchain_llama_stop import ChatLlamaStopServer, EosReward


async def main(model: str, urls: list[str]) -> None:
    """Asks them and prints what came, and how it ended."""
    chat = ChatLlamaStopServer(
        model=model, base_url=urls or "http://localhost:8000", temperature=0, max_tokens=64
    )
    asked = {
        "What can I do in Paris?": chat,
        "Name three rivers of France.": chat.bind(max_tokens=32, stop=["\n\n"]),
        "Why is the sky blue?": chat.bind(eos_reward=EosReward(boundary="paragraph")),
        "Tell me a story.": chat.bind(eos_reward=False),  # cut at its 64 tokens
    }
    answers = await asyncio.gather(*(side.ainvoke(text) for text, side in asked.items()))
    for question, answer in zip(asked, answers, strict=True):
        print(f"{question}\n{answer.content}")
        told = answer.response_metadata
        print(f"[{told['finish_reason']}, {answer.usage_metadata['output_tokens']} tokens]\n")

    async for piece in chat.astream("How do I cook rice?"):
        print(piece.content, end="", flush=True)
    print()


asyncio.run(main(sys.argv[1], sys.argv[2:]))
