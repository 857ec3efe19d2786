"""Wrappers and kinds of RoPE: the answers are those that `generate` gives for the prompt alone."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from peft import (
    IA3Config,
    LilyConfig,
    LoHaConfig,
    LoraConfig,
    PolyConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    TrainableTokensConfig,
    get_peft_model,
)
from transformers import (
    BartConfig,
    BartForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    MistralConfig,
    MistralForCausalLM,
    MptConfig,
    MptForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from langchain_llama_stop.engine.config import check_options, context_window, eos_token_ids
from langchain_llama_stop.engine.forward import can_batch
from langchain_llama_stop.engine.generate import generate
from tests.fakes import TOKENIZERS, make_pipeline, tiny_llama
from tests.fakes.generation import options

pytestmark = pytest.mark.filterwarnings("ignore")  # peft and transformers about each other

TOKENIZER = TOKENIZERS["bytes"]
SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32}
COMMON = "The quick brown fox jumps over the lazy dog, "
ASKS = ["Why?", COMMON + "Why is that so, do you think?", COMMON + "Ok?", COMMON * 2, COMMON]


def settings(**changes):
    return options(max_new_tokens=12, eos_reward=False, **changes)


def alone(pipeline, prompt, count=12):
    """What plain `generate` gives for one prompt."""
    inputs = TOKENIZER(prompt, return_tensors="pt", return_token_type_ids=False)
    length = inputs["input_ids"].shape[1]
    pad = {"pad_token_id": 256, "eos_token_id": eos_token_ids(pipeline, settings())}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = pipeline.model.generate(**inputs, max_new_tokens=count, do_sample=False, **pad)
    return tuple(out[0, length:].tolist())


def answers(pipeline, prompts, **changes):
    return [r.token_ids for r in generate(pipeline, prompts, settings(**changes))]


def together(pipeline, prompts):
    """The answers of callers in threads of their own."""
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: answers(pipeline, [prompt])[0], prompts))


def adapted(**config):
    model = get_peft_model(tiny_llama(len(TOKENIZER)), LoraConfig(**config)).eval()
    return randomized(model)


def randomized(model, like="lora_"):
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if like in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


class Subclass(type(tiny_llama(8))):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


def subclass():
    model = tiny_llama(len(TOKENIZER))
    model.__class__ = Subclass
    return model


def phi3(**config):
    torch.manual_seed(0)
    given = {"num_key_value_heads": 2, "intermediate_size": 64, "initializer_range": 0.5}
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    given |= SHAPE | ids | {"vocab_size": len(TOKENIZER), "max_position_embeddings": 512}
    return Phi3ForCausalLM(Phi3Config(**given | config)).eval()


WRAPPED = {
    "lora": lambda: adapted(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]),
    "lora without a task": lambda: adapted(target_modules="all-linear"),
    "dora": lambda: adapted(use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    "ia3": lambda: randomized(
        get_peft_model(
            tiny_llama(len(TOKENIZER)),
            IA3Config(
                task_type="CAUSAL_LM",
                target_modules=["k_proj", "down_proj"],
                feedforward_modules=["down_proj"],
            ),
        ).eval(),
        "ia3",
    ),
    "loha": lambda: randomized(
        get_peft_model(
            tiny_llama(len(TOKENIZER)),
            LoHaConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        ).eval(),
        "hada",
    ),
    "lora of the embeddings": lambda: adapted(
        task_type="CAUSAL_LM", target_modules=["embed_tokens", "lm_head"]
    ),
    "lora with tokens": lambda: randomized(
        get_peft_model(
            tiny_llama(len(TOKENIZER)),
            LoraConfig(
                target_modules=["q_proj"], trainable_token_indices=[97], task_type="CAUSAL_LM"
            ),
        ).eval(),
        "token",
    ),
    "trained tokens": lambda: randomized(
        get_peft_model(
            tiny_llama(len(TOKENIZER)),
            TrainableTokensConfig(token_indices=[97, 98, 32], task_type="CAUSAL_LM"),
        ).eval(),
        "token",
    ),
    "compiled": lambda: torch.compile(tiny_llama(len(TOKENIZER)), backend="eager"),
    "compiled lora": lambda: torch.compile(
        adapted(task_type="CAUSAL_LM", target_modules=["q_proj"]), backend="eager"
    ),
    "subclass": subclass,
}


@pytest.mark.slow
@pytest.mark.parametrize("wrap", WRAPPED)
def test_a_wrapped_model_is_told_the_positions(wrap):
    pipeline = make_pipeline(WRAPPED[wrap](), TOKENIZER)
    expected = [alone(pipeline, ask) for ask in ASKS]
    assert answers(pipeline, ASKS[1:2]) == expected[1:2]
    assert answers(pipeline, ASKS) == expected  # after a known prefix
    assert [answers(pipeline, [ask])[0] for ask in ASKS] == expected
    assert together(pipeline, ASKS) == expected


ADDING_TOKENS = {
    "PROMPT_TUNING": PromptTuningConfig,
    "PREFIX_TUNING": PrefixTuningConfig,
    "P_TUNING": PromptEncoderConfig,
}


@pytest.mark.parametrize("kind", ADDING_TOKENS)
def test_adapters_that_add_tokens_are_refused_by_name(kind):
    config = ADDING_TOKENS[kind](num_virtual_tokens=4, task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(len(TOKENIZER)), config)
    for wrapped in (model, torch.compile(model, backend="eager")):
        with pytest.raises(ValueError, match=f"'default' is {kind}: .*prompt learning"):
            check_options(make_pipeline(wrapped, TOKENIZER), settings())


@pytest.mark.parametrize("kind", [LilyConfig, PolyConfig])
def test_adapters_that_look_at_a_whole_pass_are_refused_by_name(kind):
    config = kind(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(tiny_llama(len(TOKENIZER)), config)
    with pytest.raises(ValueError, match=f"'default' is {kind.__name__[:4].upper()}"):
        check_options(make_pipeline(model, TOKENIZER), settings())


def test_an_activated_lora_is_refused_by_name():
    model = adapted(
        task_type="CAUSAL_LM", target_modules=["q_proj"], alora_invocation_tokens=[1, 2]
    )
    with pytest.raises(ValueError, match="'default' is an activated LoRA"):
        check_options(make_pipeline(model, TOKENIZER), settings())


OTHERS = {
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(vocab_size=len(TOKENIZER), hidden_size=32, n_layer=2, n_head=4)
    ),
    "recurrent gemma": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            vocab_size=len(TOKENIZER),
            intermediate_size=64,
            num_key_value_heads=2,
            lru_width=32,
            attention_window_size=16,
            block_types=("recurrent", "attention"),
            initializer_range=0.1,
            **SHAPE,
        )
    ),
    "mpt": lambda: MptForCausalLM(
        MptConfig(vocab_size=len(TOKENIZER), d_model=32, n_layers=2, n_heads=4)
    ),
    "bart": lambda: BartForCausalLM(
        BartConfig(vocab_size=len(TOKENIZER), d_model=32, decoder_layers=2, is_decoder=True)
    ),
}


@pytest.mark.parametrize(
    ("kind", "shares"),
    [("bloom", True), ("mpt", False), ("bart", False), ("recurrent gemma", False)],
)
def test_models_that_take_no_positions_or_keep_states(kind, shares):
    torch.manual_seed(0)
    model = OTHERS[kind]().eval()
    for parameter in model.parameters():
        parameter.data.mul_(8)
    pipeline = make_pipeline(model, TOKENIZER)
    assert can_batch(model, 100) is shares
    expected = [alone(pipeline, ask) for ask in ASKS]
    assert [answers(pipeline, [ask])[0] for ask in ASKS] == expected
    assert together(pipeline, ASKS) == expected
    assert answers(pipeline, ASKS) == expected


# --- RoPE


def rope(kind, **more):
    unscaled = kind in ("linear", "dynamic")  # their config's own number is the original one
    original = {} if unscaled else {"original_max_position_embeddings": 64}
    return {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0, **original, **more}


SETS = {"short_factor": [1.0] * 4, "long_factor": [8.0] * 4}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("stated", "parameters", "window"),
    [
        (64, None, 64),
        (64, rope("yarn"), 256),
        (256, rope("yarn"), 256),
        (80, rope("yarn"), 256),  # as Qwen 3: room for an answer is in the number
        (300, rope("yarn"), 300),
        (64, {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}, 128),
        (64, rope("linear"), 256),
        (64, rope("linear", factor=1.5), 96),
        (64, rope("dynamic"), 256),
        (64, {"type": "linear", "rope_theta": 1e4, "factor": 2.0}, 128),
        (512, rope("llama3", **LLAMA3), 512),
        (128, rope("llama3", factor=32.0, **LLAMA3), 128),
        (512, rope("longrope", **SETS), 512),
    ],
)
def test_scaling_widens_the_context_window(stated, parameters, window):
    model = tiny_llama(9, max_position_embeddings=stated, rope_parameters=parameters)
    assert context_window(model) == window


def test_the_window_of_gemma_3_is_scaled_already():
    ropes = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    small = SHAPE | {"vocab_size": 9, "num_key_value_heads": 2, "head_dim": 8}
    config = Gemma3TextConfig(max_position_embeddings=512, rope_parameters=ropes, **small)
    assert context_window(Gemma3ForCausalLM(config)) == 512


def scaled(kind, model="llama", **more):
    parameters = rope(kind, **more)
    length = 512 if kind in ("longrope", "llama3") else 64
    if model == "phi3":
        return phi3(rope_parameters=parameters, original_max_position_embeddings=64)
    if model == "mistral":
        torch.manual_seed(0)
        return MistralForCausalLM(
            MistralConfig(
                vocab_size=len(TOKENIZER),
                intermediate_size=64,
                num_key_value_heads=2,
                initializer_range=0.5,
                sliding_window=None,
                max_position_embeddings=length,
                rope_parameters=parameters,
                **SHAPE,
            )
        ).eval()
    return tiny_llama(len(TOKENIZER), max_position_embeddings=length, rope_parameters=parameters)


SCALED = {
    "longrope": lambda: scaled("longrope", **SETS),
    "longrope of phi 3": lambda: scaled("longrope", "phi3", **SETS),
    "longrope of mistral": lambda: scaled("longrope", "mistral", **SETS),
    "phi 3 without scaling": lambda: phi3(original_max_position_embeddings=64),
    "dynamic": lambda: scaled("dynamic"),
    "dynamic of mistral": lambda: scaled("dynamic", "mistral"),
    "yarn": lambda: scaled("yarn"),
    "linear": lambda: scaled("linear"),
    "llama3": lambda: scaled("llama3", **LLAMA3),
    "dynamic with lora": lambda: get_peft_model(
        scaled("dynamic"), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    ).eval(),
}
LENGTHS = (40, 130, 64, 90, 52, 53)  # 64 is the original window
TEXTS = [("a b c d " * 20)[:length] for length in LENGTHS]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCALED)
def test_no_row_caller_or_cached_prefix_changes_the_frequencies_of_another(kind):
    expected = [alone(make_pipeline(SCALED[kind](), TOKENIZER), text) for text in TEXTS]
    pipeline = make_pipeline(SCALED[kind](), TOKENIZER)
    assert [answers(pipeline, [text])[0] for text in TEXTS] == expected
    assert together(pipeline, TEXTS) == expected


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_only_texts_of_the_original_length_share_passes(kind):
    model = SCALED[kind]()
    assert can_batch(model, 64) and not can_batch(model, 65)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_long_text_leaves_nothing_in_the_model(kind):
    pipeline = make_pipeline(SCALED[kind](), TOKENIZER)
    expected = alone(make_pipeline(SCALED[kind](), TOKENIZER), TEXTS[3])
    alone(pipeline, TEXTS[1])  # the user's own
    assert answers(pipeline, TEXTS[3:4]) == [expected]
    answers(pipeline, TEXTS[1:2])
    assert alone(pipeline, TEXTS[3]) == expected
    pipeline.model.train()
    pipeline.model(torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()


def test_a_long_stream_and_short_calls_take_turns():
    for kind, count in product(("longrope", "dynamic"), (5, 30)):
        fresh = make_pipeline(SCALED[kind](), TOKENIZER)
        expected = [alone(make_pipeline(SCALED[kind](), TOKENIZER), t, count) for t in TEXTS[:3]]
        with ThreadPoolExecutor(3) as pool:
            calls = pool.map(
                lambda t, p=fresh, n=count: (
                    generate(p, [t], options(max_new_tokens=n, eos_reward=False))[0].token_ids
                ),
                TEXTS[:3],
            )
            assert list(calls) == expected
