"""A tiny model, an adapter and a `.gguf` file in folders, and a cache folder for each test."""

from pathlib import Path

import pytest

from tests.fakes.files import save_adapter, save_gguf, save_tiny


@pytest.fixture(scope="package")
def tiny(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="package")
def tiny_gguf(tmp_path_factory) -> Path:
    return save_gguf(tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf")


@pytest.fixture(scope="package")
def adapter(tmp_path_factory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapter"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LLAMA_STOP_CACHE", str(folder))
    return folder
