"""How much a fingerprint's codes speak for a deviation: log-likelihood ratios of the verifier's own projections.

Model: the provider's projection is the verifier's plus an error, Gaussian in each coordinate, of scale sigma times a
log-normal factor that all coordinates of one token share (tokens differ in how sensitive they are to rounding). Where
the verifier measured that sensitivity, sigma is relative to it, and the factor is what it leaves open. Honest runs have
the sigma of the calibration, a deviating run a multiple of it. The model only ranks: a verdict's error rate comes from
comparing the score with scores of honest runs, not from the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, ndtr

from veridifr.errors import FingerprintError
from veridifr.fingerprints.encoding import Intervals

Float64 = npt.NDArray[np.float64]

MULTIPLES = (1.5, 2.0, 4.0, 16.0)
"""Scales of deviating errors, as multiples of the honest one; the score is over their even mixture."""
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
    anything may have happened to."""

    sigma: float
    spread: float = 0.2
    epsilon: float = 1e-4

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise FingerprintError(f"sigma: got {self.sigma}, expected above 0")
        if not 0 <= self.spread <= 2:
            raise FingerprintError(f"spread: got {self.spread}, expected 0 to 2")
        if not 0 < self.epsilon < 1:
            raise FingerprintError(f"epsilon: got {self.epsilon}, expected between 0 and 1")


def log_likelihood(
    intervals: Intervals,
    own_FK: npt.ArrayLike,
    scale: ErrorScale,
    multiple: float = 1.0,
    sensitivity_F: npt.ArrayLike | None = None,
) -> Float64:
    """Log-probability of each entry's codes, [F], given the verifier's projections [F, k] and errors of scale
    `multiple` times the honest one, which with `sensitivity_F` is relative to each entry's own."""
    own = np.asarray(own_FK, dtype=np.float64)
    if own.shape != intervals.low_FK.shape:
        raise FingerprintError(f"projections: got shape {own.shape}, expected {intervals.low_FK.shape}")
    if sensitivity_F is not None:
        return _relative(intervals, own, scale, multiple, np.asarray(sensitivity_F, dtype=np.float64))
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES if scale.spread else 1)
    logs = np.stack([
        np.log(
            (1 - scale.epsilon) * _probability(intervals, own, multiple * scale.sigma * math.exp(scale.spread * node))
            + scale.epsilon * _contamination(intervals, own, scale.sigma)
        ).sum(axis=1)
        for node in nodes
    ])  # fmt: skip
    found: Float64 = logsumexp(logs, axis=0, b=(weights / weights.sum())[:, None])
    return found


def ratios(
    intervals: Intervals,
    own_FK: npt.ArrayLike,
    scale: ErrorScale,
    multiples: Sequence[float] = MULTIPLES,
    sensitivity_F: npt.ArrayLike | None = None,
) -> Float64:
    """Log-likelihood ratio of each entry for each multiple against the honest scale, [F, M]. Add over entries (and
    taps), then `combine`."""
    honest, *others = (log_likelihood(intervals, own_FK, scale, m, sensitivity_F) for m in (1.0, *multiples))
    return np.stack([other - honest for other in others], axis=1)


def combine(summed_M: npt.ArrayLike) -> Float64:
    """The score of a batch of tokens: log of the mean likelihood ratio over the multiples (last axis); larger = more
    divergent."""
    values = np.asarray(summed_M, dtype=np.float64)
    found: Float64 = np.asarray(logsumexp(values, axis=-1) - math.log(values.shape[-1]))
    return found


def fit_scale(
    intervals: Intervals, own_FK: npt.ArrayLike, sensitivity_F: npt.ArrayLike | None = None, *, most: int = 4096
) -> ErrorScale:
    """Maximum-likelihood sigma and spread of honest errors, from the first `most` entries.

    Sigma is searched on a grid of eighths of an octave, the spread on tenths: finer makes no difference to a score.
    """
    own = np.asarray(own_FK, dtype=np.float64)[:most]
    if not len(own):
        raise FingerprintError("calibration: got no entries to fit the error scale to")
    part = intervals.of(slice(most))
    spreads = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)

    def value(octave: float, spread: float) -> float:
        scale = ErrorScale(sigma=2.0**octave, spread=spread)
        return float(log_likelihood(part, own, scale, sensitivity_F=sensitivities).sum())

    sensitivities = None if sensitivity_F is None else np.asarray(sensitivity_F, dtype=np.float64)[:most]
    unit = 0 if sensitivities is None else round(float(np.median(np.log2(sensitivities))))
    octaves = range(-30 - unit, 13 - unit)
    if part.period_K is not None:  # outside these, a wrapped code says nothing about sigma
        steps = part.high_FK[0] - part.low_FK[0]
        octaves = range(int(np.log2(steps.min())) - 8 - unit, int(np.log2(part.period_K.max())) + 2 - unit)
    coarse = max(octaves, key=lambda octave: value(octave, 0.2))
    fine = [coarse + step / 8 for step in range(-8, 9)]
    octave = max(fine, key=lambda octave: value(octave, 0.2))
    spread = max(spreads, key=lambda spread: value(octave, spread))
    octave = max((octave + step / 8 for step in range(-3, 4)), key=lambda octave: value(octave, spread))
    return ErrorScale(sigma=2.0**octave, spread=spread)


def _relative(
    intervals: Intervals, own: Float64, scale: ErrorScale, multiple: float, sensitivity_F: Float64
) -> Float64:
    """`log_likelihood` with a scale of its own for each entry: those of about one sensitivity are taken together."""
    if sensitivity_F.shape != own.shape[:1] or not (np.isfinite(sensitivity_F).all() and (sensitivity_F > 0).all()):
        raise FingerprintError(f"sensitivity: expected {len(own)} values above 0")
    step_F = np.round(_GRID * np.log2(sensitivity_F))
    found = np.empty(len(own))
    for step in np.unique(step_F):
        rows = step_F == step
        relative = replace(scale, sigma=scale.sigma * 2 ** (step / _GRID))
        found[rows] = log_likelihood(intervals.of(rows), own[rows], relative, multiple)
    return found


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
    table = _table(width, period, sigma)
    points = len(table) - 1
    place = offset * (points / period)
    low = np.minimum(place.astype(np.int64), points - 1)
    found: Float64 = table[low] + (place - low) * (table[low + 1] - table[low])
    return found


@lru_cache(maxsize=512)
def _table(width: float, period: float, sigma: float) -> Float64:
    points = int(min(max(1024, 64 * period / sigma), 2**18))
    grid: Float64 = np.arange(points + 1, dtype=np.float64) * (period / points)
    reach = int(np.ceil(8 * sigma / period)) + 1
    starts = [(repeat * period - grid) / sigma for repeat in range(-reach, reach + 1)]
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
