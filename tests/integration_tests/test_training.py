"""Fine-tuning and diagnosis of the demo model, in NF4, by the command and in Python."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM, diagnose, finetune, load_pipeline

torch.set_num_threads(1)
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::FutureWarning")]
LLAMA_STOP = str(Path(sys.executable).with_name("llama-stop"))
ANSWERS = Path(__file__).parents[2] / "examples" / "short_answers.jsonl"


def run(*arguments, cache):
    environment = {**os.environ, "LLAMA_STOP_CACHE": cache, "OMP_NUM_THREADS": "1"}
    command = [LLAMA_STOP, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)


def shortest(folder, count):
    """A file of the shortest of our own answers: two steps on them are fast."""
    rows = sorted(ANSWERS.read_text(encoding="utf-8").splitlines(), key=len)[:count]
    file = folder / "answers.jsonl"
    file.write_text("\n".join(rows), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(converted_models, tmp_path_factory):
    """`llama-stop finetune`, for a few steps: the folder of the adapter, and what was printed."""
    folder = tmp_path_factory.mktemp("trained")
    settings = ["--max-new-tokens", 32, "--held-out", 4, "--epochs", 2, "--batch-size", 8]
    arguments = [shortest(folder, 28), "--output-dir", folder / "adapter", *settings]
    result = run("finetune", *arguments, "--learning-rate", 1e-3, cache=converted_models)
    assert result.returncode == 0, result.stderr
    return folder / "adapter", result


def test_finetune_teaches_to_end(trained):
    folder, result = trained
    report = json.loads((folder / "report.json").read_text())
    assert report["examples"] == 24 and report["eos_supervised"] == 1.0
    assert report["after"]["eos_loss"] < report["before"]["eos_loss"] - 0.3
    assert report["after"]["mean_tokens"] <= report["before"]["mean_tokens"]
    assert "| end by EOS within 32 tokens |" in result.stdout
    assert "EOS is supervised in 100.0% of 24" in result.stderr
    assert (folder / "report.png").read_bytes()[1:4] == b"PNG"
    card = (folder / "README.md").read_text()
    assert 'base_model: "demo"' in card and "answers.jsonl" in card


def test_the_adapter_is_taken_everywhere(trained, converted_models):
    folder, _ = trained
    settings = {"quantization": "nf4", "adapter": str(folder), "max_new_tokens": 16}
    llm = LlamaStopLLM.from_model_id("demo", temperature=0, **settings)
    assert llm.invoke("The capital of France is")
    chat = ChatLlamaStop(model="demo", temperature=0, **settings)
    assert chat.invoke("What is tea?").content
    learned = diagnose(load_pipeline("demo", "nf4", folder))
    assert [finding.code for finding in learned] == ["eos-learned"]


def test_self_distillation(converted_models, demo_pipeline, tmp_path):
    prompts = [json.loads(line) for line in shortest(tmp_path, 6).read_text().splitlines()]
    report = finetune(
        "demo",
        self_distil=[{"prompt": row["prompt"]} for row in prompts],
        output_dir=tmp_path / "out",
        max_new_tokens=24,
        held_out=1,
        epochs=1,
    )
    assert report.data == "the model's own landed answers to rows given in Python"
    assert report.examples + report.dropped + 1 >= 5
    assert report.after.eos_loss < report.before.eos_loss


def test_diagnose_finds_nothing_false_in_the_demo_model(demo_pipeline, converted_models):
    findings = diagnose(demo_pipeline, max_new_tokens=256, stop=["\nObservation:"])
    assert [(finding.severity, finding.code) for finding in findings] == [("info", "eos-learned")]
    result = run("diagnose", "demo", cache=converted_models)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split()[:2] == ["info", "eos-learned"]
    assert "1 finding, 0 of them serious." in result.stdout


def test_diagnose_tells_configured_away_from_never_learned(demo_pipeline_float32):
    config = demo_pipeline_float32.model.generation_config
    before, config.eos_token_id = config.eos_token_id, 0
    try:
        (finding,) = diagnose(demo_pipeline_float32)
    finally:
        config.eos_token_id = before
    assert (finding.code, finding.severity) == ("turn-end-not-eos", "error")
    assert finding.fix == "pipeline.model.generation_config.eos_token_id = [0, 2]"
