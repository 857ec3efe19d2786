"""Keys and values of the rows that share forward passes: they grow in place, rows come and go."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer, get_layer_types_and_kwargs

CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
"""What the forward pass calls its keys and values: transformers 5.24 has renamed them."""

_SPARE = 64  # columns of room behind what is written; a quarter of what there is, if that is more

_WINDOWS = {"sliding_attention", "chunked_attention"}

LayerStates = list[tuple[torch.Tensor, torch.Tensor] | None]
"""Keys and values of one row: per layer two of (heads, tokens, head_dim), None if it has none."""


def can_share(config: PreTrainedConfig) -> bool:
    """Says whether rows of a model can share passes: all it remembers has to be keys and values.

    Args:
        config: The model's config.

    Returns:
        False for models with recurrent or compressed states, whose rows cannot come and go.
    """
    return _kinds(config) <= {"full_attention", "dummy"} | _WINDOWS


def has_windows(config: PreTrainedConfig) -> bool:
    """Says whether some layers of a model see a window of columns only.

    Args:
        config: The model's config.

    Returns:
        True for sliding and chunked attention, where padding in the midst of a row would take
        places in the window.
    """
    return not _kinds(config).isdisjoint(_WINDOWS)


def _kinds(config: PreTrainedConfig) -> set[str]:
    """What a model's layers remember, in the words of transformers."""
    return set(get_layer_types_and_kwargs(config.get_text_config(decoder=True))[0])


class _Layer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, (rows, heads, columns, head_dim), in a buffer with room.

    `DynamicLayer` copies everything at each step. Layers with a sliding window are kept whole:
    what has left the window may be needed again when the newest tokens are taken back.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        self.buffers: list[torch.Tensor] = []  # of keys and of values
        self.length = 0

    def fill(self, buffers: Sequence[torch.Tensor], length: int) -> None:
        """Takes buffers of which `length` columns are written."""
        self.buffers, self.length, self.is_initialized = list(buffers), length, True
        self.dtype, self.device = buffers[0].dtype, buffers[0].device
        self.keys, self.values = (buffer.narrow(2, 0, length) for buffer in self.buffers)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the states of new tokens behind the others and returns them all."""
        first, count = self.length, key_states.shape[2]
        length = first + count
        if not self.buffers or length > self.buffers[0].shape[2]:
            new = (key_states, value_states)
            grown = [x.new_empty((*x.shape[:2], _room(length), x.shape[3])) for x in new]
            for old, buffer in zip(self.buffers, grown, strict=False):
                buffer[:, :, :first] = old[:, :, :first]
            self.fill(grown, first)
        # Once per layer and step: what follows is as short as it can be.
        keys, values = self.buffers
        keys.narrow(2, first, count).copy_(key_states)
        values.narrow(2, first, count).copy_(value_states)
        self.keys, self.values = keys.narrow(2, 0, length), values.narrow(2, 0, length)
        self.length = length
        return self.keys, self.values


class RowsCache(Cache):
    """Keys and values of rows, (rows, heads, columns, head_dim) per layer; a model writes to it."""

    layers: list[_Layer]  # type: ignore[assignment]

    def __init__(self) -> None:
        """Begins empty."""
        super().__init__(layer_class_to_replicate=_Layer)

    @property
    def length(self) -> int:
        """Columns written."""
        return max((layer.length for layer in self.layers), default=0)

    def truncate(self, length: int) -> None:
        """Takes back all columns from `length` on.

        Args:
            length: Columns that stay.
        """
        for layer in self.layers:
            if layer.length > length:
                layer.fill(layer.buffers, length)

    def select(self, rows: Sequence[int], first: int) -> None:
        """Keeps some rows, and the columns from one on.

        Args:
            rows: Which rows, in their new order.
            first: The first column that stays.

        Raises:
            RuntimeError: If memory does not suffice; all rows are as they were.
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
        """Puts the rows of another cache under these; their newest columns meet.

        Args:
            other: The other one, which may be longer or shorter.

        Raises:
            RuntimeError: If memory does not suffice; these rows are as they were.
        """
        length, before = max(self.length, other.length), self.length
        joined: list[_Layer] = []
        try:
            for mine, theirs in zip(self.layers, other.layers, strict=True):
                if theirs.buffers:
                    mine.fill(_joined(mine, theirs, length), length)
                    joined.append(mine)
        except BaseException:  # the rows that are at work get on without the others
            rows = next((len(x.buffers[0]) for x in other.layers if x.buffers), 0)
            for layer in joined:
                views = [x[: len(x) - rows, :, length - before :] for x in layer.buffers]
                layer.fill(views, before)
            raise

    def row(self, index: int, columns: torch.Tensor) -> LayerStates:
        """Copies the states of one row.

        Args:
            index: Which row.
            columns: Which of its columns, (tokens,), on any device.

        Returns:
            Keys and values for each layer.
        """
        states: LayerStates = []
        for layer in self.layers:
            if not layer.buffers:
                states.append(None)
                continue
            where = columns.to(layer.device)
            keys, values = (x[index].index_select(1, where) for x in layer.buffers)
            states.append((keys, values))
        return states

    @classmethod
    def of_rows(cls, rows: Sequence[tuple[LayerStates | None, int]], room: int) -> RowsCache:
        """Builds a cache whose rows begin with states that are known.

        Args:
            rows: For each row its states and how many of their tokens to take; they end at the
                same column. At least one row has some.
            room: Columns to be written later.

        Returns:
            The cache.
        """
        cache, width = cls(), max(count for _, count in rows)
        known = next(states for states, _ in rows if states)
        for number, model_states in enumerate(known):
            layer = _Layer()
            cache.layers.append(layer)
            if model_states is None:
                continue
            buffers = []
            for kind, like in enumerate(model_states):
                columns = width + room + _SPARE
                buffer = like.new_empty((len(rows), like.shape[0], columns, like.shape[2]))
                for row, (states, count) in enumerate(rows):
                    buffer[row, :, : width - count] = 0  # masked, but NaN would come through
                    if states and (layer_states := states[number]):
                        buffer[row, :, width - count : width] = layer_states[kind][:, :count]
                buffers.append(buffer)
            layer.fill(buffers, width)
        return cache


def _selected(layer: _Layer, rows: Sequence[int], first: int) -> list[torch.Tensor]:
    """Buffers of some rows, and of the columns from one on."""
    index = torch.tensor(rows, device=layer.device)
    return [x[:, :, first:].index_select(0, index) for x in layer.buffers]


def _joined(mine: _Layer, theirs: _Layer, length: int) -> list[torch.Tensor]:
    """Buffers of the rows of both; their newest columns meet at a length."""
    joined = []
    for a, b in zip(mine.buffers, theirs.buffers, strict=True):
        buffer = a.new_empty((len(a) + len(b), a.shape[1], _room(length), a.shape[3]))
        for rows, old, layer in ((buffer[: len(a)], a, mine), (buffer[len(a) :], b, theirs)):
            rows[:, :, : length - layer.length] = 0  # masked, but NaN would come through
            rows[:, :, length - layer.length : length] = old[:, :, : layer.length]
        joined.append(buffer)
    return joined


def _room(length: int) -> int:
    """Columns of a buffer of which so many are written."""
    return length + max(_SPARE, length // 4)
