"""QLoRA fine-tuning that teaches a model to end its answers by EOS.

As in "QLoRA: Efficient Finetuning of Quantized LLMs" (Dettmers et al., 2023): the weights stay in
4-bit NormalFloat with double quantization, and gradients flow through them in bfloat16 into LoRA
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
from langchain_llama_stop.loading.quantization import QUANTIZATIONS, quantization_name, usable_dtype
from langchain_llama_stop.options import GenerationOptions
from langchain_llama_stop.training.data import INSTALL_TRAIN, read_rows, to_conversations
from langchain_llama_stop.training.examples import Example, Supervision, supervision
from langchain_llama_stop.training.options import FinetuneOptions
from langchain_llama_stop.training.prepare import TrainingData, distil, prepare
from langchain_llama_stop.training.report import FinetuneReport, Measurement, measure
from langchain_llama_stop.training.run_folder import RunFolder

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, TextGenerationPipeline

Data = str | os.PathLike[str] | Iterable[Mapping[str, Any]]
"""A JSONL file, the id of a data set on the hub, or rows; see `training.data.to_conversations`."""

SUPERVISED = 0.99
"""The share of examples whose EOS has to have a loss.

Chosen, not tuned: real data may hold a few odd rows, but each of the causes that are looked for
(`training.examples.supervision`) concerns most rows or all.
"""

SORTED_BATCHES = 8
"""Batches whose examples are sorted by length together.

Chosen, not tuned: more of them mean less padding, and less shuffling.
"""


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
        model: As for `load_pipeline`; or a pipeline, which is unchanged afterwards.
        data: Conversations: a JSONL file, the id of a data set on the hub
            ("timdettmers/openassistant-guanaco"), or rows. A row has `text` ("### Human: … ###
            Assistant: …"), `prompt` and `completion`, or `messages`.
        output_dir: The folder for the adapter. It must be new or empty. Checkpoints are stored
            beside it until it is written.
        self_distil: Prompts instead of `data`: the model answers them under the EOS reward, and is
            trained on the answers that landed.
        quantization: As for `load_pipeline`.
        resume: Whether to continue a run that was interrupted.
        progress: Called with a short sentence before each stage. None: silent.
        **options: The fields of `FinetuneOptions`.

    Returns:
        What was done, and how answers ended before and after. The folder contains the adapter, a
        model card, `report.json` and `report.png`.

    Raises:
        ValueError: If an argument is out of its range, a row is no conversation, or under 99% of
            the examples have a loss on EOS: the message says why.
        FileExistsError: If the folder is not empty, or an interrupted run lies beside it.
        FileNotFoundError: If a file does not exist, or there is nothing to resume.
        ImportError: If a package is missing; the message says how to install it.
    """
    refuse_unknown(options, [f.name for f in dataclasses.fields(FinetuneOptions)], "option")
    opts = FinetuneOptions(**options)
    progress = progress or (lambda stage: None)
    if (data is None) == (self_distil is None):
        raise ValueError("Either `data` or `self_distil` has to be given, and not both.")
    for package in ("trl", "peft", "datasets", "matplotlib", "bitsandbytes"):
        require(package, "finetune", INSTALL_TRAIN)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("finetune runs in one process, on one GPU: start it without torchrun.")
    named = isinstance(model, str | os.PathLike)
    name = os.fspath(model) if named else str(model.model.name_or_path)  # type: ignore[union-attr, arg-type]
    # Rows are read before the model is loaded, so that errors in them come at once.
    conversations = None if data is None else to_conversations(read_rows(data))
    with RunFolder(Path(output_dir), resume) as run:
        conversations = conversations or run.load("distilled")
        prompts = None
        if not conversations:
            prompts = to_conversations(read_rows(self_distil or ()), answered=False)
        if prompts and len(prompts) <= opts.held_out:
            raise ValueError(
                f"`self_distil` has to hold more prompts than the {opts.held_out} of "
                f"`held_out`, but holds {len(prompts)}: give more, or lower `held_out`."
            )
        pipeline: Any = _load(model, quantization, progress) if named else model
        if getattr(pipeline.model, "peft_config", None):
            raise ValueError(
                "The model has to be without adapters, but has one already: merge it first "
                "(`merge_adapter`), or give the model that it was put onto."
            )
        if prompts:
            conversations = distil(pipeline, prompts, opts, progress)
            run.save("distilled", conversations)
        assert conversations is not None
        dtype = str(pipeline.model.dtype).removeprefix("torch.")
        weights = quantization_name(pipeline.model.config) or dtype
        settings = {"weights": weights, **dataclasses.asdict(opts)}
        run.check_settings({"model": name, **settings}, conversations)
        progress(f"Encoding {len(conversations):,} conversations")
        training_data = prepare(pipeline, conversations, opts)
        with _trainer(pipeline, training_data, opts, run.path) as trainer:
            report = FinetuneReport(
                model=name,
                data=_data_name(data if data is not None else self_distil, self_distil is not None),
                options=settings,
                adapter=str(output_dir),
                dropped=training_data.dropped,
                **_train(trainer, pipeline, training_data, opts, run, progress),
            )
            with whole_folder(Path(output_dir)) as folder:
                config = trainer.model.peft_config["default"]
                config.base_model_name_or_path = name
                # By their last names: in a model with more layers peft then reports missing keys.
                config.target_modules = {n.rpartition(".")[2] for n in config.target_modules}
                trainer.model.save_pretrained(folder, save_embedding_layers=False)
                report.write(folder)
    return report


