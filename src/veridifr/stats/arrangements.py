"""The ways in which the label "audited" could have fallen on pooled scores: counted, listed, or drawn at random.

A permutation test asks how large the audited scores' sum would have been had the labels fallen otherwise. Only which
scores carry the label matters, so an arrangement is a subset, one per stratum. The smaller side of each stratum is
what is drawn, which keeps the work proportional to min(n, m).
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from veridifr.stats.checks import FloatArray, IndexArray

EXACT_LIMIT = 20_000
"""Up to this many arrangements are listed, so that the p-value has no Monte Carlo error."""
_BLOCK = 2**22
"""Largest number of entries of a working array: bounds memory to some 100 MB whatever the number of permutations."""


@dataclass(frozen=True)
class Design:
    """How many audited and honest scores each stratum holds, all at least 1.

    Pooled scores are ordered stratum by stratum, in each the audited scores before the honest ones.
    """

    audited: tuple[int, ...]
    honest: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of pooled scores."""
        return sum(self.audited) + sum(self.honest)

    def count(self) -> int | None:
        """Number of arrangements, the product over strata of C(n+m, n); None above `EXACT_LIMIT`."""
        if self.log_count() > math.log(EXACT_LIMIT) + 1.0:  # keeps huge integers from being computed
            return None
        total = self._product()
        return total if total <= EXACT_LIMIT else None

    def log_count(self) -> float:
        """Natural logarithm of the number of arrangements."""
        return math.fsum(math.lgamma(n + m + 1) - math.lgamma(n + 1) - math.lgamma(m + 1) for n, m in self._pairs())

    def floor(self) -> float:
        """Smallest p-value that any scores can give: 1 / number of arrangements, at least the smallest float."""
        if self.log_count() < 700.0:
            return 1.0 / self._product()
        return sys.float_info.min  # the true value is smaller than the smallest float, and it is not 0

    def strata(self) -> Iterator[tuple[int, int, int]]:
        """(first pooled index, n, m) of each stratum."""
        start = 0
        for n, m in self._pairs():
            yield start, n, m
            start += n + m

    def _product(self) -> int:
        return math.prod(math.comb(n + m, n) for n, m in self._pairs())

    def _pairs(self) -> Iterator[tuple[int, int]]:
        return zip(self.audited, self.honest, strict=True)


def count_at_least(
    pooled_ND: FloatArray, design: Design, permutations: int, rng: np.random.Generator
) -> tuple[IndexArray, int, bool]:
    """How many arrangements give an audited sum at least as large as the observed one, for each of D data sets.

    Returns (counts int64[D], arrangements looked at, whether these were all there are). Equal sums count; so do sums
    that differ by no more than rounding can explain, which can only raise the p-value.
    """
    scaled_ND = _scaled(pooled_ND, design)
    rows = max(1, _BLOCK // max(scaled_ND.shape))
    slack_D = sys.float_info.epsilon * design.size * np.abs(scaled_ND).sum(axis=0)
    threshold_D = _sums(_observed(design), design, scaled_ND)[0] - slack_D
    counts_D = np.zeros(scaled_ND.shape[1], dtype=np.int64)
    total = design.count()
    exact = total is not None
    blocks = _all_blocks(design, rows) if exact else _random_blocks(design, rows, permutations, rng)
    for chosen_RK in blocks:
        counts_D += (_sums(chosen_RK, design, scaled_ND) >= threshold_D).sum(axis=0)
    return counts_D, permutations if total is None else total, exact


def _scaled(pooled_ND: FloatArray, design: Design) -> FloatArray:
    """Scores scaled by a power of two (exact, so no sum overflows), then centred by stratum (sums lose no digits).

    Neither changes which sums are larger: every arrangement takes the same number of scores from a stratum.
    """
    _, exponent_D = np.frexp(np.abs(pooled_ND).max(axis=0))
    scaled_ND: FloatArray = np.ldexp(pooled_ND, -exponent_D)
    for start, n, m in design.strata():
        scaled_ND[start : start + n + m] -= scaled_ND[start : start + n + m].mean(axis=0)
    return scaled_ND


def _sums(chosen_RK: IndexArray, design: Design, scaled_ND: FloatArray) -> FloatArray:
    """For R arrangements and D data sets, numbers [R, D] that are ordered as the audited sums are.

    Where the honest side is the smaller one, minus its sum stands for the audited sum (they differ by a constant). A
    sparse product costs R * K * D, gathers whole rows, and needs no matrix of arrangements by scores.
    """
    count, picks = chosen_RK.shape
    signs_K = np.concatenate([np.full(min(n, m), 1.0 if n <= m else -1.0) for _, n, m in design.strata()])
    entries = (np.tile(signs_K, count), chosen_RK.ravel(), np.arange(count + 1, dtype=np.int64) * picks)
    sums: FloatArray = csr_array(entries, shape=(count, design.size)) @ scaled_ND
    return sums


def _observed(design: Design) -> IndexArray:
    """The labels as they fell, as int64[1, K]."""
    starts = [(start if n <= m else start + n, min(n, m)) for start, n, m in design.strata()]
    return np.concatenate([np.arange(first, first + picks, dtype=np.int64) for first, picks in starts])[None, :]


def _all_blocks(design: Design, rows: int) -> Iterator[IndexArray]:
    """Blocks int64[R, K] with every arrangement once: the strata's subsets combined by mixed-radix counting."""
    strata = list(design.strata())
    subsets = [np.array(list(itertools.combinations(range(n + m), min(n, m))), dtype=np.int64) for _, n, m in strata]
    total = math.prod(map(len, subsets))
    for first in range(0, total, rows):
        number = np.arange(first, min(first + rows, total))
        columns = []
        for (start, _, _), subset in zip(strata, subsets, strict=True):
            number, digit = np.divmod(number, len(subset))
            columns.append(start + subset[digit])
        yield np.concatenate(columns, axis=1)


def _random_blocks(design: Design, rows: int, permutations: int, rng: np.random.Generator) -> Iterator[IndexArray]:
    """Blocks int64[R, K] of independent uniform arrangements, `permutations` in all."""
    for first in range(0, permutations, rows):
        count = min(rows, permutations - first)
        yield np.concatenate(
            [start + random_subsets(count, n + m, min(n, m), rng) for start, n, m in design.strata()], axis=1
        )


def random_subsets(count: int, size: int, pick: int, rng: np.random.Generator) -> IndexArray:
    """`count` independent uniform subsets of range(size) with `pick` members each, as int64[count, pick].

    Floyd's algorithm (Bentley & Floyd 1987, CACM 30(9)), all subsets in step: `pick` random numbers per subset.
    """
    rows = np.arange(count)
    taken = np.zeros((count, size), dtype=np.bool_)
    chosen = np.empty((pick, count), dtype=np.int64)
    for step, last in enumerate(range(size - pick, size)):
        candidate = rng.integers(0, last + 1, size=count)
        chosen[step] = np.where(taken[rows, candidate], last, candidate)
        taken[rows, chosen[step]] = True
    return chosen.T
