"""Tiny models, adapters and .gguf files in folders."""

import warnings
from pathlib import Path

import gguf
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

HEADS, WIDTH, VOCABULARY = 2, 64, 260


def tiny_config(**changes) -> LlamaConfig:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "max_position_embeddings": 128,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }
    return LlamaConfig(**{**settings, **changes})


def tiny_model(**changes) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(tiny_config(**changes)).to(torch.bfloat16)


def same_weights(model, other) -> bool:
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def logits(model) -> torch.Tensor:
    """The logits after each of 16 tokens, of the shape (1, 16, vocabulary)."""
    with torch.no_grad():
        return model(torch.arange(3, 19).unsqueeze(0)).logits.float()


def tiny_tokens() -> list[str]:
    return ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]


def tiny_tokenizer(**special) -> PreTrainedTokenizerFast:
    vocabulary = {token: number for number, token in enumerate(tiny_tokens())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def save_tiny(folder: Path, special: dict[str, str] | None = None, **changes) -> Path:
    tiny_model(**changes).save_pretrained(folder)
    names = {"bos_token": "<s>", "eos_token": "</s>"} if special is None else special
    tiny_tokenizer(**names).save_pretrained(folder)
    return folder


def save_gguf(file: Path, shift: float = 0.0, **ids: int) -> Path:
    """Writes the tiny model as llama.cpp does: with its names and its order of q and k.

    `ids` are further special tokens, such as `eot_token_id`.
    """
    config, weights = tiny_config(), tiny_model().state_dict()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tiny_tokens())
    writer.add_token_types([3, 3, 3] + [1] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    for name, token_id in ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}", token_id)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in weights.items():
        array = tensor.float().numpy() + np.float32(shift if "embed" in name else 0)
        if "q_proj" in name or "k_proj" in name:
            halves = array.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
            array = halves.swapaxes(1, 2).reshape(WIDTH, WIDTH).copy()
        writer.add_tensor(names.get_name(name, (".weight",)), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def save_adapter(folder: Path, seed: int = 1, **changes) -> Path:
    torch.manual_seed(seed)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    with warnings.catch_warnings():  # peft reads what transformers is about to rename
        warnings.simplefilter("ignore", FutureWarning)
        model = get_peft_model(tiny_model(**changes), lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def copies(cache: Path) -> list[str]:
    """The names of the converted copies in a cache folder."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")