def _load(model: Any, quantization: Any, progress: Progress) -> Any:
    entry = QUANTIZATIONS.get(quantization) if isinstance(quantization, str) else None
    # In float16 gradients may overflow.
    dtype = usable_dtype(entry.training_dtype, None, on_gpu="float32") if entry else "auto"
    return load_pipeline(model, quantization, dtype=dtype, progress=progress)


@contextmanager
def _trainer(
    pipeline: Any, data: TrainingData, options: FinetuneOptions, folder: Path
) -> Iterator[Any]:
    """A trainer that puts LoRA onto the pipeline's model; afterwards the model is as before."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback, ProgressCallback
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    on_gpu = pipeline.model.device.type == "cuda"
    rows = [{"input_ids": list(e.ids), "labels": e.labels} for e in _order(data, options)]
    config = SFTConfig(
        output_dir=str(folder),
        max_length=None,  # nothing is cut: what is too long has been left out
        num_train_epochs=1,  # the rows are those of all epochs, in order
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        # As in the paper's code; but the rate begins at 0, so that few steps have no warm-up.
        warmup_steps=int(0.03 * len(rows) / options.batch_size),
        optim="paged_adamw_32bit" if on_gpu else "adamw_torch",
        max_grad_norm=0.3,  # as in the paper
        activation_checkpointing=on_gpu,  # computes twice to save memory; CPUs have enough of it
        bf16=pipeline.model.dtype == torch.bfloat16,
        use_cpu=pipeline.model.device.type == "cpu",
        train_sampling_strategy="sequential",
        dataloader_pin_memory=on_gpu,
        logging_steps=1,
        save_steps=options.save_steps,
        save_total_limit=2,  # the newest may be incomplete when the process is killed
        report_to="none",
        seed=options.seed,
        disable_tqdm=True,
    )
    config._n_gpu = 1  # the model is on one GPU: no DataParallel on the others
    lora = LoraConfig(
        r=options.r,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    required_grads = [(p, p.requires_grad) for p in pipeline.model.parameters()]
    pad_token = pipeline.tokenizer.pad_token
    with _restored_settings(pipeline.model):
        trainer: Any = SFTTrainer(
            model=pipeline.model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=pipeline.tokenizer,
            peft_config=lora,
            callbacks=[training_bar()],
        )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    # With a name, peft would ask the hub at each checkpoint whether the vocabulary has grown.
    trainer.model.peft_config["default"].base_model_name_or_path = ""
    try:
        yield trainer
    finally:
        trainer.model.unload()
        pipeline.model.eval()
        pipeline.tokenizer.pad_token = pad_token
        vars(pipeline.model).pop("forward", None)  # trl's own, which computes the loss in pieces
        for parameter, required in required_grads:
            parameter.requires_grad_(required)


def _order(data: TrainingData, options: FinetuneOptions) -> list[Example]:
    """The examples of all epochs, shuffled, with examples of similar length in one batch.

    The order depends on the seed alone, so that a resumed run continues with the next batches.
    """
    shuffle, size = random.Random(options.seed).shuffle, options.batch_size
    span, ordered = SORTED_BATCHES * size, list[Example]()
    for _ in range(options.epochs):
        rows = list(data.examples)
        shuffle(rows)
        for begin in range(0, len(rows), span):
            by_length = sorted(rows[begin : begin + span], key=lambda e: len(e.ids))
            batches = [by_length[i : i + size] for i in range(0, len(by_length), size)]
            shuffle(batches)
            ordered += [e for batch in batches for e in batch]
    return ordered


def _train(
    trainer: Any,
    pipeline: Any,
    data: TrainingData,
    options: FinetuneOptions,
    run: RunFolder,
    progress: Progress,
) -> dict[str, Any]:
    """Checks the data, measures, trains, measures again; returns fields of the report."""
    checked = _check_supervision(trainer, pipeline, options)
    progress(f"EOS is supervised in {checked.share:.1%} of {checked.examples:,} conversations")
    held_out, size = data.held_out, options.batch_size
    if stored := run.load("before"):
        before = Measurement(**stored)
    else:
        progress(f"Measuring {len(held_out)} answers before")
        before = measure(pipeline, held_out, options.max_new_tokens, size)
        run.save("before", dataclasses.asdict(before))
    progress(f"Training on {checked.examples:,} conversations ({data.dropped:,} left out)")
    start = time.perf_counter()
    unpack_weights(pipeline.model)
    # Answers after the training have to end by the same ids as before.
    with _restored_settings(pipeline.model):
        trainer.train(resume_from_checkpoint=run.checkpoint())
    seconds = time.perf_counter() - start
    pipeline.model.eval()
    progress(f"Measuring {len(held_out)} answers afterwards")
    return {
        "examples": checked.examples,
        "eos_supervised": checked.share,
        "before": before,
        "after": measure(pipeline, held_out, options.max_new_tokens, size),
        "losses": [(e["step"], e["loss"]) for e in trainer.state.log_history if "loss" in e],
        "seconds": seconds,
    }


@contextmanager
def _restored_settings(model: Any) -> Iterator[None]:
    """Restores settings that trainers change: the special ids, and whether the cache is used."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "use_cache")
    configs = (model.config, model.generation_config)
    saved = [(c, {name: getattr(c, name) for name in names}) for c in configs]
    try:
        yield
    finally:
        for config, values in saved:
            for name, value in values.items():
                setattr(config, name, value)


