"""LangChain models over local Llama-family pipelines whose answers end.

Importing this package imports neither torch nor transformers nor LangChain: names are loaded when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._version import __version__

if TYPE_CHECKING:
    from langchain_llama_stop.calls import ModelBusyError
    from langchain_llama_stop.chat_models import ChatLlamaStop
    from langchain_llama_stop.diagnosis import diagnose
    from langchain_llama_stop.eos_reward import EosReward
    from langchain_llama_stop.findings import Finding
    from langchain_llama_stop.generation import generate, stream_generate
    from langchain_llama_stop.llms import LlamaStopLLM
    from langchain_llama_stop.loading import load_pipeline
    from langchain_llama_stop.logits_process import EosTokenRewardLogitsProcessor
    from langchain_llama_stop.merging import merge_adapter
    from langchain_llama_stop.options import GenerationOptions
    from langchain_llama_stop.rows import GenerationResponse
    from langchain_llama_stop.stop_sequences import find_stop
    from langchain_llama_stop.stopping_criteria import StopSequenceCriteria
    from langchain_llama_stop.training import finetune
    from langchain_llama_stop.training_report import FinetuneReport
    from langchain_llama_stop.vllm_chat import ChatLlamaStopServer

__all__ = [
    "ChatLlamaStop",
    "ChatLlamaStopServer",
    "EosReward",
    "EosTokenRewardLogitsProcessor",
    "Finding",
    "FinetuneReport",
    "GenerationOptions",
    "GenerationResponse",
    "LlamaStopLLM",
    "ModelBusyError",
    "StopSequenceCriteria",
    "__version__",
    "diagnose",
    "find_stop",
    "finetune",
    "generate",
    "load_pipeline",
    "merge_adapter",
    "stream_generate",
]

_MODULES = {
    "ChatLlamaStop": "chat_models",
    "ChatLlamaStopServer": "vllm_chat",
    "EosReward": "eos_reward",
    "EosTokenRewardLogitsProcessor": "logits_process",
    "Finding": "findings",
    "FinetuneReport": "training_report",
    "GenerationOptions": "options",
    "GenerationResponse": "rows",
    "LlamaStopLLM": "llms",
    "ModelBusyError": "calls",
    "StopSequenceCriteria": "stopping_criteria",
    "diagnose": "diagnosis",
    "find_stop": "stop_sequences",
    "finetune": "training",
    "generate": "generation",
    "load_pipeline": "loading",
    "merge_adapter": "merging",
    "stream_generate": "generation",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    """Lists the public names."""
    return sorted(__all__)
