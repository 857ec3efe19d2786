"""Keys and values in place: the same as tensors that are concatenated at each step."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import JambaConfig, LlamaConfig, MistralConfig

from langchain_llama_stop.engine.kv_cache import RowsCache, can_share

LAYERS, HEADS, SIZE = 2, 2, 3


def states(rows, count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, HEADS, count, SIZE, generator=generator)


def write(cache, rows, count, seed):
    """Writes new columns to each layer; returns what the last update gave, and what was new."""
    for layer in range(LAYERS):
        new = states(rows, count, seed + layer)
        updated = cache.update(new, -new, layer)
    return updated, new


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_rows_join_and_leave(data):
    draw = data.draw
    cache, rows, seed = RowsCache(), draw(st.integers(1, 3)), 0
    expected = torch.empty(rows, HEADS, 0, SIZE)  # keys of the last layer
    for _ in range(draw(st.integers(1, 8))):
        seed += 10
        kind = draw(st.sampled_from(["write", "truncate", "select", "join"]))
        if kind == "write" or not cache.length:
            (keys, values), new = write(cache, rows, draw(st.integers(1, 90)), seed)
            expected = torch.cat([expected, new], dim=2)
            assert torch.equal(keys, expected) and torch.equal(values, -expected)
        elif kind == "truncate":
            length = draw(st.integers(1, cache.length))
            cache.truncate(length)
            expected = expected[:, :, :length]
        elif kind == "select":
            kept = draw(st.permutations(range(rows)))[: draw(st.integers(1, rows))]
            first = draw(st.integers(0, cache.length - 1))
            cache.select(kept, first)
            rows, expected = len(kept), expected[kept][:, :, first:]
        else:
            other, more = RowsCache(), draw(st.integers(1, 2))
            _, new = write(other, more, draw(st.integers(1, 90)), seed)
            cache.join(other)
            width = max(expected.shape[2], new.shape[2])
            padded = [
                torch.nn.functional.pad(x, (0, 0, width - x.shape[2], 0)) for x in (expected, new)
            ]
            rows, expected = rows + more, torch.cat(padded)
    layer = cache.layers[-1] if cache.layers else None
    if layer:
        assert torch.equal(layer.keys, expected) and torch.equal(layer.values, -expected)
        assert cache.length == cache.get_seq_length() == expected.shape[2]


def test_a_row_is_a_copy_and_starts_another_cache():
    cache = RowsCache()
    (keys, values), _ = write(cache, 2, 5, 0)
    row = cache.row(1, torch.tensor([0, 2, 3]))
    assert torch.equal(row[1][0], keys[1][:, [0, 2, 3]])
    kept = row[1][0].clone()
    cache.layers[1].keys.zero_()
    assert torch.equal(row[1][0], kept)
    other = RowsCache.of_rows([(row, 2), (None, 0), (row, 3)], room=4)
    assert other.length == 3
    assert torch.equal(other.layers[1].keys[2], kept)
    assert torch.equal(other.layers[1].keys[0][:, 1:], kept[:, :2])
    assert not other.layers[1].keys[1].any()


def test_it_costs_one_copy_per_quarter_not_per_token():
    cache, buffers = RowsCache(), set()
    for step in range(400):
        write(cache, 1, 1, step)
        buffers.add(cache.layers[0].buffers[0].data_ptr())
    assert len(buffers) < 12


def test_which_models_can_share_passes():
    assert can_share(LlamaConfig()) and can_share(MistralConfig(sliding_window=8))
    assert not can_share(JambaConfig())
    assert isinstance(RowsCache().layers, list)
