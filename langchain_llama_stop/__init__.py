"""LangChain models over local Llama-family pipelines whose answers end.

Importing this package imports neither torch nor transformers nor LangChain: names are loaded when
they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._version import __version__

if TYPE_CHECKING:
    from langchain_llama_stop.chat_models import ChatLlamaStop
    from langchain_llama_stop.diagnosis.checks import Finding
    from langchain_llama_stop.diagnosis.diagnose import diagnose
    from langchain_llama_stop.ending.logits_processor import EosTokenRewardLogitsProcessor
    from langchain_llama_stop.ending.reward import EosReward
    from langchain_llama_stop.ending.stop_strings import find_stop
    from langchain_llama_stop.ending.stopping_criteria import StopSequenceCriteria
    from langchain_llama_stop.engine.admission import ModelBusyError
    from langchain_llama_stop.engine.generate import generate, stream_generate
    from langchain_llama_stop.engine.sequence import GenerationResponse
    from langchain_llama_stop.llms import LlamaStopLLM
    from langchain_llama_stop.loading import load_pipeline, merge_adapter
    from langchain_llama_stop.options import GenerationOptions
    from langchain_llama_stop.training.finetune import finetune
    from langchain_llama_stop.training.report import FinetuneReport
    from langchain_llama_stop.vllm.chat_model import ChatLlamaStopServer

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
    "ChatLlamaStopServer": "vllm.chat_model",
    "EosReward": "ending.reward",
    "EosTokenRewardLogitsProcessor": "ending.logits_processor",
    "Finding": "diagnosis.checks",
    "FinetuneReport": "training.report",
    "GenerationOptions": "options",
    "GenerationResponse": "engine.sequence",
    "LlamaStopLLM": "llms",
    "ModelBusyError": "engine.admission",
    "StopSequenceCriteria": "ending.stopping_criteria",
    "diagnose": "diagnosis.diagnose",
    "find_stop": "ending.stop_strings",
    "finetune": "training.finetune",
    "generate": "engine.generate",
    "load_pipeline": "loading",
    "merge_adapter": "loading",
    "stream_generate": "engine.generate",
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
