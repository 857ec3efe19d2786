"""Damaged and hostile `.gguf` files: each is refused by name, or loads; nothing else happens.

Bytes are changed in a file's header: counts, lengths, types, names, offsets.
LLAMA_STOP_LONG=1 tries thirty times as many.
"""

import os
import random

import pytest

from langchain_llama_stop import load_pipeline
from langchain_llama_stop.engine.generate import generate
from tests.fakes.files import save_gguf
from tests.fakes.generation import options

FILES = 600 if os.environ.get("LLAMA_STOP_LONG") else 20
HUGE = [b"\xff" * 8, b"\x00" * 7 + b"\x80", b"\xff\xff\xff\xff\x00\x00\x00\x00", b"\x00" * 8]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save_gguf(tmp_path_factory.mktemp("gguf") / "tiny.F32.gguf").read_bytes()


def damaged(whole, draw):
    """A file with one to three false statements about itself."""
    file = bytearray(whole)
    for _ in range(draw.randrange(1, 4)):
        kind = draw.choice(["bits", "huge", "counts", "cut", "swap", "tail"])
        offset = draw.randrange(4, 6_000)  # in its header: the keys and the list of tensors
        if kind == "bits":
            file[offset] ^= 1 << draw.randrange(8)
        elif kind == "huge":
            file[offset : offset + 8] = draw.choice(HUGE)
        elif kind == "counts":  # how many tensors and keys there are
            count = draw.choice([8, 16])
            file[count : count + 8] = draw.choice(HUGE)
        elif kind == "cut":
            del file[draw.randrange(len(file)) :]
            file += b"\x00" * 8
        elif kind == "swap":
            other = draw.randrange(4, 6_000)
            file[offset : offset + 32], file[other : other + 32] = (
                file[other : other + 32],
                file[offset : offset + 32],
            )
        else:
            file += bytes(draw.randrange(256) for _ in range(64))
    return bytes(file)


@pytest.mark.parametrize("seed", range(FILES))
def test_a_file_that_lies_is_named_or_loads(whole, seed, tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_STOP_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "lies.gguf"
    file.write_bytes(damaged(whole, random.Random(seed)))
    try:
        pipeline = load_pipeline(file)
    except ValueError as error:
        assert str(file) in str(error) or "tokenizer" in str(error)
    else:
        try:
            generate(pipeline, ["a"], options(max_new_tokens=3))
        except (FloatingPointError, IndexError, ValueError):
            pass  # weights and vocabularies may hold anything
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("cache", "lies.gguf")] == []
