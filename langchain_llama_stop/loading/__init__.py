"""A model's name into a pipeline."""

from langchain_llama_stop.loading.pipeline import load_pipeline

__all__ = ["load_pipeline"]
