"""Turns a model's name into a pipeline, quantized and with an adapter on request."""

from langchain_llama_stop.loading.adapters import merge_adapter
from langchain_llama_stop.loading.pipeline import load_pipeline

__all__ = ["load_pipeline", "merge_adapter"]
