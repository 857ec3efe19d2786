"""Fine-tuning on tiny models: real trl, real peft, real files."""

import dataclasses
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import transformers

from langchain_llama_stop import finetune, load_pipeline, merge_adapter
from langchain_llama_stop._files import whole_folder
from langchain_llama_stop.training.data import to_conversations
from langchain_llama_stop.training.finetune import unpack_weights
from langchain_llama_stop.training.options import FinetuneOptions
from langchain_llama_stop.training.prepare import distil, prepare
from langchain_llama_stop.training.report import eos_logprob, measure
from langchain_llama_stop.training.run_folder import RunFolder
from tests.fakes import byte_ids, byte_tokenizer, tiny_llama
from tests.fakes.training import IM_END, ROWS, SMALL, answering_pipeline, names, tiny_pipeline

# trl and peft use names that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
ROOT = Path(__file__).parents[3]


def test_a_model_learns_to_end_its_answers(tmp_path):
    pipeline, stages, out = tiny_pipeline(), [], tmp_path / "adapter"
    before = {name: value.clone() for name, value in pipeline.model.state_dict().items()}
    settings = [pipeline.model.generation_config.to_dict(), pipeline.model.config.to_dict()]
    report = finetune(
        pipeline, ROWS, out, epochs=12, r=8, lora_dropout=0.0, progress=stages.append, **SMALL
    )
    assert report.before.ended == 0 and report.after.ended == 1
    assert report.after.eos_loss < report.before.eos_loss - 2
    assert (report.examples, report.dropped, report.eos_supervised) == (20, 0, 1.0)
    assert len(report.losses) == 60 and report.losses[-1][1] < report.losses[0][1] - 1
    assert any("EOS is supervised in 100.0% of 20" in stage for stage in stages)

    # The pipeline is as it was.
    after = pipeline.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    again = [pipeline.model.generation_config.to_dict(), pipeline.model.config.to_dict()]
    assert again == settings and not pipeline.model.training
    assert all(parameter.requires_grad for parameter in pipeline.model.parameters())
    assert "forward" not in vars(pipeline.model)

    # The folder is whole, and nothing lies beside it.
    assert names(tmp_path) == ["adapter"]
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert names(out) == [*files, "report.json", "report.png"]
    card = (out / "README.md").read_text()
    assert report.table() in card and "rows given in Python" in card
    assert "- learning_rate: 0.01" in card and 'base_model: "tiny"' in card
    kept = json.loads((out / "report.json").read_text())
    assert kept["after"] == dataclasses.asdict(report.after) and len(kept["losses"]) == 60
    assert (
        json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    )
    with pytest.raises(FileExistsError, match="`output_dir` is .*adapter, which exists"):
        finetune(pipeline, ROWS, out, **SMALL)

    # Loaded again, and merged, it does the same.
    base = tmp_path / "base"
    pipeline.model.save_pretrained(base)
    pipeline.tokenizer.save_pretrained(base)
    held = prepare(pipeline, to_conversations(ROWS), FinetuneOptions(**SMALL)).held_out
    merged = merge_adapter(base, out, tmp_path / "merged", dtype="float32")
    assert merged == tmp_path / "merged" and "adapter_config.json" not in names(merged)
    for other in (load_pipeline(base, adapter=out), load_pipeline(merged)):
        again = dataclasses.asdict(measure(other, held, 8, 4))
        assert again == pytest.approx(dataclasses.asdict(report.after), abs=1e-3)
    assert merge_adapter(base, out, tmp_path / "half").is_dir()
    assert transformers.AutoConfig.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    with pytest.raises(FileExistsError, match="`output_dir` is .*merged, which exists"):
        merge_adapter(base, out, merged)

    # What does not fit is refused, and nothing is written.
    for layers, reason in ((1, "the model has no place for"), (3, "Found missing adapter keys")):
        other = tiny_llama(len(pipeline.tokenizer), num_hidden_layers=layers)
        other.save_pretrained(tmp_path / f"base{layers}")
        pipeline.tokenizer.save_pretrained(tmp_path / f"base{layers}")
        with pytest.raises(ValueError, match=f"does not fit the model .*{reason}"):
            merge_adapter(tmp_path / f"base{layers}", out, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
    with pytest.raises(ValueError, match="The model has to be without adapters"):
        finetune(load_pipeline(base, adapter=out), ROWS, tmp_path / "second", **SMALL)


KILLED = """
    import os, sys
    sys.path.insert(0, {root!r})
    from langchain_llama_stop.training import finetune
    from tests.fakes.training import ROWS, SMALL, tiny_pipeline

    def dies(args, state, control, **kwargs):
        if state.global_step == 7:
            os._exit(9)

    bar = finetune.training_bar()
    bar.on_step_end = dies
    finetune.training_bar = lambda: bar
    options = {{"epochs": 2, "save_steps": 3, "lora_dropout": 0.0, **SMALL}}
    finetune.finetune(tiny_pipeline(), ROWS, {out!r}, **options)
"""


@pytest.mark.slow
def test_a_killed_run_continues_where_it_was(tmp_path):
    out, settings = tmp_path / "out", {"epochs": 2, "save_steps": 3, "lora_dropout": 0.0, **SMALL}
    code = textwrap.dedent(KILLED).format(root=str(ROOT), out=str(out))
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], timeout=120).returncode == 9
    left = tmp_path / "out.checkpoints"
    assert names(tmp_path) == ["out.checkpoints"] and "checkpoint-6" in names(left)
    # A checkpoint that was being written when the process died is passed over.
    (left / "checkpoint-9").mkdir()
    (left / "checkpoint-9" / "trainer_state.json").write_text('{"global')

    with pytest.raises(FileExistsError, match="`--resume`"):
        finetune(tiny_pipeline(), ROWS, out, **settings)
    with pytest.raises(ValueError, match="`epochs` was 2 and is 3: give those, or remove"):
        finetune(tiny_pipeline(), ROWS, out, resume=True, **{**settings, "epochs": 3})
    with pytest.raises(ValueError, match="but the data are others: give those"):
        finetune(tiny_pipeline(), ROWS[1:], out, resume=True, **settings)
    resumed = finetune(tiny_pipeline(), ROWS, out, resume=True, **settings)
    assert names(tmp_path) == ["out"]
    whole = finetune(tiny_pipeline(), ROWS, tmp_path / "whole", **settings)
    assert [step for step, _ in resumed.losses] == list(range(1, 11))
    for (_, loss), (_, expected) in zip(resumed.losses, whole.losses, strict=True):
        assert loss == pytest.approx(expected, abs=1e-4)
    after = dataclasses.asdict(whole.after)
    assert dataclasses.asdict(resumed.after) == pytest.approx(after, abs=1e-3)


