"""Confidence intervals: for a proportion, and by bootstrap over independent units (sequences or prompts)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from veridifr.stats.checks import IndexArray, check_count, check_probability, check_scores


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided exact interval for a proportion of which k of n independent trials were seen.

    It holds the true proportion with at least `confidence` (Clopper & Pearson 1934, Biometrika 26:404). One end alone
    is a one-sided bound at (1 + confidence) / 2: for a 99.9 % lower bound ask for confidence 0.998.
    """
    k, n = check_count("k", k, least=0), check_count("n", n)
    if k > n:
        raise ValueError(f"k: got {k} of {n} trials, expected at most {n}.")
    tail = (1.0 - check_probability("confidence", confidence)) / 2.0
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, tail))
    high = 1.0 if k == n else float(betaincinv(k + 1, n - k, 1.0 - tail))
    return low, high


def bootstrap_interval(
    values: npt.ArrayLike, *, rng: np.random.Generator, draws: int = 2000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval for the mean of float[N] values, one per independent unit.

    Approximate (Efron & Tibshirani 1993, chapter 13): too narrow for few units or heavy tails. One value gives an
    interval of width 0, which is no statement of precision.
    """
    values_N = check_scores("values", values)
    return bootstrap_interval_of(
        lambda index: float(values_N[index].mean()), len(values_N), rng=rng, draws=draws, confidence=confidence
    )


def bootstrap_interval_of(
    statistic: Callable[[IndexArray], float],
    units: int,
    *,
    rng: np.random.Generator,
    draws: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of any statistic of `units` independent units.

    `statistic` gets unit indices int64[units], drawn with replacement, and returns a finite number; so one can resample
    prompts and gather all tokens of each. Raises `ValueError` if it returns anything else.
    """
    units, draws = check_count("units", units), check_count("draws", draws)
    tail = (1.0 - check_probability("confidence", confidence)) / 2.0
    found = np.array([statistic(rng.integers(0, units, size=units)) for _ in range(draws)], dtype=np.float64)
    if not np.isfinite(found).all():
        raise ValueError("statistic: not finite on some resampled units, so it has no bootstrap interval.")
    low, high = np.quantile(found, [tail, 1.0 - tail])
    return float(low), float(high)
