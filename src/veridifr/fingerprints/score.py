"""How much a fingerprint's codes speak for a deviation: log-likelihood ratios of the verifier's own projections.

Model: the provider's projection is the verifier's plus an error, Gaussian in each coordinate, of scale sigma times a
log-normal factor that all coordinates of one token share (tokens differ in how sensitive they are to rounding). Where
the verifier measured that sensitivity, sigma is relative to it, and the factor is what it leaves open. Where honest
errors have a tail that no log-normal has, as those of a mixture of experts, the share of tokens at each of
`SHARED_SIZES` is fitted instead. Honest runs have the sigma of the calibration, a deviating run a multiple of it. The
model only ranks: a verdict's error rate comes from comparing the score with scores of honest runs, not from the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, ndtr

from veridifr.errors import FingerprintError
from veridifr.fingerprints.encoding import Intervals
from veridifr.shares import fit_shares

Float64 = npt.NDArray[np.float64]

MULTIPLES = (1.5, 2.0, 4.0, 16.0)
"""Scales of deviating errors, as multiples of the honest one; the score is over their even mixture."""
SHARED_SIZES: Float64 = np.exp2(np.arange(-8, 25) / 4)
"""Multiples of sigma among which `ErrorScale.shares` are shared out: quarters of an octave, from 1/4 to 64."""
SHARED_MULTIPLES = (2**0.25, *(2 ** (octaves / 2) for octaves in range(1, 15)))
"""Scales of deviating errors where honest ones have shares: half octaves to 128, as the tail of honest errors reaches
far, and one between two scales, or beyond the largest, would look honest beside it."""
_SHARED_GAIN, _SHARED_LEAST = 0.1, 20.0
"""Nats that shares must gain over the log-normal: for each entry, and in all, as few entries suit any shares."""
_NEAR, _OCTAVE, _LEAST_TAIL = 3, 4.0, 3e-3
"""Shares of sizes further than `_NEAR` from the median are spread by a Gaussian of an octave (in places of
`SHARED_SIZES`), and at least so much in all is of larger sizes."""
_SEARCHED, _FEWEST_ENTRIES = 2**18, 512
"""Coordinates on which sigma and the spread are searched, and the fewest entries that these are spread over."""
_NODES = 5
_POINT = 2.0**-60
"""Least width of an interval, in units of a coordinate: that of the float 0 would be none."""
_GRID = 4
"""Sensitivities are rounded to so many steps an octave: finer makes no difference to a score."""
_FEWEST = 0.05
"""Intervals narrower than this share of sigma are widened to it: the ratio of two densities, without cancellation."""


@dataclass(frozen=True, kw_only=True)
class ErrorScale:
    """Honest errors at one tap: `sigma` in the units of a projected coordinate (with sensitivities: of a token's own),
    `spread` the standard deviation of the logarithm of a token's own factor, `epsilon` the share of coordinates that
    anything may have happened to. With `shares` that factor is each of `SHARED_SIZES` with that probability, and
    `spread` only describes it. Not `relative`: sensitivities are left out, as errors are explained better without."""

    sigma: float
    spread: float = 0.2
    epsilon: float = 1e-4
    shares: tuple[float, ...] = ()
    relative: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise FingerprintError(f"sigma: got {self.sigma}, expected above 0")
        if not 0 <= self.spread <= 2:
            raise FingerprintError(f"spread: got {self.spread}, expected 0 to 2")
        if not 0 < self.epsilon < 1:
            raise FingerprintError(f"epsilon: got {self.epsilon}, expected between 0 and 1")
        if self.shares and not (
            len(self.shares) == len(SHARED_SIZES) and min(self.shares) >= 0 and abs(sum(self.shares) - 1) < 1e-6
        ):
            raise FingerprintError(f"shares: expected {len(SHARED_SIZES)} shares that sum to 1")

    @property
    def multiples(self) -> tuple[float, ...]:
        """Scales of deviating errors, as multiples of the honest one."""
        return SHARED_MULTIPLES if self.shares else MULTIPLES

    @property
    def sizes(self) -> tuple[Float64, Float64]:
        """A token's own factor: the values that stand for it, and their weights [S]."""
        if self.shares:
            return SHARED_SIZES, np.array(self.shares)
        nodes_S, weights_S = np.polynomial.hermite_e.hermegauss(_NODES if self.spread else 1)
        return np.exp(self.spread * nodes_S), weights_S / weights_S.sum()


def log_likelihood(
    intervals: Intervals,
    own_FK: npt.ArrayLike,
    scale: ErrorScale,
    multiple: float = 1.0,
    sensitivity_F: npt.ArrayLike | None = None,
) -> Float64:
    """Log-probability of each entry's codes, [F], given the verifier's projections [F, k] and errors of scale
    `multiple` times the honest one, which with `sensitivity_F` is relative to each entry's own."""
    sizes_S, weights_S = scale.sizes
    logs_SF = _logs(intervals, own_FK, scale, multiple * sizes_S, sensitivity_F)
    found: Float64 = logsumexp(logs_SF, axis=0, b=weights_S[:, None])
    return found


def ratios(
    intervals: Intervals,
    own_FK: npt.ArrayLike,
    scale: ErrorScale,
    sensitivity_F: npt.ArrayLike | None = None,
) -> Float64:
    """Log-likelihood ratio of each entry for each of the scale's M multiples against the honest scale, [F, M]. Add over
    entries (and taps), then `combine`."""
    sizes_S, weights_S = scale.sizes
    wanted_MS = np.multiply.outer((1.0, *scale.multiples), sizes_S)
    # multiples share sizes where these are a grid: each is computed once
    _, first_U, place = np.unique(np.round(np.log2(wanted_MS), 6), return_index=True, return_inverse=True)
    logs_UF = _logs(intervals, own_FK, scale, wanted_MS.reshape(-1)[first_U], sensitivity_F)
    logs_MF = logsumexp(logs_UF[place.reshape(wanted_MS.shape)], axis=1, b=weights_S[:, None])
    found: Float64 = (logs_MF[1:] - logs_MF[0]).T
    return found


def combine(summed_M: npt.ArrayLike) -> Float64:
    """The score of a batch of tokens: log of the mean likelihood ratio over the multiples (last axis); larger = more
    divergent."""
    values = np.asarray(summed_M, dtype=np.float64)
    found: Float64 = np.asarray(logsumexp(values, axis=-1) - math.log(values.shape[-1]))
    return found


def fit_scale(
    intervals: Intervals, own_FK: npt.ArrayLike, sensitivity_F: npt.ArrayLike | None = None, *, most: int = 4096
) -> ErrorScale:
    """Maximum-likelihood sigma and spread of honest errors, from at most `most` entries, evenly spaced, so that all the
    runs which follow each other are seen; shares of sizes where they gain much over a log-normal.

    Sigma is searched on a grid of eighths of an octave, the spread on tenths: finer makes no difference to a score.
    Many coordinates say so much that fewer entries are enough for that: about `_SEARCHED` coordinates in all.
    """
    own = np.asarray(own_FK, dtype=np.float64)
    if not len(own):
        raise FingerprintError("calibration: got no entries to fit the error scale to")
    sensitivities = None if sensitivity_F is None else np.asarray(sensitivity_F, dtype=np.float64)
    used, own, sensitivities = _evenly(most, intervals, own, sensitivities)
    part, few, apart = _evenly(max(_FEWEST_ENTRIES, _SEARCHED // own.shape[1]), used, own, sensitivities)
    spreads = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

    def value(octave: float, spread: float) -> float:
        scale = ErrorScale(sigma=2.0**octave, spread=spread)
        return float(log_likelihood(part, few, scale, sensitivity_F=apart).sum())

    unit = 0 if sensitivities is None else round(float(np.median(np.log2(sensitivities))))
    octaves = range(-30 - unit, 13 - unit)
    if used.period_K is not None:  # outside these, a wrapped code says nothing about sigma
        steps = used.high_FK[0] - used.low_FK[0]
        octaves = range(int(np.log2(steps.min())) - 8 - unit, int(np.log2(used.period_K.max())) + 2 - unit)
    coarse = max(octaves, key=lambda octave: value(octave, 0.2))
    fine = [coarse + step / 8 for step in range(-8, 9)]
    octave = max(fine, key=lambda octave: value(octave, 0.2))
    spread = max(spreads, key=lambda spread: value(octave, spread))
    octave = max((octave + step / 8 for step in range(-3, 4)), key=lambda octave: value(octave, spread))
    return _shared(used, own, ErrorScale(sigma=2.0**octave, spread=spread), sensitivities)


def _evenly(
    most: int, intervals: Intervals, own: Float64, sensitivity_F: Float64 | None
) -> tuple[Intervals, Float64, Float64 | None]:
    """At most `most` entries, evenly spaced."""
    chosen = np.zeros(len(own), dtype=np.bool_)
    chosen[np.linspace(0, len(own) - 1, min(most, len(own))).astype(np.int64)] = True
    return intervals.of(chosen), own[chosen], None if sensitivity_F is None else sensitivity_F[chosen]


def _shared(intervals: Intervals, own: Float64, found: ErrorScale, sensitivity_F: Float64 | None) -> ErrorScale:
    """`found` with shares, relative to sensitivities or not, where that explains honest errors much better."""
    gain = max(_SHARED_GAIN, _SHARED_LEAST / len(own))
    best, least = found, float(log_likelihood(intervals, own, found, 1.0, sensitivity_F).mean()) + gain
    ways = [found]
    if sensitivity_F is not None:
        usual = np.round(8 * np.log2(sensitivity_F).mean()) / 8
        ways.append(replace(found, sigma=found.sigma * 2**usual, relative=False))
    for scale in ways:
        logs_FS = _logs(intervals, own, scale, SHARED_SIZES, sensitivity_F).T
        shares_S = _smooth(fit_shares(logs_FS))
        value = float(logsumexp(logs_FS, axis=1, b=shares_S).mean())
        if value > least:
            best, least = replace(scale, shares=tuple(shares_S.tolist())), value
    return best


def _smooth(shares_S: Float64) -> Float64:
    """Shares of which the tail is made smooth: the few large errors among some hundred tokens lie on single sizes by
    chance, and another honest one between them would look like a deviation."""
    place_S = np.arange(len(shares_S))
    median = int(np.searchsorted(np.cumsum(shares_S), 0.5))
    tail_S = np.where(np.abs(place_S - median) > _NEAR, shares_S, 0.0)
    spread_SS = np.exp(-0.5 * ((place_S[:, None] - place_S) / _OCTAVE) ** 2)
    smooth_S = shares_S - tail_S + (spread_SS / spread_SS.sum(axis=0)) @ tail_S
    larger_S = (place_S > median).astype(np.float64)
    smooth_S = (1 - _LEAST_TAIL) * smooth_S + _LEAST_TAIL * larger_S / max(1.0, larger_S.sum())
    found: Float64 = smooth_S / smooth_S.sum()
    return found


def _logs(
    intervals: Intervals,
    own_FK: npt.ArrayLike,
    scale: ErrorScale,
    sizes_S: Float64,
    sensitivity_F: npt.ArrayLike | None,
) -> Float64:
    """Log-probability of each entry's codes under errors of each of `sizes_S` times sigma, [S, F]."""
    own = np.asarray(own_FK, dtype=np.float64)
    if own.shape != intervals.low_FK.shape:
        raise FingerprintError(f"projections: got shape {own.shape}, expected {intervals.low_FK.shape}")
    if sensitivity_F is None:
        return _logs_at(intervals, own, scale, sizes_S)
    apart_F = np.asarray(sensitivity_F, dtype=np.float64)
    if apart_F.shape != own.shape[:1] or not (np.isfinite(apart_F).all() and (apart_F > 0).all()):
        raise FingerprintError(f"sensitivity: expected {len(own)} values above 0")
    if not scale.relative:
        return _logs_at(intervals, own, scale, sizes_S)
    step_F = np.round(_GRID * np.log2(apart_F))
    found = np.empty((len(sizes_S), len(own)))
    for step in np.unique(step_F):  # those of about one sensitivity are taken together
        rows = step_F == step
        relative = replace(scale, sigma=scale.sigma * 2 ** (step / _GRID))
        found[:, rows] = _logs_at(intervals.of(rows), own[rows], relative, sizes_S)
    return found


def _logs_at(intervals: Intervals, own: Float64, scale: ErrorScale, sizes_S: Float64) -> Float64:
    """The same with one sigma for all entries."""
    anything = scale.epsilon * _contamination(intervals, own, scale.sigma)
    return np.stack([
        np.log((1 - scale.epsilon) * _probability(intervals, own, size * scale.sigma) + anything).sum(axis=1)
        for size in sizes_S
    ])  # fmt: skip


def _probability(intervals: Intervals, own: Float64, sigma: float) -> Float64:
    """Probability that own + N(0, sigma^2) falls into the interval, or into one of its repeats."""
    period = intervals.period_K
    if period is None:
        low, high, share = _widened(intervals, sigma)
        return share * _between((low - own) / sigma, (high - own) / sigma)
    width = intervals.high_FK[0] - intervals.low_FK[0] if len(own) else period
    total = np.empty(own.shape)
    for step in sorted(set(period.tolist())):
        same = period == step
        offset = np.mod(own[:, same] - intervals.low_FK[:, same], step)
        total[:, same] = _wrapped(offset, float(width[same][0]), step, sigma)
    return total


def _wrapped(offset: Float64, width: float, period: float, sigma: float) -> Float64:
    """Probability that offset + N(0, sigma^2) falls into [0, width) or a repeat of it, from a table over one period.

    The table has 64 points or more per sigma, so linear interpolation is good to (1/64)^2 / 8 of a peak's height.
    """
    if sigma > 2 * period:  # uniform, to 1 part in 10^30
        return np.full(offset.shape, width / period)
    # in periods, and rounded: sizes and sensitivities lie on a grid of octaves, so that few tables serve all of them
    table = _table(width / period, round(math.log2(sigma / period), 9))
    points = len(table) - 1
    place = offset * (points / period)
    low = np.minimum(place.astype(np.int64), points - 1)
    found: Float64 = table[low] + (place - low) * (table[low + 1] - table[low])
    return found


@lru_cache(maxsize=512)
def _table(width: float, octave: float) -> Float64:
    """For errors of 2^octave and intervals of `width`, both in periods."""
    sigma = 2.0**octave
    points = int(min(max(1024, 64 / sigma), 2**18))
    grid: Float64 = np.arange(points + 1, dtype=np.float64) / points
    reach = int(np.ceil(8 * sigma)) + 1
    starts = [(repeat - grid) / sigma for repeat in range(-reach, reach + 1)]
    found: Float64 = np.sum([_between(start, start + width / sigma) for start in starts], axis=0)
    found.flags.writeable = False  # it is kept, and served again
    return found


def _contamination(intervals: Intervals, own: Float64, sigma: float) -> Float64:
    """Probability under "anything": uniform over a period, or a Cauchy of scale 10 sigma where there is none."""
    if intervals.period_K is not None:
        return (intervals.high_FK - intervals.low_FK) / intervals.period_K
    low, high, share = _widened(intervals, sigma)
    wide = 10 * sigma
    mass = (np.arctan((high - own) / wide) - np.arctan((low - own) / wide)) / math.pi
    found: Float64 = np.maximum(share * mass, 1e-300)
    return found


def _widened(intervals: Intervals, sigma: float) -> tuple[Float64, Float64, Float64]:
    """Intervals of at least `_FEWEST` sigma around the same centre, and the share of their mass that the true ones
    hold: in place of the difference of two nearly equal distribution functions."""
    low, high = intervals.low_FK, intervals.high_FK
    width = np.maximum(high - low, _POINT)
    short = width < _FEWEST * sigma
    lacking = np.where(short, _FEWEST * sigma - width, 0.0) / 2
    share: Float64 = np.where(short, width / (_FEWEST * sigma), 1.0)
    return low - lacking, high + lacking, share


def _between(low: Float64, high: Float64) -> Float64:
    """Standard normal probability of [low, high], by the tail that does not cancel."""
    flip = low + high > 0
    found: Float64 = np.where(flip, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    return found