def test_there_has_to_be_a_run_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="no interrupted run lies in"):
        finetune(tiny_pipeline(), ROWS, tmp_path / "out", resume=True, **SMALL)
    assert names(tmp_path) == []


def test_an_eos_that_would_not_be_learned_is_refused(tmp_path):
    pipeline = tiny_pipeline()
    pipeline.model.generation_config.eos_token_id = 258
    with pytest.raises(ValueError, match=r"0 \(0.0%\) have: in 20, an answer ends with <\|im_end"):
        finetune(pipeline, ROWS, tmp_path / "out", **SMALL)
    template = pipeline.tokenizer.chat_template
    pipeline.tokenizer.chat_template = template.replace("'<|im_end|>' + ", "")
    with pytest.raises(ValueError, match="in 20, the chat template puts no EOS after an answer"):
        finetune(pipeline, ROWS, tmp_path / "out", **SMALL)
    assert "lora" not in str(pipeline.model) and names(tmp_path) == []


def test_what_is_too_long_is_left_out_and_counted(tmp_path):
    pipeline = tiny_pipeline()
    rows = [
        *({"prompt": f"{n}?", "completion": "Yes."} for n in range(6)),
        {"prompt": "7?", "completion": "Yes, indeed."},  # over `max_new_tokens`
        {"prompt": "8?" * 50, "completion": "Yes."},  # over `max_length`
        {"prompt": "0?", "completion": "No."},  # the same question again
    ]
    settings = FinetuneOptions(max_new_tokens=8, max_length=80, held_out=2)
    prepared = prepare(pipeline, to_conversations(rows), settings)
    assert len(prepared.held_out) == 2
    assert len(prepared.examples) + len(prepared.held_out) + prepared.dropped == len(rows)
    assert prepared.dropped in (2, 3)  # 3 if "0?" is held out
    whole = prepare(
        pipeline, to_conversations(rows), dataclasses.replace(settings, held_out=1, seed=1)
    )
    assert "0?" not in pipeline.tokenizer.decode(whole.held_out[0].prompt) and whole.dropped == 2
    assert not {e.prompt for e in prepared.held_out} & {e.prompt for e in prepared.examples}
    assert prepare(pipeline, to_conversations(rows), settings) == prepared
    for few in (rows[:2], rows[6:]):
        with pytest.raises(ValueError, match="More conversations have to be left than the 2 of"):
            prepare(pipeline, to_conversations(few), settings)
    same = [{"prompt": "0?", "completion": f"{n}."} for n in range(4)]
    with pytest.raises(ValueError, match="all others are repetitions"):
        prepare(pipeline, to_conversations(same), FinetuneOptions(max_new_tokens=8, held_out=1))


