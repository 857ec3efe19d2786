"""One engine on the demo model for all tests, and what it answers in process."""

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


@pytest.fixture(scope="session")
def reference():
    """What `reference.py` has written: `make test-vllm` has run it."""
    return json.loads(Path(os.environ["LLAMA_STOP_REFERENCE"]).read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def engine(reference):
    from vllm import LLM

    return LLM(
        reference["folder"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=1024,
        logits_processors=["langchain_llama_stop.vllm:EosRewardLogitsProcessor"],
    )


@pytest.fixture(scope="session")
def tokenizer(reference):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(reference["folder"])
