"""A few rows through `Linear` layers: torch's numbers, and the model stays as it was."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import Linear, Parameter

from langchain_llama_stop.engine import few_rows as module
from langchain_llama_stop.engine.few_rows import _FewRows, few_rows
from langchain_llama_stop.engine.generate import generate
from tests.fakes import tiny_llama
from tests.fakes.generation import options, tiny


@pytest.fixture(autouse=True)
def pays(monkeypatch):
    monkeypatch.setattr(module, "_pays", lambda: True)


@settings(max_examples=100, deadline=None)
@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    inside=st.integers(1, 40),
    outside=st.integers(1, 40),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    strided=st.booleans(),
)
@torch.inference_mode()
def test_the_numbers_are_those_of_torch(shape, inside, outside, bias, dtype, strided):
    layer = Linear(inside, outside, bias=bias).to(dtype)
    rows = torch.randn(*shape, inside, dtype=dtype)
    if strided:
        rows = rows.repeat_interleave(2, dim=-1)[..., ::2]
    expected = layer(rows)
    with few_rows(layer):
        assert type(layer) is _FewRows
        found = layer(rows)
    assert found.shape == expected.shape and found.is_contiguous()
    torch.testing.assert_close(found, expected)


def test_a_few_rows_take_the_other_layout(monkeypatch):
    seen, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: seen.append(b.shape[1]) or mm(a, b))
    layer = Linear(4, 3)
    with few_rows(layer):
        for rows in (0, 1, 2, 8, 9):
            layer(torch.randn(rows, 4))
        layer(torch.randn(2, 4, 4))
    assert seen == [2, 8, 8]


class Marked(torch.Tensor):
    """As quantized weights of torchao are: a tensor of another class in a plain `Linear`."""


def test_layers_and_weights_of_other_classes_are_left_alone(monkeypatch):
    monkeypatch.setattr(torch, "mm", None)
    plain, own = Linear(4, 3), type("Own", (Linear,), {})(4, 3)
    plain.weight = Parameter(plain.weight.detach().as_subclass(Marked))
    rows = torch.randn(2, 4)
    layers = torch.nn.ModuleList([plain, own])
    with few_rows(layers):
        assert type(own).__name__ == "Own"
        assert plain(rows).shape == own(rows).shape == (2, 3)


def test_the_model_is_as_it_was_after_a_pass_and_after_a_failed_one():
    model = tiny_llama(50)
    classes = [type(m) for m in model.modules()]
    with few_rows(model):
        assert _FewRows in map(type, model.modules())
        copied = copy.deepcopy(model)
    assert [type(m) for m in model.modules()] == classes
    with pytest.raises(RuntimeError, match="away"), few_rows(model):
        raise RuntimeError("away")
    assert [type(m) for m in model.modules()] == classes
    tokens = torch.tensor([[1, 2, 3]])
    torch.testing.assert_close(copied(tokens).logits, model(tokens).logits)


def test_layers_that_are_exchanged_are_not_kept():
    model = torch.nn.Sequential(Linear(2, 2))
    with few_rows(model):
        pass
    model[0] = torch.nn.Identity()
    assert not module._linears(model)


def test_answers_are_those_without_it(monkeypatch):
    prompts = [f"Question {n}" for n in range(6)]
    found = generate(tiny(), prompts, options(max_new_tokens=24))
    monkeypatch.setattr(module, "_pays", lambda: False)
    assert found == generate(tiny(), prompts, options(max_new_tokens=24))


@pytest.mark.parametrize(
    ("vendor", "mkl", "pays"),
    [("AuthenticAMD", True, True), ("GenuineIntel", True, False), ("AuthenticAMD", False, False)],
)
def test_it_pays_on_cpus_of_amd_with_mkl(vendor, mkl, pays, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    for read in (f"vendor_id : {vendor}\n", OSError):

        def text(self, read=read, **how):
            if read is OSError:
                raise OSError
            return read

        monkeypatch.setattr(module.Path, "read_text", text)
        monkeypatch.setattr(module.platform, "processor", lambda: f"Family 25, {vendor}")
        module._pays.cache_clear()
        assert module._pays() is pays
    module._pays.cache_clear()
