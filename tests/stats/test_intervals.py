"""Intervals: published values, the defining equations, coverage, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from veridifr.stats import bootstrap_interval, bootstrap_interval_of, clopper_pearson


def rng(seed=0):
    return np.random.default_rng(seed)


def test_clopper_pearson_known_values():
    assert clopper_pearson(5, 10) == pytest.approx((0.1871, 0.8129), abs=5e-5)
    assert clopper_pearson(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert clopper_pearson(0, 1, 0.5) == pytest.approx((0.0, 0.75))


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0.5, 0.999))
def test_clopper_pearson_inverts_the_binomial_tails(n, share, confidence):
    k = round(share * n)
    low, high = clopper_pearson(k, n, confidence)
    tail = (1 - confidence) / 2
    assert low == 0.0 if k == 0 else binom.sf(k - 1, n, low) == pytest.approx(tail, rel=1e-6)
    assert high == 1.0 if k == n else binom.cdf(k, n, high) == pytest.approx(tail, rel=1e-6)
    assert low <= k / n <= high


@pytest.mark.parametrize("n", [1, 7, 20])
def test_clopper_pearson_covers_at_every_proportion(n):
    intervals = [clopper_pearson(k, n, 0.9) for k in range(n + 1)]
    for p in np.linspace(0.001, 0.999, 97):
        covered = sum(binom.pmf(k, n, p) for k, (low, high) in enumerate(intervals) if low <= p <= high)
        assert covered >= 0.9


def test_bootstrap_of_a_constant():
    assert bootstrap_interval([3.0] * 7, rng=rng(), draws=50) == (3.0, 3.0)


def test_bootstrap_agrees_with_the_standard_error():
    values = rng(1).normal(5.0, 2.0, 400)
    low, high = bootstrap_interval(values, rng=rng(2), draws=4000)
    error = values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    wide = bootstrap_interval(values, rng=rng(2), draws=4000, confidence=0.99)
    assert wide[0] < low and high < wide[1]


def test_bootstrap_covers():
    generator = rng(3)
    intervals = [bootstrap_interval(generator.exponential(size=60), rng=generator, draws=200) for _ in range(200)]
    covered = sum(low <= 1.0 <= high for low, high in intervals)
    assert binom.ppf(0.001, 200, 0.9) <= covered < 200  # nominally 0.95; skewed scores cost a little


def test_bootstrap_of_any_statistic_resamples_units():
    tokens = [np.full(3, 1.0), np.full(30, 2.0), np.full(1, 9.0)]  # three prompts of unequal length
    seen = set()

    def largest(index):
        seen.add(tuple(index.tolist()))
        return max(tokens[i].max() for i in index)

    low, high = bootstrap_interval_of(largest, 3, rng=rng(4), draws=400, confidence=0.8)
    assert (low, high) == (2.0, 9.0)  # all three draws the first prompt: 1/27; without the third: 8/27
    assert len(seen) == 27  # every resample of three units, with replacement


def test_refusals():
    with pytest.raises(ValueError, match="k: got 4 of 3 trials"):
        clopper_pearson(4, 3)
    with pytest.raises(ValueError, match="n: got 0"):
        clopper_pearson(0, 0)
    with pytest.raises(ValueError, match="k: got -1"):
        clopper_pearson(-1, 3)
    with pytest.raises(ValueError, match="confidence: got 1"):
        clopper_pearson(1, 3, 1.0)
    with pytest.raises(ValueError, match="values: got no scores"):
        bootstrap_interval([], rng=rng())
    with pytest.raises(ValueError, match="values: 1 of 1 scores are not finite"):
        bootstrap_interval([np.inf], rng=rng())
    with pytest.raises(ValueError, match="draws: got 0"):
        bootstrap_interval([1.0], rng=rng(), draws=0)
    with pytest.raises(ValueError, match="units: got 0"):
        bootstrap_interval_of(lambda index: 1.0, 0, rng=rng())
    with pytest.raises(ValueError, match="statistic: not finite"):
        bootstrap_interval_of(lambda index: float("nan"), 3, rng=rng(), draws=5)
