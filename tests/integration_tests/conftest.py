import os
import tempfile
from collections.abc import Iterator

import pytest
from transformers import TextGenerationPipeline

from langchain_llama_stop.loading import load_pipeline


@pytest.fixture(scope="session", autouse=True)
def converted_models() -> Iterator[str]:
    """Keep the converted demo model for this session; LLAMA_STOP_CACHE keeps it for longer."""
    if os.environ.get("LLAMA_STOP_CACHE"):
        yield os.environ["LLAMA_STOP_CACHE"]
        return
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_STOP_CACHE", folder)
        yield folder


@pytest.fixture(scope="session")
def demo_pipeline(converted_models: str) -> TextGenerationPipeline:
    return load_pipeline("demo", quantization="nf4")


@pytest.fixture(scope="session")
def demo_pipeline_float32(converted_models: str) -> TextGenerationPipeline:
    return load_pipeline("demo", dtype="float32")
