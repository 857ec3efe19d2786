import logging
import resource
from pathlib import Path

import pytest

from langchain_llama_stop.loading import load_pipeline
from langchain_llama_stop.loading.quantization import quantization_name
from tests.fakes.files import copies, same_weights, save_gguf, tiny_model


def test_a_gguf_file_is_converted_once_into_the_same_model(tiny_gguf, cache, capfd):
    stages: list[str] = []
    first = load_pipeline(tiny_gguf, progress=stages.append)
    assert stages[1:] == [
        "Converting tiny.F32 from GGUF (once, about 20 s)",
        "Loading tiny.F32",
    ]
    stages.clear()
    again = load_pipeline(str(tiny_gguf), "nf4", progress=stages.append)
    assert stages[1:] == ["Loading tiny.F32"]
    assert capfd.readouterr() == ("", "")
    assert same_weights(first.model, tiny_model())
    assert quantization_name(first.model.config) is None
    assert quantization_name(again.model.config) == "nf4"
    assert (
        first.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        == "hi"
    )
    assert len(copies(cache)) == 1


def test_a_changed_gguf_file_is_converted_again_and_its_old_copy_removed(tmp_path, cache):
    file = save_gguf(tmp_path / "m.gguf")
    before = load_pipeline(file).model
    save_gguf(file, shift=0.5)
    assert not same_weights(load_pipeline(file).model, before)
    assert len(copies(cache)) == 1


@pytest.mark.parametrize(
    ("ids", "eos"),
    [
        ({}, 2),
        ({"eot_token_id": 2}, 2),
        ({"eot_token_id": 9}, [2, 9]),
        ({"eot_token_id": 9, "eom_token_id": 11}, [2, 9, 11]),
        ({"eom_token_id": 11}, [2, 11]),
    ],
)
def test_what_ends_a_turn_in_a_gguf_file_is_eos_too(tmp_path, cache, ids, eos):
    pipeline = load_pipeline(save_gguf(tmp_path / "m.gguf", **ids))
    assert pipeline.model.generation_config.eos_token_id == eos


def cut_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def zero_weights(copy: Path) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))


def lose_template(copy: Path) -> None:
    (copy / "chat_template.jinja").unlink()


def garble_manifest(copy: Path) -> None:
    (copy / "converted.json").write_text('{"files": []}')


@pytest.mark.parametrize("damage", [cut_weights, zero_weights, lose_template, garble_manifest])
def test_a_damaged_copy_is_made_again(tiny_gguf, cache, damage):
    load_pipeline(tiny_gguf)
    (name,) = copies(cache)
    damage(cache / name)
    stages: list[str] = []
    pipe = load_pipeline(tiny_gguf, progress=stages.append)
    assert sum(stage.startswith("Converting") for stage in stages) == 1
    assert same_weights(pipe.model, tiny_model())
    assert pipe.tokenizer.chat_template
    assert copies(cache) == [name]


def test_the_log_says_whether_a_copy_is_made_reused_or_made_again(tiny_gguf, cache, caplog):
    caplog.set_level(logging.DEBUG, "langchain_llama_stop")

    def logged() -> list[tuple[str, str]]:
        caplog.clear()
        load_pipeline(tiny_gguf, dtype="float32")
        ours = (record for record in caplog.records if record.name == "langchain_llama_stop")
        return [(record.levelname, record.getMessage()) for record in ours]

    made = logged()
    (name,) = copies(cache)
    copy = cache / name
    assert made == [("INFO", f"tiny.F32.gguf is converted into {copy}.")]
    reused = ("DEBUG", f"tiny.F32.gguf is loaded from its converted copy {copy}.")
    assert logged() == [reused]
    cut_weights(copy)
    message = f"{copy} is damaged or of an older tiny.F32.gguf: it is made again."
    assert logged() == [("INFO", message)]
    assert logged() == [reused]


@pytest.mark.parametrize("size", [0, 4, 20, 300, 5_000, -20])
def test_a_gguf_file_cut_short_is_named(tiny_gguf, tmp_path, cache, size):
    file = tmp_path / "cut.gguf"
    file.write_bytes(tiny_gguf.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{file} cannot be read: it is damaged, cut short"):
        load_pipeline(file)
    assert copies(cache) == []


def test_a_file_that_is_no_gguf_is_named(tmp_path):
    file = tmp_path / "text.gguf"
    file.write_text("This is a text. " * 100)
    with pytest.raises(ValueError, match=f"{file} cannot be read"):
        load_pipeline(file)


def test_a_cache_that_cannot_be_written_is_named(tiny_gguf, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LLAMA_STOP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OSError, match="could not be written to .*/file/cache .*LLAMA_STOP_CACHE"):
        load_pipeline(tiny_gguf)


@pytest.mark.parametrize("room", [100, 20_000])
def test_a_full_disk_is_named_and_leaves_nothing(tiny_gguf, cache, room):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))  # as if the disk were full
    try:
        with pytest.raises(OSError, match=f"could not be written to {cache} .*LLAMA_STOP_CACHE"):
            load_pipeline(tiny_gguf)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert copies(cache) == []
    load_pipeline(tiny_gguf)


def test_a_cache_that_is_read_only_serves_what_it_holds(tiny_gguf, cache):
    load_pipeline(tiny_gguf)
    for lock in cache.glob("*.lock"):
        lock.unlink()
        lock.mkdir()  # so that taking the lock would fail, whoever runs this test
    load_pipeline(tiny_gguf)
