"""LangChain models over local Llama-family pipelines whose answers end.

Importing this package imports neither torch nor transformers nor LangChain: a name is loaded on its
first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from langchain_llama_stop._lazy import lazy_names
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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "ChatLlamaStop": "langchain_llama_stop.chat_models",
        "ChatLlamaStopServer": "langchain_llama_stop.vllm.chat_model",
        "EosReward": "langchain_llama_stop.ending.reward",
        "EosTokenRewardLogitsProcessor": "langchain_llama_stop.ending.logits_processor",
        "Finding": "langchain_llama_stop.diagnosis.checks",
        "FinetuneReport": "langchain_llama_stop.training.report",
        "GenerationOptions": "langchain_llama_stop.options",
        "GenerationResponse": "langchain_llama_stop.engine.sequence",
        "LlamaStopLLM": "langchain_llama_stop.llms",
        "ModelBusyError": "langchain_llama_stop.engine.admission",
        "StopSequenceCriteria": "langchain_llama_stop.ending.stopping_criteria",
        "diagnose": "langchain_llama_stop.diagnosis.diagnose",
        "find_stop": "langchain_llama_stop.ending.stop_strings",
        "finetune": "langchain_llama_stop.training.finetune",
        "generate": "langchain_llama_stop.engine.generate",
        "load_pipeline": "langchain_llama_stop.loading",
        "merge_adapter": "langchain_llama_stop.loading",
        "stream_generate": "langchain_llama_stop.engine.generate",
    },
)