def test_measured_is_what_the_model_does():
    answers = {"A?": "It is.", "B?": "It is (so", "C?": "It goes on and on and on and on."}
    pipeline = answering_pipeline(answers)
    rows = [{"prompt": q, "completion": "Yes."} for q in answers]
    held = prepare(
        pipeline,
        to_conversations([*rows, {"prompt": "D?", "completion": "Yes."}]),
        FinetuneOptions(held_out=3, seed=3),
    ).held_out
    asked = {pipeline.tokenizer.decode(e.prompt)[17:19] for e in held}
    measured = measure(pipeline, held, 12, 4)
    assert asked <= {"A?", "B?", "C?", "D?"} and measured.answers == 3
    ends = {"A?": 7, "B?": 10, "C?": 12, "D?": 1}
    assert measured.mean_tokens == pytest.approx(sum(ends[q] for q in asked) / 3)
    assert measured.ended == pytest.approx(len(asked - {"C?"}) / 3)
    assert measured.landed == pytest.approx(len(asked & {"A?"}) / 3)
    prompt = byte_tokenizer()("<|im_start|>user\nA?<|im_end|>\n<|im_start|>assistant\n")[
        "input_ids"
    ]
    scores = torch.arange(261) / 261
    scores[IM_END] = 10
    expected = float(scores.log_softmax(-1)[IM_END])
    assert eos_logprob(pipeline, prompt, byte_ids("It is.")) == pytest.approx(expected, abs=1e-5)


def test_what_lands_is_distilled():
    answers = {"A?": "It is.", "B?": "It is so. And then it goes on and on, and never ends at all"}
    pipeline = answering_pipeline(answers)
    prompts = to_conversations([{"prompt": q} for q in answers], answered=False)
    stages = []
    chats = distil(pipeline, prompts, FinetuneOptions(max_new_tokens=24), stages.append)
    assert [chat[-1]["content"] for chat in chats] == ["It is.", "It is so."]
    assert [chat[:-1] for chat in chats] == prompts
    assert stages == ["Answering prompts 1 to 2 of 2"]
    with pytest.raises(ValueError, match="none of 1 did within 2 tokens"):
        distil(pipeline, prompts[1:], FinetuneOptions(max_new_tokens=2), stages.append)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "`epochs` has to be a whole number of 1 or more"),
        ({"r": 2.5}, "`r` has to be a whole number"),
        ({"lora_dropout": 1.5}, "`lora_dropout` has to be between 0 and 1"),
        ({"learning_rate": 0}, "`learning_rate` has to be over 0"),
        ({"max_new_tokens": 1}, "`max_new_tokens` has to be a whole number of 2"),
        (
            {"lora_r": 8},
            r"Unknown option 'lora_r'. Did you mean 'r'\? Known: batch_size, epochs",
        ),
        ({"self_distil": [{"prompt": "Why?"}]}, "Either `data` or `self_distil`"),
        ({"data": None}, "Either `data` or `self_distil`"),
        ({"data": None, "self_distil": ROWS, "held_out": 24}, "more prompts than the 24 of"),
        ({"data": [{"q": 1}]}, "row 1 is not: the form is not known"),
        ({"data": []}, "the list holds none"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        finetune("nowhere/nothing", **{"data": ROWS, "output_dir": tmp_path / "out", **options})
    assert not (tmp_path / "out").exists()


def test_a_folder_is_whole_or_not_there(tmp_path):
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert names(tmp_path) == []
    (tmp_path / "out").mkdir()
    with whole_folder(tmp_path / "out") as folder:
        (folder / "whole").write_text("")
        assert names(tmp_path / "out") == []
    assert names(tmp_path / "out") == ["whole"]


def test_several_gpus_and_several_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.TrainingArguments._setup_devices", property(two_gpus))
    settings = {**SMALL, "epochs": 1}
    assert finetune(tiny_pipeline(), ROWS, tmp_path / "out", **settings).examples == 20
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="finetune runs in one process"):
        finetune(tiny_pipeline(), ROWS, tmp_path / "other", **settings)


