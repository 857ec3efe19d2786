"""QLoRA fine-tuning that teaches a model to end its answers by EOS.

After "QLoRA: Efficient Finetuning of Quantized LLMs" (Dettmers et al., 2023): the weights stay in
4-bit NormalFloat with double quantization, gradients flow through them in bfloat16 into LoRA
matrices on all linear layers. The loop is trl's `SFTTrainer`.
"""

from __future__ import annotations

import dataclasses
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_llama_stop._checks import refuse_unknown
from langchain_llama_stop._files import whole_folder
from langchain_llama_stop._optional import Progress, require
from langchain_llama_stop.engine.config import eos_token_ids
from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.loading.quantization import QUANTIZATIONS, quantization_name
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.training.data import INSTALL_TRAIN, conversations, read_rows
from langchain_llama_stop.training.examples import Example, Supervision, supervision
from langchain_llama_stop.training.options import FinetuneOptions
from langchain_llama_stop.training.prepare import Prepared, distil, prepare
from langchain_llama_stop.training.report import FinetuneReport, Measurement, measure
from langchain_llama_stop.training.run_folder import Run

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, TextGenerationPipeline

Data = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
"""A JSONL file, the id of a data set on the hub, or rows; see `training_data.conversations`."""

SUPERVISED = 0.99
"""The share of examples whose EOS has to be supervised."""


