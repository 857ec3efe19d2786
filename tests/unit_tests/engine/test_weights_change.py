"""What was computed under other weights is not used again."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.testing._internal.two_tensor import TwoTensor

from langchain_llama_stop.engine.fingerprint import fingerprint
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.engine.prefix_cache import prefix_cache_of
from tests.fakes import TOKENIZERS, make_pipeline, tiny_llama
from tests.fakes.generation import options, tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers about each other

TOKENIZER = TOKENIZERS["bytes"]
PROMPT = "What is the capital of France, and how many people live there? I do not know."
OPTIONS = options(max_new_tokens=10, eos_reward=False)
UNCACHED = OPTIONS.updated({"prefix_cache": 0})


def with_adapters(wrapped=False):
    """A pipeline with the LoRA adapters a and b; a is active."""
    model = tiny_llama(len(TOKENIZER), eos_token_id=TOKENIZER.eos_token_id)
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, target_modules=["k_proj", "o_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    if wrapped:
        model = get_peft_model(model, config, adapter_name="a")
        model.add_adapter("b", config)
    else:
        model.add_adapter(config, adapter_name="a")
        model.add_adapter(config, adapter_name="b")
    model.set_adapter("a")
    return make_pipeline(model.eval(), TOKENIZER)


def layer(model):
    return model.get_submodule("model.layers.0.self_attn")


def lora_layers(model):
    return [m for m in model.modules() if isinstance(m, LoraLayer)]


def new_parameter(model):
    old = layer(model).k_proj.weight
    layer(model).k_proj.weight = torch.nn.Parameter(old.detach().flip(0))


def new_layer(model):
    layer(model).k_proj = torch.nn.Linear(32, 16, bias=False)


def swap_data(model):
    weight = layer(model).k_proj.weight
    weight.data = weight.data.flip(0).contiguous()


def by_numpy(model):
    layer(model).k_proj.weight.detach().numpy()[:] += 0.5


def in_place(model):
    with torch.no_grad():
        layer(model).k_proj.weight.add_(0.5)


def one_row(model):
    model.get_input_embeddings().weight.data[ord("a")] += 1.0


def load(model, assign):
    other = tiny_llama(len(TOKENIZER), seed=5).state_dict()
    model.load_state_dict(other, assign=assign)


def hook(model):
    layer(model).register_forward_hook(lambda module, given, out: (out[0] * 2, *out[1:]))


def buffer(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


CHANGES = {
    "through data": lambda m: layer(m).k_proj.weight.data.add_(0.5),
    "one row through data": one_row,
    "through numpy": by_numpy,
    "in place": in_place,
    "other data": swap_data,
    "a new parameter": new_parameter,
    "a new layer": new_layer,
    "a state dict": lambda m: load(m, assign=False),
    "a state dict, assigned": lambda m: load(m, assign=True),
    "bfloat16 and back": lambda m: m.to(torch.bfloat16).to(torch.float32),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "float64": lambda m: m.to(torch.float64),
    "attention scaling": lambda m: setattr(layer(m), "scaling", 3.0),
    "a hook": hook,
    "frequencies": buffer,
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_weights_goes_unnoticed(change):
    pipeline = tiny()
    before = generate(pipeline, [PROMPT], OPTIONS)
    CHANGES[change](pipeline.model)
    expected = generate(pipeline, [PROMPT], UNCACHED)
    assert generate(pipeline, [PROMPT], OPTIONS) == expected
    assert generate(pipeline, [PROMPT + " Ok"], OPTIONS) == generate(
        pipeline, [PROMPT + " Ok"], UNCACHED
    )
    if change in ("through data", "through numpy", "a new layer"):
        assert expected != before


ADAPTERS = {
    "the other one": lambda m: m.set_adapter("b"),
    "scaling": lambda m: [x.scale_layer(7.0) for x in lora_layers(m)],
    "scaling of one layer": lambda m: lora_layers(m)[-1].set_scale("a", 7.0),
    "merged": lambda m: [x.merge(adapter_names=["a", "b"]) for x in lora_layers(m)],
    "weights": lambda m: [x.lora_B["a"].weight.data.mul_(-3) for x in lora_layers(m)],
    "disabled": lambda m: [x.enable_adapters(False) for x in lora_layers(m)],
    "of one layer": lambda m: lora_layers(m)[-1].set_adapter(["b"]),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("change", ADAPTERS)
def test_no_change_of_adapters_goes_unnoticed(change, wrapped):
    pipeline = with_adapters(wrapped)
    before = generate(pipeline, [PROMPT], OPTIONS)
    ADAPTERS[change](pipeline.model)
    expected = generate(pipeline, [PROMPT], UNCACHED)
    assert generate(pipeline, [PROMPT], OPTIONS) == expected != before


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("other_call", [False, True])
def test_a_stream_that_saw_two_adapters_leaves_nothing(back, other_call):
    pipeline = with_adapters()
    stream = stream_generate(pipeline, PROMPT, options(max_new_tokens=30, eos_reward=False))
    next(stream)
    pipeline.model.set_adapter("b")
    if other_call:
        generate(pipeline, ["other"], OPTIONS)
    next(stream)
    next(stream)
    if back:
        pipeline.model.set_adapter("a")
    response = list(stream)[-1].response
    follow_up = [[*PROMPT.encode(), *response.token_ids, *b" And?"]]
    assert generate(pipeline, follow_up, OPTIONS) == generate(pipeline, follow_up, UNCACHED)
    assert generate(pipeline, [PROMPT], OPTIONS) == generate(pipeline, [PROMPT], UNCACHED)


def test_a_running_stream_and_new_calls_survive_another_dtype():
    pipeline = tiny()
    stream = stream_generate(pipeline, PROMPT, options(max_new_tokens=30, eos_reward=False))
    next(stream)
    pipeline.model.to(torch.float64)
    assert generate(pipeline, ["other"], OPTIONS) == generate(pipeline, ["other"], UNCACHED)
    assert list(stream)[-1].response.token_ids


def test_what_has_not_changed_is_used_again():
    pipeline = with_adapters()
    generate(pipeline, [PROMPT], OPTIONS)
    epoch = prefix_cache_of(pipeline.model).epoch
    for _ in range(3):
        generate(pipeline, [PROMPT], OPTIONS)
    assert prefix_cache_of(pipeline.model).epoch == epoch


def test_large_tensors_are_sampled_in_any_layout():
    model = torch.nn.Module()
    model.register_parameter("a", torch.nn.Parameter(torch.zeros(1024, 1024)))
    model.register_parameter("b", torch.nn.Parameter(torch.zeros(64, 1024).t()))
    model.register_parameter("c", torch.nn.Parameter(torch.zeros(1).expand(5, 7)))
    model.register_parameter("d", torch.nn.Parameter(torch.zeros(0)))
    model.register_parameter("e", torch.nn.Parameter(TwoTensor(torch.zeros(9), torch.zeros(9))))
    for dtype in (torch.float8_e4m3fn, torch.int8, torch.bool):
        more = torch.nn.Parameter(torch.zeros(300, 3).to(dtype), requires_grad=False)
        model.register_parameter(str(dtype)[6:], more)
    seen = fingerprint(model)
    assert fingerprint(model).same_as(seen)
    for name, parameter in model.named_parameters():
        if parameter.numel():
            part = parameter.a if name == "e" else parameter.data
            part = part[:1, :1] if name == "c" else part
            part.copy_(torch.ones_like(part))
            now = fingerprint(model)
            assert not now.same_as(seen), name
            seen = now
