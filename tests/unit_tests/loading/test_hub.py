"""What the hub refuses is one line with the next step: a hub of our own, the real client."""

import errno
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from langchain_llama_stop.loading.hub import hub_error

ANSWERS = {  # of a repository: the status and the code that the hub sends
    "owner/gated": (403, "GatedRepo"),
    "owner/missing": (404, "RepoNotFound"),
    "owner/old": (404, "RevisionNotFound"),
    "owner/broken": (500, ""),
}
EXPECTED = {
    "owner/gated": "it is gated, and you have no access yet. Accept its terms at "
    "https://huggingface.co/owner/gated, then pass a `token`",
    "owner/missing": "there is none of that name, or it is private. Check the name ('owner/name')",
    "owner/old": "it has no `revision` 'v9'. Give a branch, tag or commit",
    "owner/broken": "give a local folder",
    "no such name!": "there is none of that name",
}
CODE = """
import json, sys
from langchain_llama_stop import load_pipeline
said = {}
for name in json.loads(sys.argv[1]):
    for argument, arguments in (("model", [name]), ("adapter", [sys.argv[2], None, name])):
        try:
            load_pipeline(*arguments, revision="v9" if argument == "model" else None)
        except OSError as error:
            said[f"{argument} {name}"] = str(error)
print(json.dumps(said))
"""


class Hub(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802
        name = next((name for name in ANSWERS if name in self.path), "owner/missing")
        status, code = ANSWERS[name]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def errors(names, tiny, cache, **environment):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, json.dumps(names), str(tiny)],
        env={**os.environ, "HF_HOME": str(cache), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
def test_what_the_hub_refuses(hub, tiny, tmp_path):
    said = errors([*EXPECTED], tiny, tmp_path, HF_ENDPOINT=hub, HF_HUB_OFFLINE="0")
    for name, expected in EXPECTED.items():
        line = said[f"model {name}"]
        assert line.startswith(f"`model` is '{name}', which the Hugging Face hub did not give: ")
        assert expected in line and "\n" not in line and len(line) < 400, line
    for name in ("owner/gated", "owner/missing"):
        line = said[f"adapter {name}"]
        assert line.startswith(f"`adapter` is '{name}', which") and EXPECTED[name] in line
        assert "\n" not in line


@pytest.mark.slow
def test_without_the_network(tiny, tmp_path):
    environments = {
        "HF_HUB_OFFLINE is set": {"HF_HUB_OFFLINE": "1"},
        "cannot be reached": {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"},
    }
    for expected, environment in environments.items():
        for line in errors(["owner/any"], tiny, tmp_path, **environment).values():
            assert expected in line and "this machine has no copy" in line and "\n" not in line


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_full_disk(number, depth):
    error: BaseException = OSError(number, os.strerror(number))
    for _ in range(depth):
        outer = RuntimeError("outer")
        outer.__cause__ = error
        error = outer
    line = str(hub_error(error, "model", "owner/big", None))
    assert "is full. Free some space, or set the environment variable HF_HOME" in line
