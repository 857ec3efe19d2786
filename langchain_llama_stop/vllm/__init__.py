"""Scale-out: the same answers from a vLLM server, and a chat model that asks it for them.

    vllm serve MODEL --logits-processors langchain_llama_stop.vllm:EosRewardLogitsProcessor

The server needs vLLM and not LangChain's client, the client needs that and not vLLM: names are
loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_llama_stop.vllm.chat_model import ChatLlamaStopServer
    from langchain_llama_stop.vllm.processor import EosRewardLogitsProcessor
    from langchain_llama_stop.vllm.xargs import request_reward, reward_args

__all__ = ["ChatLlamaStopServer", "EosRewardLogitsProcessor", "request_reward", "reward_args"]

_MODULES = {
    "ChatLlamaStopServer": "vllm.chat_model",
    "EosRewardLogitsProcessor": "vllm.processor",
    "request_reward": "vllm.xargs",
    "reward_args": "vllm.xargs",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"langchain_llama_stop.{_MODULES[name]}"), name)
