"""Decoding steps of fixed shape: buffers that never move, so that a step can be captured once and replayed.

A step of a small batch is bound by the launching of its kernels, which a CUDA graph saves. A graph repeats the same
kernels on the same addresses: token ids, positions, mask, the place to write and all keys and values live in buffers
here, and the only thing that changes between two replays is what these hold. Weights are read where they lie when a
step is captured; captures last for one call of `generate`, so weights may be moved or changed between calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

__all__ = ["Capture", "CudaGraphs", "FixedShapeSteps", "graphs_for", "plain_step", "row_buckets", "serves"]

Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]
"""Takes a step without arguments that may be run any number of times, and gives something that does the same."""

SMALLEST_ROWS = 8
SMALLEST_COLUMNS = 64
LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer")
ATTENTION = ("sdpa", "eager")

_log = logging.getLogger(__name__)


def plain_step(step: Step) -> Step:
    """No capture: the step itself."""
    return step


class CudaGraphs:
    """Captures steps as CUDA graphs that share one memory pool; after a failure it hands steps back as they are.

    The pool is safe to share because each replay's logits are used up before the next replay.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self.failure: str | None = None

    def __call__(self, step: Step) -> Step:
        if self.failure is not None:
            return step
        try:
            return self._graph(step)
        except Exception as error:  # whatever the driver, a kernel or the model objects to: decoding goes on without
            self.failure = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            _log.warning("decoding without CUDA graphs, slower: the step could not be captured (%s)", self.failure)
            return step

    def _graph(self, step: Step) -> Step:
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # lazy initialisations must not happen during the capture
                for _ in range(2):
                    step()
            torch.cuda.current_stream().wait_stream(aside)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                output = step()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def graphs_for(device: torch.device) -> CudaGraphs | None:
    """What captures steps on `device`; None where there is nothing to capture with."""
    return CudaGraphs(device) if device.type == "cuda" else None


class _FixedLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values as views of buffers, written at `place`. Sliding layers keep everything; the mask has the window.

    Nothing here counts: writing the same states at the same place again changes nothing, so a step may be repeated.
    """

    is_compileable = True  # tells transformers to build every mask whole, without looking at values
    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, place: Int[Tensor, " 1"]) -> None:
        super().__init__()
        self.keys, self.values, self._place, self._length = keys, values, place, place[0]
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.keys.index_copy_(2, self._place, key_states)
        self.values.index_copy_(2, self._place, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.keys.shape[-2], 0

    def get_seq_length(self) -> Any:
        return self._length

    def get_max_length(self) -> int:
        return self.keys.shape[-2]


class FixedShapeSteps:
    """The rows of one micro-batch at a time, in buffers for `max_rows` rows of `capacity` tokens.

    Steps are run on the first n rows and c columns, n and c from a few sizes that halve or double: rows that have ended
    leave at once, and the shape changes rarely. With R rows and C columns at most log2(R/8) + log2(C/64) + 2 shapes
    occur. Rows between the real ones and n repeat old values and are ignored.
    """

    def __init__(self, model: Any, max_rows: int, capacity: int, capture: Capture) -> None:
        self._model, self._capture = model, capture
        self._buckets = row_buckets(max_rows)
        self._max_rows, self._capacity = max_rows, capacity
        self._layers: list[tuple[Tensor, Tensor]] = []
        self._captured: dict[tuple[int, int], Step] = {}
        self._width = 0
        self.rows: Int[Tensor, " rows"] = torch.empty(0, dtype=torch.long)

    def load(
        self, cache: Any, row_prompts: Int[Tensor, " rows"], mask: Bool[Tensor, "P W"], lengths: Int[Tensor, " P"]
    ) -> None:
        """Begin a micro-batch: row i continues prompt row_prompts[i], whose W columns `cache` has just been filled with."""
        device, count = mask.device, len(row_prompts)
        if not self._layers:
            self._allocate(cache, device)
        self._width = mask.shape[1]
        for layer, buffers in zip(cache.layers, self._layers, strict=True):
            for states, buffer in zip((layer.keys, layer.values), buffers, strict=True):
                kept = states.shape[-2]  # a sliding layer has dropped the columns that its window has passed
                buffer[:count, :, self._width - kept : self._width] = states.index_select(0, row_prompts)
        self.rows = torch.arange(count, device=device)
        self._mask.fill_(True)  # columns to come are hidden by causality, not by the mask
        self._mask[:count, : self._width] = mask.index_select(0, row_prompts)
        self._lengths[:count, 0] = lengths.index_select(0, row_prompts)

    def _allocate(self, cache: Any, device: torch.device) -> None:
        for layer in cache.layers:
            # Zeros, not empty memory: what is masked out still enters the sum, with weight 0, and 0 × NaN is NaN.
            shapes = [
                (self._max_rows, states.shape[1], self._capacity, states.shape[3])
                for states in (layer.keys, layer.values)
            ]
            self._layers.append((layer.keys.new_zeros(shapes[0]), layer.values.new_zeros(shapes[1])))
        self._token_ids = torch.zeros((self._max_rows, 1), dtype=torch.long, device=device)
        self._lengths = torch.zeros_like(self._token_ids)
        self._positions = torch.zeros_like(self._token_ids)
        self._place = torch.zeros(1, dtype=torch.long, device=device)
        self._mask = torch.ones((self._max_rows, self._capacity), dtype=torch.bool, device=device)

    def keep(self, indices: Int[Tensor, " kept"]) -> None:
        """Row i becomes what row indices[i] was; the others are dropped. Only rows that change place are copied."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(-1)
        sources = indices[moved]
        for buffer in (*(states for layer in self._layers for states in layer), self._mask, self._lengths):
            buffer[moved] = buffer[sources]
        self.rows = self.rows[indices]

    def next_logits(self, token_ids: Int[Tensor, " rows"], step: int) -> Float[Tensor, "rows V"]:
        """Logits after `token_ids`, the step-th tokens of the responses. They are overwritten by the next call."""
        count, place = len(token_ids), self._width + step
        self._token_ids[:count, 0] = token_ids
        torch.add(self._lengths, step, out=self._positions)
        self._place.fill_(place)
        rows = min(bucket for bucket in self._buckets if bucket >= count)
        columns = SMALLEST_COLUMNS
        while columns <= place:
            columns *= 2
        shape = (rows, min(columns, self._capacity))
        if shape not in self._captured:
            self._captured[shape] = self._capture(self._step(*shape))
        return self._captured[shape]()[:count]

    def _step(self, rows: int, columns: int) -> Step:
        layers = [
            _FixedLayer(keys[:rows, :, :columns], values[:rows, :, :columns], self._place)
            for keys, values in self._layers
        ]
        cache = Cache(layers=layers)
        token_ids, positions = self._token_ids[:rows], self._positions[:rows]
        mask, model = self._mask[:rows, :columns], self._model

        def step() -> Tensor:
            output = model(
                input_ids=token_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            logits: Tensor = output.logits[:, -1]
            return logits

        return step


def row_buckets(max_rows: int) -> tuple[int, ...]:
    """Numbers of rows that steps are run on: max_rows and its halves, rounded up, down to SMALLEST_ROWS."""
    buckets = [max_rows]
    while buckets[-1] > SMALLEST_ROWS:
        buckets.append(-(-buckets[-1] // 2))
    return tuple(buckets)


def serves(model: Any, cache: Any) -> bool:
    """Whether the model can be decoded in fixed shapes: plain and sliding keys and values, and masks that torch applies."""
    return (
        all(type(layer).__name__ in LAYERS and layer.is_initialized for layer in cache.layers)
        and model.config._attn_implementation in ATTENTION
    )
