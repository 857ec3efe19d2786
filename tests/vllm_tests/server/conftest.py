"""vLLM's server on the demo model, and the same model in this process."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from langchain_llama_stop import ChatLlamaStop, ChatLlamaStopServer, EosReward, load_pipeline
from tests.vllm_server import Server

QUESTIONS = [
    "What can I do in Paris?",
    "Why is the sky blue?",
    "How do I cook rice?",
    "Tell me a story about a lighthouse.",
    "Explain how a bicycle stays upright.",
    "What is a prime number?",
]


@pytest.fixture(scope="session")
def pipeline() -> Any:
    return load_pipeline("demo", dtype="float32")


@pytest.fixture(scope="session")
def start_server(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Server]:
    log = tmp_path_factory.mktemp("vllm") / "log.txt"
    return lambda: Server(pipeline.model.name_or_path, log)


@pytest.fixture(scope="session")
def server(start_server: Callable[[], Server]) -> Iterator[Server]:
    with start_server() as running:
        yield running


@pytest.fixture
def chat(server: Server) -> ChatLlamaStopServer:
    return ChatLlamaStopServer(model="demo", base_url=server.url, temperature=0, max_tokens=32)


@pytest.fixture
def local(pipeline: Any) -> ChatLlamaStop:
    reward = EosReward(hindsight=False)
    return ChatLlamaStop(pipeline=pipeline, temperature=0, max_tokens=32, eos_reward=reward)
