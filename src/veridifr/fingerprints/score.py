"""How much a fingerprint's codes speak for a deviation: log-likelihood ratios of the verifier's own projections.

Model: the provider's projection is the verifier's plus an error, Gaussian in each coordinate, of scale sigma times a
log-normal factor that all coordinates of one token share (tokens differ in how sensitive they are to rounding). Honest
runs have the sigma of the calibration, a deviating run a multiple of it. The model only ranks: a verdict's error rate
comes from comparing the score with scores of honest runs, not from the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp, ndtr

from veridifr.errors import FingerprintError
from veridifr.fingerprints.encoding import Intervals

Float64 = npt.NDArray[np.float64]

MULTIPLES = (1.5, 2.0, 4.0, 16.0)
"""Scales of deviating errors, as multiples of the honest one; the score is over their even mixture."""
_NODES = 5
_FEWEST = 0.05
"""Intervals narrower than this share of sigma are widened to it: the ratio of two densities, without cancellation."""


@dataclass(frozen=True, kw_only=True)
class ErrorScale:
    """Honest errors at one tap: `sigma` in the units of a projected coordinate, `spread` the standard deviation of the
    logarithm of a token's own factor, `epsilon` the share of coordinates that anything may have happened to."""

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


def log_likelihood(intervals: Intervals, own_FK: npt.ArrayLike, scale: ErrorScale, multiple: float = 1.0) -> Float64:
    """Log-probability of each entry's codes, [F], given the verifier's projections [F, k] and errors of scale
    `multiple` times the honest one."""
    own = np.asarray(own_FK, dtype=np.float64)
    if own.shape != intervals.low_FK.shape:
        raise FingerprintError(f"projections: got shape {own.shape}, expected {intervals.low_FK.shape}")
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
    intervals: Intervals, own_FK: npt.ArrayLike, scale: ErrorScale, multiples: Sequence[float] = MULTIPLES
) -> Float64:
    """Log-likelihood ratio of each entry for each multiple against the honest scale, [F, M]. Add over entries (and
    taps), then `combine`."""
    honest = log_likelihood(intervals, own_FK, scale)
    return np.stack([log_likelihood(intervals, own_FK, scale, m) - honest for m in multiples], axis=1)


def combine(summed_M: npt.ArrayLike) -> Float64:
    """The score of a batch of tokens: log of the mean likelihood ratio over the multiples (last axis); larger = more
    divergent."""
    values = np.asarray(summed_M, dtype=np.float64)
    found: Float64 = np.asarray(logsumexp(values, axis=-1) - math.log(values.shape[-1]))
    return found


def fit_scale(intervals: Intervals, own_FK: npt.ArrayLike, *, most: int = 4096) -> ErrorScale:
    """Maximum-likelihood sigma and spread of honest errors, from the first `most` entries.

    Sigma is searched on a grid of eighths of an octave, the spread on tenths: finer makes no difference to a score.
    """
    own = np.asarray(own_FK, dtype=np.float64)[:most]
    if not len(own):
        raise FingerprintError("calibration: got no entries to fit the error scale to")
    part = Intervals(low_FK=intervals.low_FK[:most], high_FK=intervals.high_FK[:most], period_K=intervals.period_K)
    spreads = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

    def value(octave: float, spread: float) -> float:
        return float(log_likelihood(part, own, ErrorScale(sigma=2.0**octave, spread=spread)).sum())

    coarse = max(range(-30, 13), key=lambda octave: value(octave, 0.2))
    fine = [coarse + step / 8 for step in range(-8, 9)]
    octave = max(fine, key=lambda octave: value(octave, 0.2))
    spread = max(spreads, key=lambda spread: value(octave, spread))
    octave = max((octave + step / 8 for step in range(-3, 4)), key=lambda octave: value(octave, spread))
    return ErrorScale(sigma=2.0**octave, spread=spread)


def _probability(intervals: Intervals, own: Float64, sigma: float) -> Float64:
    """Probability that own + N(0, sigma^2) falls into the interval, or into one of its repeats."""
    period = intervals.period_K
    if period is None:
        low, high = _widened(intervals, sigma)
        return _between((low - own) / sigma, (high - own) / sigma)
    low, high = intervals.low_FK, intervals.high_FK
    if sigma > 2 * float(period.min()):
        wide = np.broadcast_to(sigma > 2 * period, own.shape)  # as good as uniform: 1 part in 10^30
        near = np.minimum(sigma, 2 * period)
    else:
        wide, near = np.zeros(own.shape, dtype=bool), np.broadcast_to(sigma, period.shape)
    offset = np.mod(low - own + period / 2, period) - period / 2
    reach = int(np.ceil(8 * float((near / period).max()))) + 1
    total = np.zeros(own.shape)
    for repeat in range(-reach, reach + 1):
        start = (offset + repeat * period) / near
        total += _between(start, start + (high - low) / near)
    return np.where(wide, (high - low) / period, total)


def _contamination(intervals: Intervals, own: Float64, sigma: float) -> Float64:
    """Probability under "anything": uniform over a period, or a Cauchy of scale 10 sigma where there is none."""
    if intervals.period_K is not None:
        return (intervals.high_FK - intervals.low_FK) / intervals.period_K
    low, high = _widened(intervals, sigma)
    wide = 10 * sigma
    found: Float64 = np.maximum((np.arctan((high - own) / wide) - np.arctan((low - own) / wide)) / math.pi, 1e-300)
    return found


def _widened(intervals: Intervals, sigma: float) -> tuple[Float64, Float64]:
    low, high = intervals.low_FK, intervals.high_FK
    with np.errstate(invalid="ignore"):
        lacking = np.maximum(_FEWEST * sigma - (high - low), 0.0) / 2
    return low - lacking, high + lacking


def _between(low: Float64, high: Float64) -> Float64:
    """Standard normal probability of [low, high], by the tail that does not cancel."""
    flip = low + high > 0
    found: Float64 = np.where(flip, ndtr(-low) - ndtr(-high), ndtr(high) - ndtr(low))
    return found
