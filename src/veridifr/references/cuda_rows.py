"""Rows of logits on a GPU: listed by kernels while the engine goes on, and fetched when they are there.

Without filters a tail of 1e-6 can be most of the vocabulary. There the noise is drawn on the device and the listing
holds the likeliest tokens and those that come near the winner; the evidence says so (`evidence.Race`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from veridifr.contracts.base import Contract, Stream
from veridifr.contracts.common import child_seed
from veridifr.contracts.registry import infer
from veridifr.errors import UnsupportedError
from veridifr.evidence import HOT, Race, listing_temperature
from veridifr.filters import filters_on
from veridifr.processors import needs_processing
from veridifr.references.listing import EDGE_ROOM, Listing, hot_tail
from veridifr.trace import Trace

SHORT = 128
"""Candidates listed of every row, at least."""
ROOM = 192
"""Candidates a row has room for: SHORT and the few more that the same threshold lets through."""
RACE_ROOM = 32
WINDOW = 1.5
"""Logits below the best perturbed score within which tokens are listed: `scores.NEAR`, and room for float32 noise."""
_ROWS = 1024
"""Rows of one launch; with float32 logits of 128,256 tokens 0.5 GB."""
_LANES, _DEPTH, _BLOCK = 1024, 4, 2048

Head = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The noise that a trace claims, as a device draws it."""

    contract: Contract
    stream: Stream
    temperature: float
    triton: bool
    """Whether the contract draws as Triton does: the id is the counter."""

    def philox_rows(self, steps_R: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Keys [R, 2] and counters [R] of output steps."""
        found = self.contract.philox_rows(self.stream, steps_R)
        assert found is not None  # noqa: S101 (`_draw_of` asked)
        return found.keys_R2, found.counters_R


def _draw_of(trace: Trace, vocab_size: int) -> Draw | None:
    """The draw of an unfiltered trace, None where the device cannot make it."""
    if trace.sampling.greedy or filters_on(trace.sampling) or trace.sampling.seed is None:
        return None
    try:
        contract = infer(trace.engine, trace.sampling, vocab_size).contract
    except UnsupportedError:
        return None
    stream = Stream(
        seed=trace.sampling.seed,
        prompt_length=len(trace.prompt_token_ids),
        vocab_size=vocab_size,
        engine=trace.engine,
    )
    found = contract.philox_rows(stream, np.zeros(1, dtype=np.int64))
    if found is None:
        return None
    heat = contract.effective_temperature(trace.sampling.temperature)
    return Draw(contract=contract, stream=stream, temperature=heat, triton=found.triton)


@dataclass(frozen=True, kw_only=True)
class KernelLister:
    """Lists the rows of one trace by kernels; made by `of`."""

    trace: Trace
    vocab_size: int
    draw: Draw | None

    @classmethod
    def of(cls, trace: Trace, vocab_size: int) -> KernelLister | None:
        """None where the kernels do not list what this trace needs: there `rows.RowLister` does, on the same device."""
        sampling = trace.sampling
        draw = _draw_of(trace, vocab_size)
        short = sampling.greedy or (sampling.top_k is not None and sampling.top_k + EDGE_ROOM <= SHORT)
        if needs_processing(sampling) or vocab_size < _LANES or not (short or draw is not None):
            return None
        return cls(trace=trace, vocab_size=vocab_size, draw=draw)

    @property
    def heat(self) -> float:
        """The temperature that probabilities are taken at."""
        return listing_temperature(self.trace.sampling)

    @property
    def launched_with(self) -> tuple[Any, ...]:
        """What all rows of one launch have in common."""
        return (self.heat, *((None, None) if self.draw is None else (self.draw.contract.id, self.draw.temperature)))

    def race(self, open_O: npt.NDArray[np.int64]) -> Race | None:
        """What evidence says of a draw made on the device, None if none was."""
        if self.draw is None:
            return None
        seed = child_seed(self.draw.stream)
        return Race(contract=self.draw.contract.id, seed=seed, temperature=self.draw.temperature, open_O=open_O)


@dataclass(frozen=True, kw_only=True)
class Span:
    """Hidden states `start` to `stop` - 1 of a step, from which output steps `first` and following of a trace are
    drawn."""

    lister: KernelLister
    start: int
    stop: int
    first: int


class Pending:
    """Consecutive rows of one trace that are being listed. `finish` waits for them."""

    def __init__(self, heat: float) -> None:
        self._heat = heat
        self._parts: list[tuple[dict[str, Any], slice]] = []
        self.done: torch.cuda.Event | None = None
        """Recorded after the last copy; None on a CPU, where nothing has to be waited for."""

    def add(self, made: dict[str, Any], rows: slice) -> None:
        """The next rows: some of those of one launch."""
        self._parts.append((made, rows))

    def finish(self) -> list[tuple[Listing, npt.NDArray[np.int64]]]:
        """Consecutive listings, each with the rows of it that the race leaves open."""
        if self.done is not None:
            self.done.synchronize()
        return [_listing(made, rows, self._heat) for made, rows in self._parts]


def start(head: Head, hidden_ND: torch.Tensor, spans: Sequence[Span]) -> list[Pending]:
    """Begin to list the rows of `spans`, in order. Rows of different traces share launches, to fill the device."""
    pending = [Pending(span.lister.heat) for span in spans]
    together: dict[tuple[Any, ...], list[int]] = {}
    for number, span in enumerate(spans):
        together.setdefault(span.lister.launched_with, []).append(number)
    for numbers in together.values():
        _start_alike(head, hidden_ND, [(spans[number], pending[number]) for number in numbers])
    if hidden_ND.device.type == "cuda":
        done = torch.cuda.Event(blocking=True)  # who waits for it sleeps
        done.record()
        for one in pending:
            one.done = done
    return pending


def _start_alike(head: Head, hidden_ND: torch.Tensor, pairs: Sequence[tuple[Span, Pending]]) -> None:
    """Rows that all launches may mix."""
    device, lister = hidden_ND.device, pairs[0][0].lister
    rows_R = np.concatenate([np.arange(span.start, span.stop, dtype=np.int64) for span, _ in pairs])
    steps = [np.arange(span.first, span.first + span.stop - span.start, dtype=np.int64) for span, _ in pairs]
    claimed = [span.lister.trace.output_token_ids[steps_R] for (span, _), steps_R in zip(pairs, steps, strict=True)]
    where_R, claimed_R = (_to_device(values, device) for values in (rows_R, np.concatenate(claimed).astype(np.int64)))
    noise = None
    if lister.draw is not None:
        draws = [
            span.lister.draw.philox_rows(steps_R)
            for (span, _), steps_R in zip(pairs, steps, strict=True)
            if span.lister.draw is not None  # as for the first: `launched_with` says so
        ]
        keys_R2, counters_R = (np.concatenate(values).view(np.int32) for values in zip(*draws, strict=True))
        noise = _to_device(keys_R2, device), _to_device(counters_R, device)
    ends = np.cumsum([len(steps_R) for steps_R in steps])
    for begin in range(0, len(rows_R), _ROWS):
        part = slice(begin, min(begin + _ROWS, len(rows_R)))
        logits_RV = head(hidden_ND[where_R[part]])
        own = None if noise is None else (noise[0][part], noise[1][part])
        made = _launch(logits_RV, claimed_R[part], lister.heat, lister.draw, own)
        for (_, one), first, last in zip(pairs, [0, *ends[:-1]], ends, strict=True):
            if first < part.stop and last > begin:
                one.add(made, slice(max(first, begin) - begin, min(last, part.stop) - begin))


def _launch(
    x_RV: torch.Tensor,
    claimed_R: torch.Tensor,
    heat: float,
    draw: Draw | None,
    noise: tuple[torch.Tensor, torch.Tensor] | None,
) -> dict[str, Any]:
    """Run the kernels over a chunk of rows and start to copy what they leave. `noise` are keys and counters."""
    from veridifr.references import race_kernels as kernels

    rows, vocab = x_RV.shape
    stride = x_RV.stride(0)

    def room(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty((rows, *shape), dtype=dtype, device=x_RV.device)

    found = {name: room() for name in ("lse", "hot_lse", "top", "least")}
    found |= {name: room(dtype=torch.int32) for name in ("count", "rank")}
    found |= {"ids": room(ROOM, dtype=torch.int32), "logits": room(ROOM)}
    grid = (rows,)
    kernels.survey[grid](
        x_RV, stride, vocab, heat, found["lse"], found["hot_lse"], found["top"], found["least"],
        SHORT=SHORT, LANES=_LANES, DEPTH=_DEPTH, HOT=heat != 1.0, num_warps=8,
    )  # fmt: skip
    kernels.gather[grid](
        x_RV, stride, vocab, found["least"], claimed_R, found["ids"], found["logits"], found["count"], found["rank"],
        ROOM=ROOM, BLOCK=_BLOCK, num_warps=8,
    )  # fmt: skip
    if draw is not None and noise is not None:
        found |= {"near_ids": room(RACE_ROOM, dtype=torch.int32), "near_logits": room(RACE_ROOM)}
        found["near"] = room(dtype=torch.int32)
        kernels.race[grid](
            x_RV, stride, vocab, draw.temperature, WINDOW, *noise, found["least"],
            claimed_R, found["near_ids"], found["near_logits"], found["near"],
            TRITON_UNIFORM=draw.triton, ROOM=RACE_ROOM, LANES=_LANES, num_warps=8,
        )  # fmt: skip
    made: dict[str, Any] = {name: to_host(values) for name, values in found.items()}
    return made | {"vocab": vocab}


def to_host(values: torch.Tensor) -> torch.Tensor:
    """A copy on the host: there once an event that the stream records after it is done."""
    if values.device.type == "cpu":
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _to_device(values: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """A copy on the device that does not wait for it: what is not pinned may have to."""
    host = torch.from_numpy(np.ascontiguousarray(values))
    return host if device.type == "cpu" else host.pin_memory().to(device, non_blocking=True)


def _listing(made: dict[str, Any], rows: slice, heat: float) -> tuple[Listing, npt.NDArray[np.int64]]:
    """What the kernels left of some rows, as a listing, and those of them that the race leaves open."""
    vocab = made["vocab"]
    host = {name: values.numpy()[rows] for name, values in made.items() if name != "vocab"}
    count_R = np.minimum(host["count"], ROOM)
    floor_R = np.where(host["count"] > ROOM, host["top"], host["least"]).astype(np.float32)
    listed = np.arange(ROOM) < count_R[:, None]
    rows_N = np.repeat(np.arange(len(count_R), dtype=np.int64), count_R)
    ids_N, logits_N = host["ids"][listed], host["logits"][listed]
    open_O = np.zeros(0, dtype=np.int64)
    counts_R = count_R.astype(np.int64)
    if "near" in host:
        near_R = np.maximum(host["near"], 0)
        near = np.arange(RACE_ROOM) < near_R[:, None]
        near_ids, near_rows = host["near_ids"][near], np.repeat(np.arange(len(near_R), dtype=np.int64), near_R)
        order = np.argsort(near_rows * vocab + near_ids)
        place = np.searchsorted(rows_N * vocab + ids_N, (near_rows * vocab + near_ids)[order])
        ids_N = np.insert(ids_N, place, near_ids[order])
        logits_N = np.insert(logits_N, place, host["near_logits"][near][order])
        counts_R += near_R
        open_O = np.flatnonzero(host["near"] < 0)
    share_N = np.exp(logits_N.astype(np.float64) / heat - np.repeat(host["hot_lse"].astype(np.float64), counts_R))
    whole_R = counts_R == vocab
    tail_R = 1.0 - np.add.reduceat(share_N, np.cumsum(counts_R) - counts_R)
    listing = Listing(
        counts_R=counts_R,
        ids_N=ids_N,
        logits_N=logits_N,
        lse_R=host["lse"].astype(np.float64),
        rank_R=host["rank"],
        floor_R=np.where(whole_R, np.float32(-np.inf), floor_R),
        tail_R=np.where(whole_R, 0.0, np.clip(tail_R, 0.0, 1.0)),
        hot_tail_R=hot_tail(logits_N, counts_R, floor_R, HOT * heat, vocab),
    )
    return listing, open_O
