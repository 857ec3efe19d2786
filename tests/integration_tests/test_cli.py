"""The installed command on the demo model."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from langchain_llama_stop import cli, loading
from langchain_llama_stop.ending.boundaries import may_end

pytestmark = pytest.mark.slow

torch.set_num_threads(1)  # on a busy machine a second thread costs more than it gives
LLAMA_STOP = str(Path(sys.executable).with_name("llama-stop"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONWARNINGS": "ignore"}


def run(*command, cache=None):
    environment = {**ENVIRONMENT, "LLAMA_STOP_CACHE": cache} if cache else ENVIRONMENT
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300
    )


@pytest.fixture
def ask(demo_pipeline, monkeypatch, capsys):
    """Runs `llama-stop ask` in this process, on the model that is loaded already."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_VERBOSITY", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(loading, "load_pipeline", lambda *args, **kwargs: demo_pipeline)

    def run_ask(*arguments):
        assert cli.main(["ask", *arguments]) == 0
        return capsys.readouterr()

    return run_ask


def test_demo(converted_models, demo_pipeline, tmp_path):
    picture = tmp_path / "demo.svg"
    result = run(LLAMA_STOP, "demo", "--svg", str(picture), cache=converted_models)
    assert (result.returncode, result.stderr) == (0, "")
    out = result.stdout
    assert all(name in out for name in ("Plain HuggingFacePipeline", "Trimmed", "LlamaStopLLM"))
    # The answers begin alike; one breaks off at the limit and the others do not.
    assert out.count("Bonjour! Welcome to") == 3
    assert out.count("✂ cut here") == 1 and out.count("✓ ends here") == 2
    rows = {line.split()[0]: line.split("  ") for line in out.splitlines() if line.split()}
    cells = {name: [c.strip() for c in row if c.strip()][1:] for name, row in rows.items()}
    assert cells["finish_reason"] == ["not given (length)", "not given (length)", "stop"]
    assert cells["eos_source"] == ["none", "none", "closed"]  # a full stop was put in
    assert out.index("96 of 96") < out.index(" of 96", out.index("96 of 96") + 8)
    assert picture.read_text(encoding="utf-8").startswith("<svg")


def test_agent_demo(converted_models, demo_pipeline):
    result = run(LLAMA_STOP, "demo", "--agent", cache=converted_models)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("Observation: ") == 1  # invented by the plain pipeline alone
    assert "✂ all of this is invented" in result.stdout and "✓ stops" in result.stdout


def test_ask_streams_and_can_be_interrupted(converted_models, demo_pipeline):
    process = subprocess.Popen(
        [LLAMA_STOP, "ask", "--max-new-tokens", "2000", "Tell me a long story."],
        env={**ENVIRONMENT, "LLAMA_STOP_CACHE": converted_models},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where tests run in the background, SIGINT is ignored, and so it were in here.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stdout.read(8)
        assert process.poll() is None  # the answer is far from its end
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert process.stderr.read().strip() == b""


def test_ask_ends_at_a_sentence_end(ask):
    out, err = ask("--max-new-tokens", "64", "What can I do in Paris?")
    assert may_end(out)
    assert "finish_reason=stop · stop_reason=None · eos_source=" in err


def test_ask_obeys_stops(ask):
    question = ["--max-new-tokens", "32", "What is the capital of France?"]
    whole, _ = ask(*question)
    cut, err = ask("--stop", "Berlin", "--stop", "Paris", *question)
    assert cut == whole.partition("Paris")[0] + "\n" != whole
    assert "finish_reason=stop · stop_reason='Paris' · eos_source=None" in err


def test_ask_samples_repeatably(ask):
    question = ["--max-new-tokens", "16", "--temperature", "1", "--seed", "3", "Tell me a story."]
    assert ask(*question).out == ask(*question).out != ask("--seed", "4", *question[:4], "Hi").out


def test_an_unknown_folder_is_one_line():
    result = run(LLAMA_STOP, "ask", "--model", "./no-such-folder", "Why?")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("llama-stop: error: `model` is './no-such-folder', and ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["--help"], ["demo", "--help"], ["ask", "--help"]])
def test_help_imports_nothing_heavy(arguments):
    code = f"""if True:
        import sys
        from langchain_llama_stop.cli import main
        try:
            main({arguments!r})
        except SystemExit as exit_:
            names = ["torch", "transformers", "langchain_core", "rich"]
            names += ["pydantic"] if len({arguments!r}) == 1 else []
            print(exit_.code, [name for name in names if name in sys.modules])
    """
    result = run(sys.executable, "-c", code)
    assert result.stdout.startswith("usage: llama-stop")
    assert result.stdout.endswith("0 []\n"), result.stderr