def unpack_weights(model: Any) -> None:
    """Unpacks 4-bit weights, in place: without this, gradients may be wrong, without an error.

    On CPUs with AVX512-BF16, bitsandbytes packs the weights at the first inference. Their product
    then has no derivative. `state_dict` unpacks them.
    """
    model.state_dict()


def training_bar() -> Any:
    """A progress bar on stderr, if that is a terminal, as a callback of the trainer."""
    from tqdm.auto import tqdm
    from transformers import TrainerCallback

    bar: Any = None

    class TrainingBar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            nonlocal bar
            done, total = state.global_step, state.max_steps  # done: where a run is resumed
            bar = tqdm(total=total, initial=done, desc="Training", unit="step", disable=None)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.update()

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            if logs and "loss" in logs:
                bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            bar.close()

    return TrainingBar()


def _check_supervision(trainer: Any, pipeline: Any, options: FinetuneOptions) -> Supervision:
    """Refuses data that would not teach where answers end."""
    data, size = trainer.train_dataset, options.batch_size
    count = len(data) // options.epochs  # each example once
    batches = (
        trainer.data_collator([data[i] for i in range(begin, min(begin + size, count))])
        for begin in range(0, count, size)
    )
    eos = eos_token_ids(pipeline, GenerationOptions())
    checked = supervision(batches, eos, pipeline.tokenizer, options.max_length)
    if checked.share < SUPERVISED:
        reasons = "; ".join(f"in {count:,}, {reason}" for reason, count in checked.reasons[:3])
        raise ValueError(
            f"At least {SUPERVISED:.0%} of the examples have to have a loss on the EOS of each "
            f"answer, else the model does not learn to stop, but of {checked.examples:,} only "
            f"{checked.supervised:,} ({checked.share:.1%}) have: {reasons}."
        )
    return checked


def _data_name(data: Any, distilled: bool) -> str:
    name = str(data) if isinstance(data, str | os.PathLike) else "rows given in Python"
    return f"the model's own landed answers to {name}" if distilled else name
