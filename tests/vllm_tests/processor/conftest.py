"""The demo model's tokenizer; `make test-vllm` says where the model is."""

import os

import pytest

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@pytest.fixture(scope="session")
def folder():
    return os.environ["LLAMA_STOP_MODEL"]


@pytest.fixture(scope="session")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
