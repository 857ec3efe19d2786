"""The same answers from a vLLM server: its logits processor, and the chat model that calls it.

    vllm serve MODEL --logits-processors langchain_llama_stop.vllm:EosRewardLogitsProcessor

The server needs vLLM but not LangChain, the chat model LangChain but not vLLM. A name is loaded on
its first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_llama_stop._lazy import lazy_names

if TYPE_CHECKING:
    from langchain_llama_stop.vllm.chat_model import ChatLlamaStopServer
    from langchain_llama_stop.vllm.processor import EosRewardLogitsProcessor
    from langchain_llama_stop.vllm.xargs import request_reward, reward_args

__all__ = ["ChatLlamaStopServer", "EosRewardLogitsProcessor", "request_reward", "reward_args"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ChatLlamaStopServer": "langchain_llama_stop.vllm.chat_model",
        "EosRewardLogitsProcessor": "langchain_llama_stop.vllm.processor",
        "request_reward": "langchain_llama_stop.vllm.xargs",
        "reward_args": "langchain_llama_stop.vllm.xargs",
    },
)
