"""Devices that are not on this machine are refused, with what there is."""

import pytest
import torch

from langchain_llama_stop import ChatLlamaStop, LlamaStopLLM, load_pipeline
from langchain_llama_stop.loading.devices import check_device

needs_cpu_only = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
WRONG = [
    7,
    "cuda:7",
    "gpu",
    "npu:1",
    -2,
    True,
    1.5,
    "",
    "cuda:x",
    {"": "cuda:9"},
    {"a": "cpu", "b": 8},
]


@pytest.mark.parametrize("device", WRONG, ids=repr)
def test_a_device_that_is_not_here(device):
    with pytest.raises(ValueError, match="`device_map` has to name a device of this machine") as e:
        check_device(device, "device_map")
    assert "which has 'cpu'" in str(e.value) and "Leave it out" in str(e.value)


@pytest.mark.parametrize(
    "device",
    [None, "auto", "balanced", "sequential", "cpu", torch.device("cpu"), {"": "cpu", "x": "disk"}],
    ids=repr,
)
def test_a_device_that_is_here(device):
    check_device(device, "device_map")


@needs_cpu_only
@pytest.mark.parametrize("device", [0, "cuda", "cuda:0", torch.device("cuda"), {"": 0}], ids=repr)
def test_without_a_gpu(tiny, device):
    for call in (
        lambda: load_pipeline(tiny, device_map=device),
        lambda: LlamaStopLLM(model_id=str(tiny), device_map=device),
        lambda: ChatLlamaStop(model=str(tiny), device_map=device).pipeline,
        lambda: LlamaStopLLM(model_id=str(tiny), model_kwargs={"device_map": device}),
    ):
        with pytest.raises(ValueError, match="`device_map` .*'cpu' and no GPU, but is"):
            call()


@needs_cpu_only
@pytest.mark.parametrize("device", [0, 3, "cuda", "cuda:1"])
def test_the_argument_that_was_given_is_named(tiny, device):
    for model in (LlamaStopLLM, ChatLlamaStop):
        with pytest.raises(ValueError, match=f"`device` .* no GPU, but is {device!r}"):
            model.from_model_id(str(tiny), device=device)


@pytest.mark.parametrize("device", [-1, "cpu"])
def test_the_cpu_by_number_and_by_name(tiny, device):
    llm = LlamaStopLLM.from_model_id(str(tiny), device=device)
    assert llm.pipeline.device == torch.device("cpu")


def test_with_two_gpus(monkeypatch):
    """There are none here: only what torch says of them is put in its place."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    for device in (0, 1, "cuda", "cuda:1", {"": 1}):
        check_device(device, "device")
    with pytest.raises(ValueError, match="which has 'cpu', 'cuda:0', 'cuda:1', but is 'cuda:2'"):
        check_device("cuda:2", "device")
    with pytest.raises(ValueError, match="but is 'xpu:0'"):
        check_device("xpu:0", "device")