def two_gpus(arguments, setup=transformers.TrainingArguments._setup_devices):
    device = setup.__get__(arguments)
    if not vars(arguments).get("asked"):
        arguments._n_gpu, arguments.asked = 2, True
    return device


def test_folders_of_others_are_left_alone(tmp_path):
    kept = tmp_path / "out.checkpoints" / "precious.txt"
    kept.parent.mkdir()
    kept.write_text("")
    for resume in (False, True):
        with pytest.raises(FileExistsError, match="which holds something else"):
            finetune(tiny_pipeline(), ROWS, tmp_path / "out", resume=resume, **SMALL)
    with pytest.raises(ValueError, match="row 1 is not"):
        finetune(tiny_pipeline(), [{"q": 1}], tmp_path / "out", **SMALL)
    assert kept.exists()


def test_a_template_with_the_time_does_not_hinder_a_resumed_run(tmp_path):
    with pytest.raises(RuntimeError), RunFolder(tmp_path / "out", resume=False) as run:
        run.check_settings({"epochs": 1}, to_conversations(ROWS))
        (run.path / "checkpoint-3").mkdir()
        (run.path / "checkpoint-3" / "trainer_state.json").write_text("{}")
        raise RuntimeError
    with RunFolder(tmp_path / "out", resume=True) as run:
        run.check_settings({"epochs": 1}, to_conversations(ROWS))


def test_a_run_leaves_only_what_can_be_resumed(tmp_path):
    for kept in ("before", "distilled"):
        with pytest.raises(RuntimeError), RunFolder(tmp_path / "out", resume=False) as run:
            run.save(kept, [1])  # before the settings are, as in a run that distils
            raise RuntimeError
        assert names(tmp_path) == (["out.checkpoints"] if kept == "distilled" else [])
    with pytest.raises(FileExistsError, match="An interrupted run lies in"):
        RunFolder(tmp_path / "out", resume=False)
    with RunFolder(tmp_path / "out", resume=True) as run:
        assert run.load("distilled") == [1] and run.checkpoint() is None
        run.check_settings({"epochs": 1}, [[1]])
    assert names(tmp_path) == []


def test_gradients_flow_after_inference_too(tmp_path):
    """bitsandbytes packs 4-bit weights for inference; their product has no derivative then.

    Only on CPUs with AVX512-BF16: on others this cannot fail.
    """
    base = tiny_pipeline()
    model = tiny_llama(len(base.tokenizer), hidden_size=64, intermediate_size=128)
    model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    ids = torch.arange(40)[None]
    norms = []
    for inferred in (False, True):
        pipeline = load_pipeline(tmp_path, "nf4")
        if inferred:
            with torch.no_grad():
                pipeline.model(ids)
        unpack_weights(pipeline.model)
        pipeline.model.train()
        embedded = pipeline.model.get_input_embeddings()(ids).detach().requires_grad_()
        pipeline.model(inputs_embeds=embedded, labels=ids).loss.backward()
        norms.append(float(embedded.grad.float().norm()))
    assert norms[0] > 0 and norms[1] == pytest.approx(norms[0], rel=0.1)


def test_every_option_says_what_it_is():
    for option in dataclasses.fields(FinetuneOptions):
        assert option.metadata["help"] and "%" not in option.metadata["help"]  # for argparse
