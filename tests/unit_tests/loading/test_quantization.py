import logging
from types import SimpleNamespace

import pytest
import torch
from transformers import BitsAndBytesConfig

from langchain_llama_stop import cli
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.loading.quantization import (
    QUANTIZATIONS,
    Quantization,
    best_dtype,
    quantization_config,
    quantization_name,
    usable_dtype,
)
from tests.fakes.files import logits, save_tiny, tiny_model


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
    assert quantization_name(pipe.model.config) == name
    assert pipe.model.get_memory_footprint() < 0.8 * tiny_model().get_memory_footprint()
    far = (logits(pipe.model) - logits(tiny_model())).abs().max()
    assert 0 < far < 0.1
    pipe.tokenizer.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("device_map", "capable", "dtype"),
    [
        ("cpu", True, torch.bfloat16),
        ("cpu", False, torch.float32),
        ({"": "cpu"}, False, torch.float32),
        ({"": 0}, False, torch.bfloat16),
    ],
)
def test_nf4_is_double_quantized_and_computes_in_what_the_device_has(
    device_map, capable, dtype, monkeypatch
):
    names = {"avx512_bf16": capable, "avx2": True}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: names, raising=False)
    config = quantization_config("nf4", device_map)
    assert config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype == dtype
    own = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
    assert quantization_config(own, device_map) is own


@pytest.mark.parametrize(
    ("majors", "dtype", "training"),
    [([7], "float16", "float32"), ([8], "bfloat16", "bfloat16"), ([9, 7], "float16", "float32")],
)
def test_nf4_computes_in_float16_on_a_gpu_without_bfloat16_and_says_so(
    majors, dtype, training, monkeypatch, caplog
):
    """A T4 has the compute capability 7.5."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(majors))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda n: SimpleNamespace(major=majors[n])
    )
    caplog.set_level(logging.INFO, "langchain_llama_stop")
    config = quantization_config("nf4", {"": 0})
    assert config.bnb_4bit_compute_dtype == getattr(torch, dtype)
    said = [record.message for record in caplog.records if "bfloat16" in record.message]
    assert len(said) == (dtype == "float16")
    assert usable_dtype("bfloat16", {"": 0}, on_gpu="float32") == training
    assert usable_dtype("float16", {"": 0}, on_gpu="float32") == "float16"


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
    assert quantization_name(again.model.config) == "nf4"
    assert torch.equal(logits(again.model), logits(first.model))
    with pytest.raises(ValueError, match=r"`quantization` has to be None for .*already \('nf4'\)"):
        load_pipeline(tmp_path / "nf4", "int8")


def test_other_methods_go_by_their_own_name():
    model = SimpleNamespace(config=SimpleNamespace(quantization_config={"quant_method": "gptq"}))
    assert quantization_name(model.config) == "gptq"


# --- a new quantization

FP4 = Quantization(
    name="fp4",
    help="4-bit floating point, computes in float32",
    settings={
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "fp4",
        "bnb_4bit_compute_dtype": "float32",
    },
    recognized_by=("load_in_4bit", "bnb_4bit_quant_type"),
    dtype="float32",
)


def test_one_entry_in_the_table_adds_a_quantization(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(QUANTIZATIONS, "fp4", FP4)
    model = load_pipeline(tiny, "fp4").model
    config = model.config.quantization_config
    assert config.bnb_4bit_quant_type == "fp4"
    assert config.bnb_4bit_compute_dtype == torch.float32
    assert quantization_name(model.config) == "fp4"
    assert model.model.norm.weight.dtype == torch.float32
    assert load_pipeline(tiny, "fp4", dtype="bfloat16").model.dtype == torch.bfloat16
    args = cli.build_parser().parse_args(["ask", "--quantization", "fp4", "Why?"])
    assert args.quantization == "fp4"


def test_an_entry_is_named_in_help_and_errors(tiny, monkeypatch, capsys):
    monkeypatch.setitem(QUANTIZATIONS, "fp4", FP4)
    with pytest.raises(SystemExit):
        cli.main(["ask", "--help"])
    assert "fp4: 4-bit floating point" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ValueError, match="has to be None, 'nf4', 'int8', 'fp4' or a BitsAndBytes"):
        load_pipeline(tiny, "fp7")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"load_in_8bit": True}, "int8"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "nf4"),
        ({"load_in_4bit": True}, "fp4"),
        ({"load_in_8bit": False, "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "fp4"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
    ],
)
def test_a_saved_config_is_recognized(settings, name):
    assert quantization_name(SimpleNamespace(quantization_config=settings)) == name


def test_every_entry_is_recognized_by_its_own_settings_alone():
    for name, entry in QUANTIZATIONS.items():
        assert name == entry.name
        assert [
            other.name for other in QUANTIZATIONS.values() if other.matches(entry.settings)
        ] == [name]


# --- types of weights that are not quantized


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


def test_float16_weights_are_loaded_in_a_type_that_the_cpu_computes_in(tmp_path, monkeypatch):
    folder = save_tiny(tmp_path / "m")
    tiny_model().to(torch.float16).save_pretrained(folder)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert load_pipeline(folder, device_map={"": "cpu"}).model.dtype == torch.float32
    assert load_pipeline(folder, dtype="float16").model.dtype == torch.float16


@pytest.mark.parametrize(
    ("saved", "capable", "level", "message"),
    [
        (torch.bfloat16, False, "INFO", "saved in bfloat16 are loaded in float32"),
        (torch.float16, False, "INFO", "saved in float16 are loaded in float32"),
        (torch.float16, True, "DEBUG", "saved in float16 are loaded in bfloat16"),
        (torch.bfloat16, True, None, None),
        (torch.float32, False, None, None),
    ],
)
def test_another_type_than_the_saved_one_is_logged(
    saved, capable, level, message, monkeypatch, caplog
):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capable}, raising=False
    )
    caplog.set_level(logging.DEBUG, "langchain_llama_stop")
    best_dtype(saved, "cpu")
    records = [record for record in caplog.records if record.name == "langchain_llama_stop"]
    assert [record.levelname for record in records] == ([level] if level else [])
    assert message is None or message in records[0].getMessage()
