"""Membership at the edge of top-k, top-p and min-p, as a signed distance in logit units.

A hard filter makes honest tokens infinitely unlikely: two runs that differ by 1e-3 in a logit keep different sets. So
each candidate gets a distance m to the edge of the kept set: positive outside (how far its logit, or the mass above it,
must move to get in), negative inside (how far until it falls out), minus infinity where no filter applies.

- top-k: distance of the logit to the k-th largest (outside) or the k+1-th (inside).
- min-p: distance of the logit to l_max + T log(min_p).
- top-p: token j is kept while the mass S_j strictly above it is below p (vLLM and HF: the ascending cumulative sum up
  to and including j exceeds 1 - p). The cut moves with mass, not with one token's error: raising everything above j by
  d/T multiplies the odds S/(1-S) by exp(d/T), so d = T (logit S_j - logit p). The token may also pass its neighbour at
  the edge; the smaller of the two distances counts.

All three keep a prefix of the candidates in descending order of logit, whatever order an engine applies them in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr.trace import Sampling

Floats = npt.NDArray[np.float64]
_TINY = 1e-12
EDGE_WINDOW = 2.0
"""Candidates further than this many logits outside the kept set cannot win and get no noise."""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """`distance_N`: signed distance of each candidate to the edge (see the module). `decided_R`: whether the listing
    reaches past the edge, so that nothing unlisted can belong to the kept set."""

    distance_N: Floats
    decided_R: npt.NDArray[np.bool_]


def filters_on(sampling: Sampling) -> bool:
    """Whether any of top-k, top-p and min-p is on."""
    return sampling.top_k is not None or sampling.top_p is not None or sampling.min_p is not None


def membership(
    order: Sequence[str],
    sampling: Sampling,
    temperature: float,
    offsets_R1: npt.NDArray[np.int64],
    logits_N: npt.NDArray[np.float64],
    tail_R: Floats,
    floor_R: npt.NDArray[np.floating[Any]],
) -> Membership:
    """Signed distances of N candidates in R rows to the edge of the kept set, filters applied in `order`.

    `logits_N` are processed logits before temperature; `tail_R` the probability that each row leaves unlisted, at
    `temperature`; no unlisted logit exceeds `floor_R`. A filter that stands before "temperature" in `order` works at
    temperature 1, as in llama.cpp.
    """
    rows, width = len(offsets_R1) - 1, int(np.diff(offsets_R1).max())
    padded = np.full((rows, width), -np.inf)
    lengths = np.diff(offsets_R1)
    inside = np.arange(width) < lengths[:, None]
    padded[inside] = logits_N
    by_rank = np.argsort(-padded, axis=1, kind="stable")
    ranked = np.take_along_axis(padded, by_rank, axis=1)
    head = ranked[:, : _deciding(order, sampling, ranked)]
    state = _Ranked(head, width, lengths, np.full(head.shape, -np.inf), lengths.copy())
    divided = "temperature" not in order
    decided = floor_R == -np.inf
    for stage in order:
        divided = divided or stage == "temperature"
        now = temperature if divided else 1.0
        if stage == "min_p" and sampling.min_p is not None:
            edge = ranked[:, :1] + now * np.log(sampling.min_p)
            state.cut_below(edge)
            decided = decided | (floor_R < edge[:, 0])
        elif stage == "top_k" and sampling.top_k is not None:
            state.cut_rank(sampling.top_k)
        elif stage == "top_p" and sampling.top_p is not None:
            state.cut_mass(sampling.top_p, now, tail_R)
    distance = np.empty_like(padded)
    np.put_along_axis(distance, by_rank[:, : head.shape[1]], state.distance, axis=1)
    if head.shape[1] < width:  # the others are as far out as their logits are from the last one kept
        last = ranked[np.arange(rows), state.kept - 1][:, None]
        np.put_along_axis(distance, by_rank[:, head.shape[1] :], last - ranked[:, head.shape[1] :], axis=1)
    # Kept sets are prefixes, so one listed candidate at or above the floor that is cut cuts all that is unlisted.
    above_floor = (ranked >= floor_R[:, None]).sum(axis=1)
    return Membership(distance_N=distance[inside], decided_R=decided | (state.kept < above_floor))


def _deciding(order: Sequence[str], sampling: Sampling, ranked: Floats) -> int:
    """How many of the largest logits decide which are kept: all, or, where top-k comes first, k and the next."""
    count, width = sampling.top_k, int(ranked.shape[1])
    first = sampling.top_p is None or order.index("top_k") < order.index("top_p")
    if count is None or sampling.min_p is not None or not first or count + 1 >= width:
        return width
    ties = ranked[:, count] == ranked[:, count - 1]  # kept as well, and there may be more of them
    more = bool((ties & (ranked[:, count] > -np.inf)).any())
    return width if more else count + 1


@dataclass
class _Ranked:
    """Rows in descending order of logit, their distances so far, and how many of each row are kept so far. Of `width`
    logits in a row the first are here, all that can be kept."""

    logits: Floats
    width: int
    lengths: npt.NDArray[np.int64]
    distance: Floats
    kept: npt.NDArray[np.int64]

    def cut_below(self, edge: Floats) -> None:
        """Keep logits of at least `edge` (one per row)."""
        self._tighten(edge - self.logits)

    def cut_rank(self, count: int) -> None:
        """Keep the `count` largest logits; ties with the last are kept, as vLLM keeps them."""
        width = self.logits.shape[1]
        if count >= width:
            return
        last, first_out = self.logits[:, count - 1 : count], self.logits[:, count : count + 1]
        ranks = np.arange(width)
        with np.errstate(invalid="ignore"):  # -inf minus -inf in the padding, masked below
            distance = np.where(ranks < count, first_out - self.logits, last - self.logits)
        distance = np.where(np.isnan(distance), np.inf, distance)
        self._tighten(np.where(first_out == -np.inf, np.where(ranks < count, -np.inf, np.inf), distance))

    def cut_mass(self, top_p: float, temperature: float, tail_R: Floats) -> None:
        """Keep tokens while the mass strictly above them is below `top_p`, over what is kept so far."""
        ranks = np.arange(self.logits.shape[1])
        kept = ranks < self.kept[:, None]
        weights = np.where(kept, np.exp((self.logits - self.logits[:, :1]) / temperature), 0.0)
        whole_rows = np.zeros((len(weights), self.width))  # sums are rounded as those of whole rows are
        whole_rows[:, : weights.shape[1]] = weights
        total = whole_rows.sum(axis=1, keepdims=True)
        whole = (self.kept == self.lengths)[:, None]  # nothing listed was cut, so unlisted tokens share the mass
        total = np.where(whole, total / np.maximum(1.0 - tail_R[:, None], _TINY), total)
        above = (np.cumsum(weights, axis=1) - weights) / total
        above = np.clip(above, _TINY, 1.0 - _TINY)
        shift = temperature * (np.log(above) - np.log1p(-above) - np.log(top_p) + np.log1p(-top_p))
        shift[:, 0] = -np.inf  # the largest logit is always kept
        stays = (shift < 0) & kept
        count = stays.sum(axis=1)
        rows = np.arange(len(count))
        last = self.logits[rows, count - 1][:, None]
        beyond = np.minimum(count, self.logits.shape[1] - 1)
        first_out = np.where(count < self.logits.shape[1], self.logits[rows, beyond], -np.inf)[:, None]
        with np.errstate(invalid="ignore"):
            outside = np.minimum(np.where(kept, shift, np.inf), last - self.logits)
            inside = np.maximum(shift, first_out - self.logits)
        self._tighten(np.where(stays, inside, np.where(np.isnan(outside), np.inf, outside)))

    def _tighten(self, distance: Floats) -> None:
        self.distance = np.maximum(self.distance, distance)
        self.kept = np.minimum(self.kept, ((self.distance <= 0) & (self.logits > -np.inf)).sum(axis=1))
