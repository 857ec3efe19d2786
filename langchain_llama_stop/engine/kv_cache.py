"""Keys and values of rows that share forward passes: they grow in place; rows join and leave."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, get_layer_types_and_kwargs

# The one place where versions of transformers differ for the engine.
CACHE_NAME = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
"""Name of the keys and values in a model's inputs and outputs: transformers 5.24 renamed them."""

_SPARE = 64
"""Columns that a buffer has to spare, or a quarter of those in use if that is more. Chosen, not
tuned: a long answer is copied once per quarter of its length, and wastes at most that quarter."""

_WINDOWS = {"sliding_attention", "chunked_attention"}

LayerStates = list[tuple[torch.Tensor, torch.Tensor] | None]
"""Keys and values of one row: per layer two of (heads, tokens, head_dim), None if it has none."""


def can_share(config: PreTrainedConfig) -> bool:
    """Whether rows of a model can share passes: its state has to be keys and values only.

    False for models with recurrent or compressed states, whose rows cannot join and leave.
    """
    return _layer_types(config) <= {"full_attention", "dummy"} | _WINDOWS


def has_windows(config: PreTrainedConfig) -> bool:
    """Whether some layers see a window of columns only (sliding or chunked attention).

    Padding inside a row would take up columns of the window.
    """
    return not _layer_types(config).isdisjoint(_WINDOWS)


def _layer_types(config: PreTrainedConfig) -> set[str]:
    """The types of a model's layers, by the names of transformers."""
    return set(get_layer_types_and_kwargs(config.get_text_config(decoder=True))[0])


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, (rows, heads, columns, head_dim), with spare columns.

    `DynamicLayer` copies everything at each step. Layers with a sliding window are kept whole:
    columns that have left the window may be needed again when the newest tokens are removed.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.buffers: list[torch.Tensor] = []  # keys and values
        self.length = 0

    def fill(self, buffers: list[torch.Tensor], length: int) -> None:
        """Takes over buffers of which `length` columns are written."""
        self.buffers, self.length, self.is_initialized = buffers, length, True
        self.dtype, self.device = buffers[0].dtype, buffers[0].device
        self.keys, self.values = (buffer.narrow(2, 0, length) for buffer in self.buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends the states of new tokens and returns all keys and values."""
        first, count = self.length, key_states.shape[2]
        length = first + count
        new = (key_states, value_states)
        if (
            not self.buffers
            or length > self.buffers[0].shape[2]
            or key_states.dtype != self.dtype  # the model was moved since the last pass
            or key_states.device != self.device
        ):
            grown = [x.new_empty((*x.shape[:2], _columns(length), x.shape[3])) for x in new]
            for old, buffer in zip(self.buffers, grown, strict=False):
                buffer[:, :, :first] = old[:, :, :first]
            self.fill(grown, first)
        # This runs once per layer and step, so it is kept as short as possible.
        keys, values = self.buffers
        keys.narrow(2, first, count).copy_(key_states)
        values.narrow(2, first, count).copy_(value_states)
        self.keys, self.values = keys.narrow(2, 0, length), values.narrow(2, 0, length)
        self.length = length
        return self.keys, self.values


class RowsCache(Cache):
    """Keys and values, (rows, heads, columns, head_dim) per layer; the model writes to it."""

    layers: list[_Layer]  # type: ignore[assignment]

    def __init__(self) -> None:
        """Starts empty."""
        super().__init__(layer_class_to_replicate=_Layer)

    @property
    def length(self) -> int:
        """Columns written."""
        return max((layer.length for layer in self.layers), default=0)

    def truncate(self, length: int) -> None:
        """Drops all columns from `length` on."""
        for layer in self.layers:
            if layer.length > length:
                layer.fill(layer.buffers, length)

    def select(self, rows: list[int], first: int) -> None:
        """Keeps these rows, in this order, and the columns from `first` on.

        If that fails (out of memory), all rows are as they were.
        """
        before = [(layer, layer.buffers, layer.length) for layer in self.layers if layer.buffers]
        try:
            for layer, _, length in before:
                layer.fill(_selected(layer, rows, first), length - first)
        except BaseException:
            for layer, buffers, length in before:
                layer.fill(buffers, length)
            raise

    def join(self, other: RowsCache) -> None:
        """Appends the rows of another cache, shorter or longer; the newest columns are aligned.

        If that fails (out of memory), these rows are as they were.
        """
        length, before = max(self.length, other.length), self.length
        joined: list[_Layer] = []
        try:
            for mine, theirs in zip(self.layers, other.layers, strict=True):
                if theirs.buffers:
                    mine.fill(_joined(mine, theirs, length), length)
                    joined.append(mine)
        except BaseException:  # these rows continue without the others
            rows = next((len(x.buffers[0]) for x in other.layers if x.buffers), 0)
            for layer in joined:
                views = [x[: len(x) - rows, :, length - before :] for x in layer.buffers]
                layer.fill(views, before)
            raise

    def row(self, index: int, columns: torch.Tensor) -> LayerStates:
        """Copies some columns, (tokens,), of one row."""
        states: LayerStates = []
        for layer in self.layers:
            if not layer.buffers:
                states.append(None)
                continue
            kept = columns.to(layer.device)
            keys, values = (x[index].index_select(1, kept) for x in layer.buffers)
            states.append((keys, values))
        return states

    @classmethod
    def of_rows(cls, rows: list[tuple[LayerStates | None, int]], room: int) -> RowsCache:
        """Builds a cache whose rows start with computed states.

        Args:
            rows: For each row its states and how many of their tokens to take, aligned at the
                last one. At least one row has states.
            room: Columns to be written next.
        """
        cache, width = cls(), max(count for _, count in rows)
        some_states = next(states for states, _ in rows if states)
        for number, layer_like in enumerate(some_states):
            layer = _Layer()
            cache.layers.append(layer)
            if layer_like is None:
                continue
            buffers = []
            for kind, like in enumerate(layer_like):  # keys, then values
                columns = width + room + _SPARE
                buffer = like.new_empty((len(rows), like.shape[0], columns, like.shape[2]))
                for row, (states, count) in enumerate(rows):
                    buffer[row, :, : width - count] = 0  # masked, but NaN would come through
                    if states and (layer_states := states[number]):
                        buffer[row, :, width - count : width] = layer_states[kind][:, :count]
                buffers.append(buffer)
            layer.fill(buffers, width)
        return cache


def _selected(layer: _Layer, rows: list[int], first: int) -> list[torch.Tensor]:
    """Buffers of some rows, from column `first` on."""
    index = torch.tensor(rows, device=layer.device)
    return [x[:, :, first:].index_select(0, index) for x in layer.buffers]


def _joined(mine: _Layer, theirs: _Layer, length: int) -> list[torch.Tensor]:
    """Buffers of the rows of both, whose newest columns end at `length`."""
    joined = []
    for a, b in zip(mine.buffers, theirs.buffers, strict=True):
        # In the type of the newest rows: the model may have been moved since the last pass.
        buffer = b.new_empty((len(a) + len(b), a.shape[1], _columns(length), a.shape[3]))
        for rows, old, layer in ((buffer[: len(a)], a, mine), (buffer[len(a) :], b, theirs)):
            rows[:, :, : length - layer.length] = 0  # masked, but NaN would come through
            rows[:, :, length - layer.length : length] = old[:, :, : layer.length]
        joined.append(buffer)
    return joined


def _columns(length: int) -> int:
    """Columns of a buffer for `length` columns in use."""
    return length + max(_SPARE, length // 4)
