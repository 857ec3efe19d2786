"""The options of a fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from langchain_llama_stop._checks import check_integer, check_number


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneOptions:
    """The options of `finetune`; `metadata["help"]` of each field says what it is.

    The learning rate is that of the QLoRA paper for models of up to 13B parameters; it falls along
    a cosine. The other defaults are chosen, not tuned.

    Raises:
        ValueError: If a value is out of its range.
    """

    max_length: int = field(
        default=1024, metadata={"help": "tokens of a conversation; longer ones are left out"}
    )
    max_new_tokens: int = field(
        default=256,
        metadata={
            "help": "token budget that the model learns to keep: conversations with a longer "
            "answer are left out, and answers are measured (and distilled) within it"
        },
    )
    held_out: int = field(
        default=40, metadata={"help": "conversations that are not trained on, but measured"}
    )
    epochs: int = field(default=2, metadata={"help": "how often each conversation is seen"})
    learning_rate: float = field(
        default=2e-4,
        metadata={"help": "highest learning rate of AdamW, after its warm-up"},
    )
    batch_size: int = field(default=8, metadata={"help": "conversations per step"})
    r: int = field(default=16, metadata={"help": "rank of the LoRA matrices"})
    lora_alpha: int = field(
        default=32,
        metadata={"help": "scale: what the LoRA matrices add is multiplied by lora_alpha / r"},
    )
    lora_dropout: float = field(
        default=0.05, metadata={"help": "share of the LoRA matrices' inputs that is dropped"}
    )
    save_steps: int = field(
        default=20,
        metadata={"help": "steps between two checkpoints: what an interruption loses at most"},
    )
    seed: int = field(default=0, metadata={"help": "seed of the shuffling and of what is held out"})

    def __post_init__(self) -> None:
        """Checks every value."""
        for name in ("epochs", "batch_size", "r", "lora_alpha", "save_steps", "held_out"):
            check_integer(name, getattr(self, name), 1, optional=False)
        check_integer("max_new_tokens", self.max_new_tokens, 2, optional=False)
        check_integer("max_length", self.max_length, 8, optional=False)
        check_integer("seed", self.seed, 0, optional=False)
        rate = self.learning_rate
        check_number("learning_rate", rate, 0, "over 0 and at most 1", above=True, most=1)
        check_number("lora_dropout", self.lora_dropout, 0, "between 0 and 1", most=1)
