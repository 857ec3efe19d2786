"""The demo model, converted once and loaded once per process of tests."""

import os
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from transformers import TextGenerationPipeline

from langchain_llama_stop.loading import load_pipeline

# One thread per process: at one row of so small a model a second one costs time.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def converted_models(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[str]:
    """Keep the converted demo model for this run; LLAMA_STOP_CACHE keeps it for longer."""
    if os.environ.get("LLAMA_STOP_CACHE"):
        yield os.environ["LLAMA_STOP_CACHE"]
        return
    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":  # the folder that all processes of this run have in common
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_STOP_CACHE", str(folder / "models"))
        yield str(folder / "models")


@pytest.fixture(scope="session")
def demo_pipelines(converted_models: str) -> Callable[[str], TextGenerationPipeline]:
    """Load the demo model in NF4 or in a dtype, each once."""

    @cache
    def load(dtype: str) -> TextGenerationPipeline:
        how = {"quantization": "nf4"} if dtype == "nf4" else {"dtype": dtype}
        return load_pipeline("demo", **how)

    return load


@pytest.fixture(scope="session")
def demo_pipeline(
    demo_pipelines: Callable[[str], TextGenerationPipeline],
) -> TextGenerationPipeline:
    return demo_pipelines("nf4")


@pytest.fixture(scope="session")
def demo_pipeline_float32(
    demo_pipelines: Callable[[str], TextGenerationPipeline],
) -> TextGenerationPipeline:
    return demo_pipelines("float32")


QUESTIONS = ["What can I do in Paris?", "Why is the sky blue?", "How do I cook rice?"]


def chat(pipeline, question):
    return pipeline.tokenizer.apply_chat_template(
        [
            {"role": "system", "content": "You are a helpful travel guide."},
            {"role": "user", "content": question},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
