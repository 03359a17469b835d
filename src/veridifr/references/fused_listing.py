"""The listing of rows in one kernel, compiled where that is switched on (`rng.compiled`).

It does what `listing.list_candidates` does where the settings keep a known number or only a small tail may stay
unlisted, but while a row is in the cache, and comes nearer to the tail allowed, so it lists fewer candidates.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr.evidence import CANDIDATE_BYTES, HOT
from veridifr.references.listing import GROUPS, Listing, allowed_tail, fewest_listed
from veridifr.rng import compiled
from veridifr.rng.exponentials import C1, C2, C3, C4, C5, C6, HALF, LEAST, LOG2E, ONE, scratch
from veridifr.trace import Sampling

_THREADS = 8
_BOLD = 8.0
"""The lowest threshold tried, in units of allowed / V, which itself cannot leave out too much; 64 is the highest."""
_ROUNDING = 1e-4
"""More than float32 sums over a row are off, relatively."""
_BLOCK = 16
"""Logits that are passed over together where none is listed."""
_LOWEST = np.float32(-3e38)
"""Nothing finite that a model computes is lower; minus infinities are."""


def applies(sampling: Sampling) -> bool:
    """Whether such rows are listed by number or by their tail, and the kernel is there to do it."""
    return (_counted(sampling) or sampling.min_p is None) and _kernels() is not None


def _counted(sampling: Sampling) -> bool:
    """Whether a known number of the largest is enough; else the tail decides, and min-p would by its own edge."""
    return sampling.greedy or sampling.top_k is not None


def list_rows(
    logits_RV: npt.NDArray[np.float32],
    claimed_R: npt.NDArray[np.int64],
    sampling: Sampling,
    *,
    tail_mass: float,
    list_bytes: int,
    threads: int,
) -> Listing:
    """As `listing.list_candidates`, for float32 logits in memory to which no setting adds anything."""
    kernels = _kernels()
    assert kernels is not None  # noqa: S101 (`applies` was asked)
    measure, gather = kernels
    rows, vocab = logits_RV.shape
    counted = _counted(sampling)
    heat = np.float32(1.0 if sampling.greedy else sampling.temperature)
    short = min(vocab, fewest_listed(sampling, list_bytes) if counted else max(list_bytes // CANDIDATE_BYTES, 2))
    groups = vocab if vocab < 2 * GROUPS * short else GROUPS * short
    allowed = np.float32(-1.0 if counted else allowed_tail(sampling, tail_mass))
    lse_R, tail_R, hot_tail_R = np.empty(rows), np.empty(rows), np.empty(rows)
    floor_R, top_R = np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.float32)
    counts_R, rank_R = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.int32)

    def measured(first: int, last: int) -> None:
        part = slice(first, last)
        measure(
            logits_RV[part], claimed_R[part], heat, allowed, (short, groups),
            (lse_R[part], tail_R[part], floor_R[part], top_R[part], counts_R[part], rank_R[part]), scratch(vocab),
        )  # fmt: skip

    _side_by_side(measured, rows, threads)
    ends_R = np.cumsum(counts_R)
    ids_N, logits_N = np.empty(ends_R[-1], dtype=np.int32), np.empty(ends_R[-1], dtype=np.float32)

    def gathered(first: int, last: int) -> None:
        part = slice(first, last)
        gather(
            logits_RV[part], claimed_R[part], np.float32(HOT) * heat,
            (floor_R[part], top_R[part], counts_R[part], ends_R[part]), (ids_N, logits_N), hot_tail_R[part],
            scratch(vocab),
        )  # fmt: skip

    _side_by_side(gathered, rows, threads)
    whole_R = counts_R == vocab
    floor_R[whole_R], tail_R[whole_R], hot_tail_R[whole_R] = -np.inf, 0.0, 0.0
    return Listing(
        counts_R=counts_R,
        ids_N=ids_N,
        logits_N=logits_N,
        lse_R=lse_R,
        rank_R=rank_R,
        floor_R=floor_R,
        tail_R=tail_R,
        hot_tail_R=hot_tail_R,
    )


def _side_by_side(part: Callable[[int, int], None], rows: int, threads: int) -> None:
    count = max(1, min(threads, _THREADS, os.cpu_count() or 1, rows))
    edges = np.linspace(0, rows, count + 1).astype(int).tolist()
    if count == 1:
        part(0, rows)
        return
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(lambda edge: part(*edge), pairwise(edges)))


def _kernels() -> tuple[Callable[..., None], Callable[..., None]] | None:
    measure, gather = compiled.function(_measure, reassociate=True), compiled.function(_gather, reassociate=True)
    return (measure, gather) if measure is not None and gather is not None else None


def _measure(x_RV: Any, claimed_R: Any, heat: Any, allowed: Any, sizes: Any, out: Any, scratch: Any) -> None:  # noqa: PLR0915 (a kernel calls no plain function)
    """For each row: log-sum-exp at temperature 1, threshold, what stays below it, the largest logit, and counts. The
    threshold is that of a tail of at most `allowed`, of no tail where that is below 0, but `sizes[0]` logits reach it
    at least; these are looked for among the largest of `sizes[1]` groups."""
    lse_R, tail_R, floor_R, top_R, counts_R, rank_R = out
    share_V, bits_V, power_V = scratch
    short, groups = sizes
    vocab = x_RV.shape[1]
    for row in range(len(x_RV)):
        x_V = x_RV[row]
        top = x_V[0]
        for i in range(vocab):
            top = max(top, x_V[i])
        total = np.float32(0.0)
        for hot in range(1 if heat == 1.0 else 2):
            by = LOG2E if hot == 0 else LOG2E / heat
            for i in range(vocab):
                a = max((x_V[i] - top) * by, LEAST)
                n = np.int32(a - HALF)  # the nearest integer, as a is not above 0
                r = a - np.float32(n)
                share_V[i] = ONE + r * (C1 + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))))
                bits_V[i] = (n + np.int32(127)) << np.int32(23)
            total = np.float32(0.0)
            for i in range(vocab):
                share_V[i] *= power_V[i]
                total += share_V[i]
            if hot == 0:
                lse_R[row] = top + np.log(total)
        least, count = top, 0
        if allowed > 0.0:
            most = allowed * total
            step, width = -1, 4  # the threshold before the first is the safe one
            while width > 0:  # the highest of seven that leaves out no more than is allowed: the tail grows with it
                limit = np.float32(_BOLD * 2.0 ** (0.5 * (step + width)) * most / vocab)
                part = np.float32(0.0)
                for i in range(vocab):
                    part += share_V[i] if share_V[i] < limit else np.float32(0.0)
                if part <= most:
                    step += width
                width //= 2
            limit = _BOLD * 2.0 ** (0.5 * step) * most / vocab if step >= 0 else most / vocab
            least = np.float32(top + heat * np.log(max(limit, 1e-37)))
            for i in range(vocab):
                count += 1 if x_V[i] >= least else 0
        if count < short:
            power_V[:groups] = x_V[:groups]  # the groups' largest, where powers of two were
            first = groups
            while first < vocab:
                part_G = x_V[first : first + groups]  # indices from 0 on: else the compiler makes no vector of them
                for i in range(len(part_G)):
                    power_V[i] = max(power_V[i], part_G[i])
                first += groups
            low, high = max(power_V[:groups].min(), _LOWEST), least
            for _ in range(24):  # the `short` largest, and an eighth more at most where that can be had
                middle = HALF * low + HALF * high
                count = 0
                for i in range(groups):
                    count += 1 if power_V[i] >= middle else 0
                if count >= short:
                    low = middle
                    if count <= short + short // 8:
                        break
                else:
                    high = middle
            least = low
        tail = np.float32(0.0)
        count = larger = 0
        own = x_V[claimed_R[row]]
        for i in range(vocab):
            tail += share_V[i] if x_V[i] < least else np.float32(0.0)
            count += 1 if x_V[i] >= least else 0
            larger += 1 if x_V[i] > own else 0
        if allowed > 0.0:
            tail *= np.float32(1.0 + _ROUNDING)
        elif own < least:  # top-p needs the very mass, and the claimed token is listed
            tail -= share_V[claimed_R[row]]
        tail_R[row] = min(1.0, max(0.0, tail / total))
        floor_R[row], top_R[row], rank_R[row] = least, top, larger
        counts_R[row] = count + (1 if own < least else 0)


def _gather(x_RV: Any, claimed_R: Any, heat: Any, rows: Any, out: Any, hot_tail_R: Any, scratch: Any) -> None:
    """The ids and logits of at least `least_R`, and a bound on what is left of each row at temperature `heat`."""
    least_R, top_R, counts_R, ends_R = rows
    ids_N, logits_N = out
    share_V, bits_V, power_V = scratch
    vocab = x_RV.shape[1]
    for row in range(len(x_RV)):
        x_V, least, claimed, end = x_RV[row], least_R[row], claimed_R[row], ends_R[row]
        n = start = end - counts_R[row]
        whole = vocab - vocab % _BLOCK
        for first in range(0, whole, _BLOCK):
            block = x_V[first : first + _BLOCK]
            best = block[0]
            for i in range(_BLOCK):
                best = max(best, block[i])
            if best >= least or first <= claimed < first + _BLOCK:
                for i in range(_BLOCK):
                    if block[i] >= least or first + i == claimed:
                        ids_N[n], logits_N[n] = first + i, block[i]
                        n += 1
        for i in range(whole, vocab):
            if x_V[i] >= least or i == claimed:
                ids_N[n], logits_N[n] = i, x_V[i]
                n += 1
        by = LOG2E / heat
        top = top_R[row]
        for i in range(n - start):
            a = max((logits_N[start + i] - top) * by, LEAST)
            nearest = np.int32(a - HALF)
            r = a - np.float32(nearest)
            share_V[i] = ONE + r * (C1 + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))))
            bits_V[i] = (nearest + np.int32(127)) << np.int32(23)
        part = np.float32(0.0)
        for i in range(n - start):
            part += share_V[i] * power_V[i]
        listed = part * (1.0 - _ROUNDING)
        unlisted = (vocab - (n - start)) * np.exp((least - top) / heat)
        hot_tail_R[row] = unlisted / (unlisted + listed)