def finetune(
    model: str | os.PathLike[str] | TextGenerationPipeline,
    data: Data | None = None,
    output_dir: str | os.PathLike[str] = "adapter",
    *,
    self_distil: Data | None = None,
    quantization: str | BitsAndBytesConfig | None = "nf4",
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> FinetuneReport:
    """Teaches a model to end its answers: QLoRA on conversations whose answers end by EOS.

    Args:
        model: As for `load_pipeline`; or a pipeline, which is left as it was.
        data: Conversations: a JSONL file, the id of a data set on the hub
            ("timdettmers/openassistant-guanaco"), or rows. A row has `text` ("### Human: … ###
            Assistant: …"), `prompt` and `completion`, or `messages`.
        output_dir: The folder for the adapter; it may not exist yet, or be empty. Checkpoints are
            kept beside it until it is written.
        self_distil: Prompts instead of `data`: the model answers them under the EOS reward, and
            what landed is what it is trained on.
        quantization: As for `load_pipeline`.
        resume: Whether to go on with a run that was interrupted.
        progress: Called with a short sentence before each stage. None: silent.
        **options: The fields of `FinetuneOptions`.

    Returns:
        What was done, and how answers ended before and after. The folder holds the adapter, a
        model card, `report.json` and `report.png`.

    Raises:
        ValueError: If an argument is out of its range, a row is no conversation, or under 99% of
            the examples have a loss on EOS: the message says why.
        FileExistsError: If the folder holds something, or an interrupted run lies beside it.
        FileNotFoundError: If a file does not exist, or there is nothing to resume.
        ImportError: If a package is missing; the message says how to install it.
    """
    refuse_unknown(options, [f.name for f in dataclasses.fields(FinetuneOptions)], "option")
    settings, tell = FinetuneOptions(**options), progress or (lambda stage: None)
    if (data is None) == (self_distil is None):
        raise ValueError("Either `data` or `self_distil` has to be given, and not both.")
    for package in ("trl", "peft", "datasets", "matplotlib", "bitsandbytes"):
        require(package, "finetune", INSTALL_TRAIN)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("finetune runs in one process, on one GPU: start it without torchrun.")
    named = isinstance(model, str | os.PathLike)
    name = os.fspath(model) if named else str(model.model.name_or_path)  # type: ignore[union-attr, arg-type]
    # Rows are read before the model is: what is wrong with them is said at once.
    talks = None if data is None else conversations(read_rows(data))
    with Run(Path(output_dir), resume) as run:
        talks = talks or run.kept("distilled")
        prompts = None if talks else conversations(read_rows(self_distil or ()), answered=False)
        if prompts and len(prompts) <= settings.held_out:
            raise ValueError(
                f"`self_distil` has to hold more prompts than the {settings.held_out} of "
                f"`held_out`, but holds {len(prompts)}: give more, or lower `held_out`."
            )
        pipeline: Any = _load(model, quantization, tell) if named else model
        if getattr(pipeline.model, "peft_config", None):
            raise ValueError(
                "The model has to be without adapters, but has one already: merge it first "
                "(`merge_adapter`), or give the model that it was put onto."
            )
        if prompts:
            talks = distil(pipeline, prompts, settings, tell)
            run.keep("distilled", talks)
        assert talks is not None
        dtype = str(pipeline.model.dtype).removeprefix("torch.")
        weights = quantization_name(pipeline.model.config) or dtype
        about = {"model": name, "weights": weights, **dataclasses.asdict(settings)}
        run.check(about, talks)
        tell(f"Encoding {len(talks):,} conversations")
        prepared = prepare(pipeline, talks, settings)
        with _trainer(pipeline, prepared, settings, run.folder) as trainer:
            report = FinetuneReport(
                model=name,
                data=_data_name(data if data is not None else self_distil, self_distil is not None),
                options={key: value for key, value in about.items() if key != "model"},
                adapter=str(output_dir),
                dropped=prepared.dropped,
                **_train(trainer, pipeline, prepared, settings, run, tell),
            )
            with whole_folder(Path(output_dir)) as folder:
                config = trainer.model.peft_config["default"]
                config.base_model_name_or_path = name
                # By their last names, so that a model with more layers is not taken for this one.
                config.target_modules = {n.rpartition(".")[2] for n in config.target_modules}
                trainer.model.save_pretrained(folder, save_embedding_layers=False)
                report.write(folder)
    return report


def _load(model: Any, quantization: Any, tell: Progress) -> Any:
    entry = QUANTIZATIONS.get(quantization) if isinstance(quantization, str) else None
    dtype = entry.training_dtype if entry else "auto"
    return load_pipeline(model, quantization, dtype=dtype, progress=tell)


@contextmanager
def _trainer(
    pipeline: Any, prepared: Prepared, settings: FinetuneOptions, folder: Path
) -> Iterator[Any]:
    """A trainer whose model is the pipeline's, which gets LoRA until the end."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, ProgressCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    from langchain_llama_stop.training.bar import TrainingBar

    on_gpu = pipeline.model.device.type == "cuda"
    config = SFTConfig(
        output_dir=str(folder),
        max_length=None,  # what is too long has been left out: nothing is cut
        num_train_epochs=1,  # the rows hold all epochs, in the order that they are seen in
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,
        optim="paged_adamw_32bit" if on_gpu else "adamw_torch",
        max_grad_norm=0.3,  # as in the paper
        activation_checkpointing=on_gpu,  # computes twice to save memory, of which CPUs have enough
        bf16=pipeline.model.dtype == torch.bfloat16,
        use_cpu=pipeline.model.device.type == "cpu",
        train_sampling_strategy="sequential",
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        save_steps=settings.save_steps,
        save_total_limit=2,
        report_to="none",
        seed=settings.seed,
        disable_tqdm=True,
    )
    config._n_gpu = 1  # the model is on one; torch's DataParallel is not wanted on the others
    lora = LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    asked_for = [(p, p.requires_grad) for p in pipeline.model.parameters()]
    pad_token = pipeline.tokenizer.pad_token
    rows = [{"input_ids": list(e.ids), "labels": e.labels} for e in _order(prepared, settings)]
    with _settings_kept(pipeline.model):
        trainer: Any = SFTTrainer(
            model=pipeline.model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=pipeline.tokenizer,
            peft_config=lora,
            callbacks=[TrainingBar()],
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    # With a name peft would ask the hub at each checkpoint whether the vocabulary has grown.
    trainer.model.peft_config["default"].base_model_name_or_path = ""
    try:
        yield trainer
    finally:
        trainer.model.unload()
        pipeline.model.eval()
        pipeline.tokenizer.pad_token = pad_token
        vars(pipeline.model).pop("forward", None)  # trl's, which computes the loss in pieces
        for parameter, wanted in asked_for:
            parameter.requires_grad_(wanted)


def _order(prepared: Prepared, settings: FinetuneOptions) -> list[Example]:
    """The examples of all epochs, shuffled, neighbours of like length in one batch.

    It depends on the seed alone, so that a run that is resumed goes on with the next ones.
    """
    shuffle, size, found = random.Random(settings.seed).shuffle, settings.batch_size, []
    for _ in range(settings.epochs):
        rows = list(prepared.examples)
        shuffle(rows)
        for begin in range(0, len(rows), 8 * size):
            alike = sorted(rows[begin : begin + 8 * size], key=lambda e: len(e.ids))
            batches = [alike[i : i + size] for i in range(0, len(alike), size)]
            shuffle(batches)
            found += [e for batch in batches for e in batch]
    return found


def _train(
    trainer: Any,
    pipeline: Any,
    prepared: Prepared,
    settings: FinetuneOptions,
    run: Run,
    tell: Progress,
) -> dict[str, Any]:
    """Checks, measures, trains and measures again; gives fields of the report."""
    checked = _supervised(trainer, pipeline, settings)
    tell(f"EOS is supervised in {checked.share:.1%} of {checked.examples:,} conversations")
    held_out, size = prepared.held_out, settings.batch_size
    if kept := run.kept("before"):
        before = Measurement(**kept)
    else:
        tell(f"Measuring {len(held_out)} answers before")
        before = measure(pipeline, held_out, settings.max_new_tokens, size)
        run.keep("before", dataclasses.asdict(before))
    tell(f"Training on {checked.examples:,} conversations ({prepared.dropped:,} left out)")
    began = time.perf_counter()
    _unpack(pipeline.model)
    # The answers afterwards are to end by the same ids as before.
    with _settings_kept(pipeline.model):
        trainer.train(resume_from_checkpoint=run.checkpoint())
    seconds = time.perf_counter() - began
    pipeline.model.eval()
    tell(f"Measuring {len(held_out)} answers afterwards")
    return {
        "examples": checked.examples,
        "eos_supervised": checked.share,
        "before": before,
        "after": measure(pipeline, held_out, settings.max_new_tokens, size),
        "losses": [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e],
        "seconds": seconds,
    }


@contextmanager
def _settings_kept(model: Any) -> Iterator[None]:
    """Keeps settings of a model: trainers put the tokenizer's ids in, and switch the cache off."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
    kept = [(c, {n: getattr(c, n) for n in names}) for c in (model.config, model.generation_config)]
    try:
        yield
    finally:
        for config, values in kept:
            for name, value in values.items():
                setattr(config, name, value)


def _unpack(model: Any) -> None:
    """Undoes what inference has done to 4-bit weights.

    On CPUs with AVX512-BF16 bitsandbytes packs them for inference. Their product then has no
    derivative: gradients end there, without an error. `state_dict` unpacks them in place.
    """
    model.state_dict()


def _supervised(trainer: Any, pipeline: Any, settings: FinetuneOptions) -> Supervision:
    """Refuses data that would not teach where answers end."""
    data, size = trainer.train_dataset, settings.batch_size
    count = len(data) // settings.epochs  # each of them once
    batches = (
        trainer.data_collator([data[i] for i in range(begin, min(begin + size, count))])
        for begin in range(0, count, size)
    )
    eos = eos_token_ids(pipeline, GenerationOptions())
    found = supervision(batches, eos, pipeline.tokenizer, settings.max_length)
    if found.share < SUPERVISED:
        reasons = "; ".join(f"in {count:,}, {reason}" for reason, count in found.reasons[:3])
        raise ValueError(
            f"At least {SUPERVISED:.0%} of the examples have to have a loss on the EOS of each "
            f"answer, else the model does not learn to stop, but of {found.examples:,} only "
            f"{found.ended:,} ({found.share:.1%}) have: {reasons}."
        )
    return found


def _data_name(data: Any, distilled: bool) -> str:
    name = str(data) if isinstance(data, str | os.PathLike) else "rows given in Python"
    return f"the model's own landed answers to {name}" if distilled else name
