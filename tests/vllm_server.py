"""vLLM's server as a process of its own, for tests and benchmarks: the line of the docs."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

import httpx2

TEMPLATE = Path(__file__).parents[1] / "examples" / "chatml_tools.jinja"
PROCESSOR = "langchain_llama_stop.vllm:EosRewardLogitsProcessor"


class Server:
    """A server as `vllm serve` starts it; the variable LLAMA_STOP_VLLM names vLLM's Python.

    Args:
        folder: The model's folder; it is served as "demo".
        log: The file that the server's output goes to.
        processor: Whether it has the EOS reward.
    """

    def __init__(self, folder: str, log: Path, processor: bool = True) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder, self._log, self._processor = folder, log, processor

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Starts it and waits until it is healthy.

        Raises:
            RuntimeError: If it is not healthy within ten minutes, with the end of its log.
        """
        command = [
            str(Path(os.environ["LLAMA_STOP_VLLM"]).with_name("vllm")),
            "serve",
            self._folder,
        ]
        settings = {
            "--served-model-name": "demo",
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--dtype": "float32",
            "--max-model-len": "2048",
            "--max-num-seqs": "64",
            "--chat-template": str(TEMPLATE),
            "--tool-call-parser": "hermes",
        }
        if self._processor:
            settings["--logits-processors"] = PROCESSOR
        arguments = [item for pair in settings.items() for item in pair]
        flags = ["--enforce-eager", "--enable-auto-tool-choice"]
        environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", **os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(self._named_vllm()), environment.get("PYTHONPATH")])
        )
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *arguments, *flags],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        until = time.monotonic() + 600
        while self._process.poll() is None and time.monotonic() < until:
            try:
                if httpx2.get(f"{self.url}/health").status_code == 200:
                    return
            except httpx2.TransportError:
                time.sleep(0.5)
        self.kill()
        raise RuntimeError("\n".join(self._log.read_text().splitlines()[-40:]))

    def _named_vllm(self) -> Path:
        """A folder in which a package "vllm" has a version.

        The script asks for the version of "vllm". The build for CPUs is called "vllm-cpu"; all else
        of the script, and what it starts, is as on a GPU.
        """
        folder = self._log.parent / "named"
        about = folder / "vllm-0.32.0+cpu.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
        return folder

    def pause(self) -> None:
        """Suspends it, because an idle engine uses the CPU."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continues it."""
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kills it and its engine, which is a process of its own."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
