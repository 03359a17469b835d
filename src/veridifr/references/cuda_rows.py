"""Rows of logits on a GPU: listed by kernels while the engine goes on, and fetched when they are there.

Without filters a tail of 1e-6 can be most of the vocabulary. There the noise is drawn on the device and the listing
holds the likeliest tokens and those that come near the winner; the evidence says so (`evidence.Race`).
"""

from __future__ import annotations

from collections.abc import Callable
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
_LANES, _DEPTH, _BLOCK = 1024, 4, 2048

Head = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The noise that a trace claims, as a device draws it."""

    contract: Contract
    stream: Stream
    temperature: float


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
    if contract.philox_rows(stream, np.zeros(1, dtype=np.int64)) is None:
        return None
    heat = contract.effective_temperature(trace.sampling.temperature)
    return Draw(contract=contract, stream=stream, temperature=heat)


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

    def start(self, head: Head, hidden_RD: torch.Tensor, first: int) -> Pending:
        """Begin to list the rows whose final hidden states are given; output step `first` is the first of them."""
        claimed = self.trace.output_token_ids[first : first + len(hidden_RD)]
        claimed_R = torch.from_numpy(claimed.astype(np.int64)).to(hidden_RD.device, non_blocking=True)
        heat = listing_temperature(self.trace.sampling)
        made = []
        for begin in range(0, len(hidden_RD), _ROWS):
            logits_RV = head(hidden_RD[begin : begin + _ROWS])
            steps_R = np.arange(first + begin, first + begin + len(logits_RV), dtype=np.int64)
            made.append(_launch(logits_RV, claimed_R[begin : begin + len(logits_RV)], heat, self.draw, steps_R))
        return Pending(made, heat)

    def race(self, open_O: npt.NDArray[np.int64]) -> Race | None:
        """What evidence says of a draw made on the device, None if none was."""
        if self.draw is None:
            return None
        seed = child_seed(self.draw.stream)
        return Race(contract=self.draw.contract.id, seed=seed, temperature=self.draw.temperature, open_O=open_O)


class Pending:
    """Consecutive rows that are being listed. `finish` waits for them."""

    def __init__(self, made: list[dict[str, Any]], heat: float) -> None:
        self._made = made
        self._heat = heat
        self._done = torch.cuda.Event() if torch.cuda.is_available() else None
        if self._done is not None:
            self._done.record()

    def ready(self) -> bool:
        """Whether `finish` would not have to wait."""
        return self._done is None or bool(self._done.query())

    def finish(self) -> list[tuple[Listing, npt.NDArray[np.int64]]]:
        """Consecutive listings, each with the rows of it that the race leaves open."""
        if self._done is not None:
            self._done.synchronize()
        return [_listing(made, self._heat) for made in self._made]


def _launch(
    x_RV: torch.Tensor, claimed_R: torch.Tensor, heat: float, draw: Draw | None, steps_R: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Run the kernels over a chunk of rows and start to copy what they leave."""
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
    noise = None if draw is None else draw.contract.philox_rows(draw.stream, steps_R)
    if draw is not None and noise is not None:
        found |= {"near_ids": room(RACE_ROOM, dtype=torch.int32), "near_logits": room(RACE_ROOM)}
        found["near"] = room(dtype=torch.int32)
        keys_R2, counters_R = (
            torch.from_numpy(values.view(np.int32).copy()).to(x_RV.device, non_blocking=True)
            for values in (noise.keys_R2, noise.counters_R)
        )
        kernels.race[grid](
            x_RV, stride, vocab, draw.temperature, WINDOW, keys_R2, counters_R, found["least"],
            claimed_R, found["near_ids"], found["near_logits"], found["near"],
            TRITON_UNIFORM=noise.triton, ROOM=RACE_ROOM, LANES=_LANES, num_warps=8,
        )  # fmt: skip
    made: dict[str, Any] = {name: to_host(values) for name, values in found.items()}
    return made | {"vocab": vocab}


def to_host(values: torch.Tensor) -> torch.Tensor:
    """A copy on the host: there once an event that the stream records after it is done."""
    if values.device.type == "cpu":
        return values
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return host.copy_(values, non_blocking=True)


def _listing(made: dict[str, Any], heat: float) -> tuple[Listing, npt.NDArray[np.int64]]:
    """What the kernels left, as a listing, and the rows that the race leaves open."""
    vocab = made["vocab"]
    host = {name: values.numpy() for name, values in made.items() if name != "vocab"}
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
