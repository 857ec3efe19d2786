"""Files from the hub: requested only by name and revision; their code runs only if allowed."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.fakes.files import save_adapter, save_gguf, save_tiny

pytestmark = pytest.mark.slow

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RAN = "raise SystemExit('code of the repository ran')\n"


@pytest.fixture
def tiny(tmp_path):
    return save_tiny(tmp_path / "model")


@pytest.fixture
def hub(tmp_path):
    """A hub on this machine that serves folders as repositories, and records the requests.

    Repositories are gated where `tokens` holds one.
    """
    requests, tokens = [], set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            requests.append((self.path, self.headers.get("Authorization")))
            _, owner, name, *rest = self.path.split("?")[0].split("/")
            file = tmp_path / name / "/".join(rest[2:])
            exists = rest[:1] == ["resolve"] and file.is_file()
            refused = tokens and self.headers.get("Authorization") not in tokens
            body = file.read_bytes() if exists and not refused else b"{}"
            self.send_response(401 if refused else 200 if exists else 404)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hash(body) & 0xFFFFFFFF:x}"')
            if refused or not exists:
                code = "GatedRepo" if refused else "EntryNotFound"
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", requests, tokens
        server.shutdown()


def in_process(code, tmp_path, endpoint):
    """Runs code with its own home and a hub; prints how many connections it opened."""
    watch = """if True:
        import socket, sys, warnings
        warnings.simplefilter("ignore")
        real, connections = socket.socket.connect, []
        def connect(self, address):
            connections.append(address)
            return real(self, address)
        socket.socket.connect = connect
        from langchain_llama_stop import LlamaStopLLM, load_pipeline
    """
    report = "print('connections', len(connections))"
    home = {"HOME": str(tmp_path / "home"), "LLAMA_STOP_CACHE": str(tmp_path / "cache")}
    return subprocess.run(
        [sys.executable, "-c", f"{watch}\n{code}\n{report}"],
        env={"HF_ENDPOINT": endpoint, "PATH": "/usr/bin:/bin", **home},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_without_a_hub_id_no_connection_is_opened(tiny, tmp_path, hub):
    adapter = save_adapter(tmp_path / "adapter")
    file = save_gguf(tmp_path / "tiny.F32.gguf")
    code = f"""
load_pipeline({str(tiny)!r}, adapter={str(adapter)!r})
load_pipeline({str(file)!r}, "nf4")
LlamaStopLLM(model_id={str(tiny)!r}, max_new_tokens=3).invoke("Why?")
"""
    done = in_process(code, tmp_path, hub[0])
    assert done.stdout.endswith("connections 0\n"), done.stdout + done.stderr
    assert hub[1] == []


def test_a_revision_is_what_is_requested_of_the_hub(tiny, tmp_path, hub):
    code = f"""
llm = LlamaStopLLM(model_id="owner/model", revision="{COMMIT}", token="SECRET", max_new_tokens=3)
llm.invoke("Why?")
"""
    hub[2].add("Bearer SECRET")
    done = in_process(code, tmp_path, hub[0])
    assert done.returncode == 0, done.stderr
    files = [path for path, _ in hub[1] if "/resolve/" in path]
    assert any("model.safetensors" in path for path in files)
    assert all(f"/resolve/{COMMIT}/" in path for path in files)
    assert "SECRET" not in done.stdout + done.stderr


def test_pickled_weights_are_not_even_downloaded(tiny, tmp_path, hub):
    (tiny / "model.safetensors").rename(tiny / "pytorch_model.bin")
    done = in_process('load_pipeline("owner/model")', tmp_path, hub[0])
    assert "Only safetensors weights are read." in done.stderr
    fetched = list((tmp_path / "home").rglob("*.bin"))
    assert not fetched and not any(path.endswith(".bin") for path, _ in hub[1])


@pytest.mark.parametrize("where", ["folder", "hub"])
def test_code_of_a_repository_runs_only_if_allowed(tiny, tmp_path, hub, where):
    config = json.loads((tiny / "config.json").read_text())
    config["model_type"] = "mine"
    config["auto_map"] = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    (tiny / "config.json").write_text(json.dumps(config))
    (tiny / "mine.py").write_text(RAN)
    name = str(tiny) if where == "folder" else "owner/model"
    done = in_process(f"load_pipeline({name!r})", tmp_path, hub[0])
    assert "trust_remote_code=True" in done.stderr and "repository ran" not in done.stderr
    assert not list((tmp_path / "home").rglob("mine.py"))
    done = in_process(f"load_pipeline({name!r}, trust_remote_code=True)", tmp_path, hub[0])
    assert "code of the repository ran" in done.stderr
