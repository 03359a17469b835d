"""A buffer on the device that steps write into one after another, copied to the host by the thousand rows.

A step costs a few kernels and never waits for the device: full buffers are copied into pinned memory in the stream's
own order, and read once that copy is done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr.errors import require
from veridifr.fingerprints.projector import Projector

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """What the host knows of one step: a row for each request. `indices` are output indices, -1 for a row whose token
    the engine discards (a prompt prefilled in part). `tokens` are on the host, or None where the device has them."""

    request_ids: list[str]
    indices: Int64
    tokens: list[list[int]] | None
    seeds: Int64 | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """S consecutive steps of the same R requests: `tokens_SR`, and `values_SRK` unless nothing is projected."""

    request_ids: list[str]
    indices_SR: Int64
    tokens_SR: Int32
    values_SRK: Float32 | None
    seeds_SR: Int64 | None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Segment:
    steps: list[Step]
    tokens: Any
    values: Any
    copied: Any
    """A CUDA event, None where nothing has to be waited for."""


class Staging:
    """`capacity` rows on `device`. Nothing but the rows' number is kept of a step until the buffer is full."""

    def __init__(self, projector: Projector | None, k: int, capacity: int, device: Any) -> None:
        self._torch = require("torch", "hf")
        self._projector = projector
        self._on_gpu = device.type == "cuda"
        self._capacity = capacity
        self._tokens = self._torch.empty(capacity, dtype=self._torch.int32, device=device)
        self._values = self._torch.empty((capacity, k), dtype=self._torch.float32, device=device)
        self._used = 0
        self._place = slice(0, 0)
        self._steps: list[Step] = []
        self._segments: deque[_Segment] = deque()

    def project(self, hidden_RD: Any) -> None:
        """The hidden states of the next step's rows. Waits for nothing."""
        rows = len(hidden_RD)
        if rows > self._capacity:
            raise ValueError(f"a step of {rows} requests, more than {self._capacity}")
        if self._used + rows > self._capacity:
            self._copy()
        self._place = slice(self._used, self._used + rows)
        if self._projector is not None:
            self._projector.project_into(hidden_RD, self._values[self._place])

    def add(self, step: Step, tokens_R: Any) -> None:
        """The step of the rows projected last, and its tokens [R] or [R, 1] where they are on the device."""
        rows = len(step.request_ids)
        if self._place != slice(self._used, self._used + rows):
            raise ValueError(f"a step of {rows} requests, {self._place} were projected")
        if step.tokens is None:
            self._tokens[self._place].copy_(tokens_R.reshape(-1))
        self._steps.append(step)
        self._used += rows

    def ready(self) -> Iterator[Rows]:
        """The rows of copies that are done; those not done stay."""
        while self._segments and (self._segments[0].copied is None or self._segments[0].copied.query()):
            yield from _rows(self._segments.popleft())

    def everything(self) -> Iterator[Rows]:
        """All rows so far; waits for the device."""
        if self._steps:
            self._copy()
        while self._segments:
            segment = self._segments.popleft()
            if segment.copied is not None:
                segment.copied.synchronize()
            yield from _rows(segment)

    @property
    def waiting(self) -> bool:
        """Whether a copy was started that nobody has read yet."""
        return bool(self._segments)

    def _copy(self) -> None:
        tokens, values = self._host(self._tokens), self._host(self._values)
        copied = None
        if self._on_gpu:
            copied = self._torch.cuda.Event()
            copied.record()
        self._segments.append(_Segment(steps=self._steps, tokens=tokens, values=values, copied=copied))
        self._steps, self._used = [], 0

    def _host(self, buffer: Any) -> Any:
        used = buffer[: self._used]
        host = self._torch.empty(used.shape, dtype=used.dtype, pin_memory=self._on_gpu)
        return host.copy_(used, non_blocking=self._on_gpu)


def _rows(segment: _Segment) -> Iterator[Rows]:
    """A segment's steps, those of the same requests together: decoding goes on for many steps with one batch."""
    tokens, values = segment.tokens.numpy(), segment.values.numpy()
    first, start = 0, 0
    while start < len(segment.steps):
        ids = segment.steps[start].request_ids
        stop = start + 1
        while stop < len(segment.steps) and segment.steps[stop].request_ids == ids:
            stop += 1
        steps = segment.steps[start:stop]
        last = first + len(ids) * len(steps)
        yield _joined(steps, tokens[first:last], values[first:last])
        first, start = last, stop


def _joined(steps: list[Step], tokens: Int32, values: Float32) -> Rows:
    shape = (len(steps), len(steps[0].request_ids))
    tokens_SR = tokens.reshape(shape).copy()
    for row, step in enumerate(steps):
        if step.tokens is not None:
            tokens_SR[row] = [sampled[0] if sampled else -1 for sampled in step.tokens]
    seeds = [step.seeds for step in steps if step.seeds is not None]
    return Rows(
        request_ids=steps[0].request_ids,
        indices_SR=np.stack([step.indices for step in steps]),
        tokens_SR=tokens_SR,
        values_SRK=values.reshape(*shape, -1) if values.shape[1] else None,
        seeds_SR=np.stack(seeds) if len(seeds) == len(steps) else None,
    )
