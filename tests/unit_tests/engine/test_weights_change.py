"""What was computed under other weights is not used again."""

import gc
import weakref

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch.testing._internal.two_tensor import TwoTensor

from langchain_llama_stop.engine.fingerprint import fingerprint
from langchain_llama_stop.engine.generate import generate, stream_generate
from langchain_llama_stop.engine.prefix_cache import prefix_cache_of
from langchain_llama_stop.engine.thread import engine_of
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


def patched(model):
    mlp = model.model.layers[0].mlp
    own = mlp.forward
    mlp.forward = lambda x: own(x) * 2


def other_class(model):
    mlp = model.model.layers[0].mlp
    mlp.__class__ = type("Doubled", (type(mlp),), {"forward": lambda self, x: self.up_proj(x) @ W})


def buffer(model):
    model.model.rotary_emb.inv_freq.mul_(0.5)


W = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))

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
    "a module without weights": lambda m: setattr(m.model.layers[0].mlp, "act_fn", torch.nn.ReLU()),
    "a number of a leaf": lambda m: setattr(
        m.model.layers[0].input_layernorm, "variance_epsilon", 5.0
    ),
    "scaling of the frequencies": lambda m: setattr(m.model.rotary_emb, "attention_scaling", 3.0),
    "another forward": patched,
    "another class": other_class,
    "the order of the layers": lambda m: setattr(
        m.model, "layers", torch.nn.ModuleList(m.model.layers[::-1])
    ),
    "another layer": lambda m: m.model.layers.__setitem__(0, tiny_llama(9, seed=7).model.layers[0]),
    "the attention": lambda m: m.set_attn_implementation("eager"),
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


class Steered(torch.nn.Module):
    """Adds a vector to what a layer gives: an attribute, no parameter or buffer."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.strength = layer, 0.0
        self.vector = torch.randn(32, generator=torch.Generator().manual_seed(0))

    def forward(self, *args, **kwargs):
        return self.layer(*args, **kwargs) + self.strength * self.vector


def by_hook(model, state):
    model.model.layers[0].register_forward_hook(lambda module, given, out: out + state["vector"])


def by_pre_hook(model, state):
    model.model.layers[0].register_forward_pre_hook(
        lambda module, given: (given[0] + state["vector"], *given[1:])
    )


def by_forward(model, state):
    own = model.model.layers[0].forward
    model.model.layers[0].forward = lambda *a, **k: own(*a, **k) + state["vector"]


@pytest.mark.parametrize("steer", [by_hook, by_pre_hook, by_forward])
def test_hooks_and_functions_with_a_state_of_their_own_are_never_trusted(steer):
    pipeline, state = tiny(), {"vector": torch.zeros(32)}
    steer(pipeline.model, state)
    before = generate(pipeline, [PROMPT], OPTIONS)
    for scale in (1.0, 3.0):
        state["vector"] = torch.full((32,), scale)
        expected = generate(pipeline, [PROMPT], UNCACHED)
        assert generate(pipeline, [PROMPT], OPTIONS) == expected != before


def test_an_attribute_of_a_module_of_ones_own_is_looked_at():
    pipeline = tiny()
    layers = pipeline.model.model.layers
    layers[0] = Steered(layers[0])
    before = generate(pipeline, [PROMPT], OPTIONS)
    for change in (
        lambda: setattr(layers[0], "strength", 20.0),
        lambda: layers[0].vector.data.mul_(-3),
        lambda: setattr(layers[0], "vector", torch.ones(32)),
    ):
        change()
        expected = generate(pipeline, [PROMPT], UNCACHED)
        assert generate(pipeline, [PROMPT], OPTIONS) == expected != before
        before = expected


def test_equal_numbers_are_no_change_and_others_at_the_same_place_are():
    model = tiny().model
    norm = model.model.norm
    norm.variance_epsilon = float("1e-3")
    seen = fingerprint(model)
    norm.variance_epsilon = float("1e-3")  # another object
    assert fingerprint(model, seen).same_as(seen)
    for number in range(50):  # freed numbers leave their places to others
        norm.variance_epsilon = number + 0.5
        now = fingerprint(model, seen)
        assert not now.same_as(seen)
        seen = now


def test_modules_that_took_the_places_of_others_are_others():
    model = tiny().model
    seen = fingerprint(model)
    for kind in (torch.nn.ReLU, torch.nn.GELU, torch.nn.ReLU, torch.nn.ReLU):
        model.model.layers[0].mlp.act_fn = kind()
        model.model.layers[0].mlp.act_fn = kind()
        now = fingerprint(model, seen)
        assert not now.same_as(seen)
        seen = now


def test_a_fingerprint_keeps_no_part_of_the_model():
    model = tiny().model
    seen = fingerprint(model)
    layer = weakref.ref(model.model.layers[0])
    other = tiny_llama(9).lm_head.weight.clone()
    torch.utils.swap_tensors(model.lm_head.weight, torch.nn.Parameter(other))  # refuses references
    model.model.layers = model.model.layers[1:]
    gc.collect()
    assert layer() is None and seen.parts.gone


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
    with engine_of(pipeline.model).stepping:  # not in the midst of a pass
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
