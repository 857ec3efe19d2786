import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.loading.quantization import quantization_name
from tests.fakes.files import logits, save_adapter, tiny_model

# peft and bitsandbytes use what transformers and torch have deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


def test_an_adapter_gives_what_peft_gives(tiny, adapter):
    pipe = load_pipeline(tiny, adapter=adapter)
    base = AutoModelForCausalLM.from_pretrained(tiny, dtype=pipe.model.dtype)
    expected = logits(PeftModel.from_pretrained(base, adapter, autocast_adapter_dtype=False).eval())
    assert type(pipe.model) is LlamaForCausalLM
    assert not pipe.model.training
    assert torch.equal(logits(pipe.model), expected)
    assert not torch.allclose(expected, logits(tiny_model()), atol=0.01)


def test_an_adapter_works_on_nf4(tiny, adapter):
    plain, adapted = load_pipeline(tiny, "nf4"), load_pipeline(tiny, "nf4", adapter)
    full = load_pipeline(tiny, adapter=adapter)
    assert quantization_name(adapted.model.config) == "nf4"
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


def test_an_adapter_is_looked_up_on_the_hub_too(tiny, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="`adapter` is 'owner/none', which the Hugging Face hub"):
        load_pipeline(tiny, adapter="owner/none")
