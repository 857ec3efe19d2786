"""Tiny models to fine-tune, and data for them."""

from collections.abc import Mapping
from pathlib import Path

from transformers import TextGenerationPipeline

from tests.fakes import (
    ScriptedLlama,
    byte_ids,
    byte_tokenizer,
    make_pipeline,
    scripted_answers,
    tiny_llama,
)

IM_END = byte_tokenizer().convert_tokens_to_ids("<|im_end|>")
ROWS = [{"prompt": f"Say {n}.", "completion": f"{n}."} for n in range(24)]
SMALL = {"max_new_tokens": 8, "held_out": 4, "batch_size": 4, "learning_rate": 1e-2}


def tiny_pipeline(seed: int = 0) -> TextGenerationPipeline:
    """A tiny random Llama whose template ends answers with its EOS, <|im_end|>."""
    tokenizer = byte_tokenizer()
    model = tiny_llama(len(tokenizer), seed, initializer_range=0.1)
    model.generation_config.eos_token_id = IM_END
    model.name_or_path = "tiny"
    return make_pipeline(model, tokenizer)


def answering_pipeline(answers: Mapping[str, str]) -> TextGenerationPipeline:
    """A model that gives these answers to these questions, in the template."""
    tokenizer = byte_tokenizer()
    form = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = {tuple(tokenizer(form.format(q))["input_ids"]): q for q in answers}
    scores = scripted_answers(
        {ids: byte_ids(answers[q]) for ids, q in prompts.items()}, len(tokenizer), IM_END
    )
    return make_pipeline(ScriptedLlama(len(tokenizer), scores, IM_END, 256), tokenizer)


def names(folder: Path) -> list[str]:
    """The names of what a folder contains, sorted."""
    return sorted(path.name for path in folder.iterdir())
