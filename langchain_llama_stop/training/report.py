"""Measures how a model ends its answers, and reports it before and after a fine-tuning."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_llama_stop._version import __version__
from langchain_llama_stop.ending.boundaries import may_end
from langchain_llama_stop.engine.config import eos_token_ids
from langchain_llama_stop.engine.generate import generate
from langchain_llama_stop.engine.sequence import GenerationResponse
from langchain_llama_stop.loading.quantization import QUANTIZATIONS
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.training.examples import Example


@dataclass(frozen=True, slots=True)
class Measurement:
    """How a model ends its answers, greedy and without any reward.

    Attributes:
        answers: Number of answers.
        ended: The share that end by EOS within the budget, 0 to 1.
        landed: The share that end by EOS, at a true end, with nothing left open, 0 to 1.
        mean_tokens: Mean length of an answer in tokens, EOS included.
        eos_loss: Mean of -log p(EOS) at the end of the reference answers, in nats.
    """

    answers: int
    ended: float
    landed: float
    mean_tokens: float
    eos_loss: float


def measure(
    pipeline: Any, held_out: Sequence[Example], max_new_tokens: int, batch_size: int
) -> Measurement:
    """Lets a model answer the prompts of examples (at least one), and measures how it ends."""
    # No prefix cache: its keys and values would be those of the model without the adapter.
    options = GenerationOptions.parse(
        {
            "max_new_tokens": max_new_tokens,
            "temperature": 0,
            "eos_reward": False,
            "prefix_cache": 0,
            "batch_size": batch_size,
        }
    )
    answers = generate(pipeline, [example.prompt for example in held_out], options)
    return Measurement(
        answers=len(answers),
        **ending_shares(answers),
        eos_loss=statistics.mean(
            -eos_logprob(pipeline, example.prompt, example.reference[:-1]) for example in held_out
        ),
    )


def ending_shares(answers: Sequence[GenerationResponse]) -> dict[str, float]:
    """Returns `ended`, `landed` and `mean_tokens` of answers (at least one), as `Measurement`."""
    ended = [answer for answer in answers if answer.eos_source]
    return {
        "ended": len(ended) / len(answers),
        "landed": sum(may_end(answer.text, following="") for answer in ended) / len(answers),
        "mean_tokens": statistics.mean(len(answer.token_ids) for answer in answers),
    }


def eos_logprob(pipeline: Any, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """Returns log p(EOS) after an answer (ids without EOS), in nats; all EOS ids summed up."""
    import torch

    eos = eos_token_ids(pipeline, GenerationOptions())
    ids = torch.tensor([[*prompt, *answer]], device=pipeline.model.device)
    with torch.no_grad():
        logits = pipeline.model(ids, use_cache=False).logits[0, -1].float()  # (vocab,)
    return float(logits.log_softmax(dim=-1)[eos].logsumexp(dim=-1))


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneReport:
    """What `finetune` did, and what it changed.

    Attributes:
        model: The model's name.
        data: The name of the data.
        options: The fields of `FinetuneOptions`, and as `weights` the type of the weights.
        adapter: The folder of the adapter.
        examples: Number of conversations that were trained on.
        dropped: Number of conversations that were left out: they or their answers are too long,
            or their prompt is held out.
        eos_supervised: The share of examples with a loss on each answer's EOS, 0 to 1.
        before: How the model ended its answers to held-out prompts before training.
        after: The same after training.
        losses: Pairs of step and training loss, in nats per token.
        seconds: Duration of the training, without measuring.
    """

    model: str
    data: str
    options: dict[str, Any]
    adapter: str
    examples: int
    dropped: int
    eos_supervised: float
    before: Measurement
    after: Measurement
    losses: list[tuple[int, float]]
    seconds: float

    def table(self) -> str:
        """The measurements, as a Markdown table."""
        budget = self.options["max_new_tokens"]
        rows = [
            (f"end by EOS within {budget} tokens", "ended", "{:.0%}"),
            ("landed (EOS, a true end, nothing open)", "landed", "{:.0%}"),
            ("mean length, tokens", "mean_tokens", "{:.0f}"),
            ("-log p(EOS) at the end of references, nats", "eos_loss", "{:.2f}"),
        ]
        lines = [f"| {self.before.answers} held-out prompts, greedy, no reward | before | after |"]
        lines.append("|---|--:|--:|")
        for text, name, format_ in rows:
            cells = (format_.format(getattr(side, name)) for side in (self.before, self.after))
            lines.append(f"| {text} | {' | '.join(cells)} |")
        return "\n".join(lines)

    def write(self, folder: Path) -> None:
        """Writes a model card (`README.md`), `report.json` and `report.png` into a folder."""
        report = json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False)
        (folder / "report.json").write_text(report + "\n", encoding="utf-8")
        (folder / "README.md").write_text(self._card(), encoding="utf-8")
        self.plot(folder / "report.png")

    def _card(self) -> str:
        settings = "\n".join(f"- {name}: {value}" for name, value in self.options.items())
        weights = self.options["weights"]
        quantization = f'quantization="{weights}", ' if weights in QUANTIZATIONS else ""
        return f"""---
base_model: {json.dumps(self.model)}
library_name: peft
pipeline_tag: text-generation
tags: [lora, langchain-llama-stop]
---

# A LoRA adapter that teaches {self.model} to end its answers

```python
from langchain_llama_stop import ChatLlamaStop

chat = ChatLlamaStop(model={self.model!r}, {quantization}adapter="<this folder>")
```

## Effect

{self.table()}

![Training loss, and how answers end before and after](report.png)

## Training

Data: {self.data}; {self.examples:,} conversations, {self.dropped:,} left out (too long, or their
prompt is held out). The loss is on answers only, and on the EOS of each in
{self.eos_supervised:.1%} of them. LoRA on all linear layers of {weights} weights, as in QLoRA
(Dettmers et al., 2023). {self.seconds:,.0f} s, langchain-llama-stop {__version__}.

{settings}
"""

    def plot(self, file: Path) -> None:
        """Draws the training loss, and how answers end before and after, into a PNG file."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        steps, losses = zip(*self.losses, strict=True) if self.losses else ((), ())
        smooth = [statistics.mean(losses[max(0, i - 9) : i + 1]) for i in range(len(losses))]
        left.plot(steps, losses, color="#9ecae1", linewidth=1)
        left.plot(steps, smooth, color="#0072B2", linewidth=2)
        left.set_title("Training loss (thick: mean of 10 steps)", fontsize=11)
        left.set_xlabel("step", fontsize=11)
        left.set_ylabel("nats per token", fontsize=11)
        left.grid(alpha=0.3)
        names = {"ended": "end by EOS", "landed": "landed"}
        sides = (("before", self.before, "#D55E00"), ("after", self.after, "#0072B2"))
        for offset, (label, side, colour) in zip((-0.19, 0.19), sides, strict=True):
            shares = [100 * getattr(side, name) for name in names]
            xs = [number + offset for number in range(len(names))]
            bars = right.bar(xs, shares, width=0.36, color=colour, label=label)
            right.bar_label(bars, fmt="%.0f%%", fontsize=11)
        right.set_xticks(range(len(names)), names.values(), fontsize=11)
        right.set_ylim(0, 128)
        right.set_yticks([0, 50, 100])
        right.set_ylabel("% of answers", fontsize=11)
        right.set_title(f"{self.before.answers} held-out prompts, no reward", fontsize=11)
        right.legend(frameon=False, ncols=2, loc="upper center", fontsize=10)
        for axis in (left, right):
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(file, dpi=160)
