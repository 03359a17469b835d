"""The p-value keeps its promise on exchangeable scores, and the tests here see it where it would not.

Bounds are the 0.1 % and 99.9 % points of the number of rejections among `AUDITS` simulated audits.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from veridifr.stats import permutation_test, pooled_p_value

AUDITS = 2000
ALPHA = 0.05
MOST = int(binom.ppf(0.999, AUDITS, ALPHA))
LEAST = int(binom.ppf(0.001, AUDITS, ALPHA))


def normal(rng, size):
    return rng.normal(size=size)


def cauchy(rng, size):
    return rng.standard_cauchy(size)


def tied(rng, size):
    return rng.poisson(0.3, size).astype(float)


def false_positives(draw, *, n, m, permutations, alpha=ALPHA, strata=None, seed=11):
    rng = np.random.default_rng(seed)
    labels = strata or {}
    return sum(
        permutation_test(draw(rng, n), draw(rng, m), permutations=permutations, rng=rng, **labels).p_value <= alpha
        for _ in range(AUDITS)
    )


@pytest.mark.parametrize("draw", [normal, cauchy])
@pytest.mark.parametrize(("n", "m"), [(12, 20), (25, 10)])
def test_type_one_error_is_alpha_for_continuous_scores(draw, n, m):
    # (199 + 1) * 0.05 is whole, so the level is met exactly: the test is neither liberal nor conservative.
    assert LEAST <= false_positives(draw, n=n, m=m, permutations=199) <= MOST


def test_type_one_error_with_ties_and_with_enumeration():
    assert false_positives(tied, n=12, m=20, permutations=199) <= MOST
    assert false_positives(normal, n=4, m=5, permutations=1) <= MOST  # C(9, 4) = 126: enumerated


def test_type_one_error_with_few_permutations_would_be_lost_without_the_plus_one():
    # 15 permutations at alpha 0.1: (b+1)/16 <= 0.1 only for b = 0, so the level is 1/16; b/15 would give 2/16.
    rng = np.random.default_rng(2)
    p = [
        permutation_test(rng.normal(size=12), rng.normal(size=20), permutations=15, rng=rng).p_value
        for _ in range(AUDITS)
    ]
    rejected = sum(x <= 0.1 for x in p)
    without = sum(round(16 * x) - 1 <= 0.1 * 15 for x in p)
    assert binom.ppf(0.001, AUDITS, 1 / 16) <= rejected <= binom.ppf(0.999, AUDITS, 1 / 16)
    assert without > binom.ppf(0.999, AUDITS, 0.1)


def test_strata_keep_the_level_where_pooling_loses_it():
    """Lengths shift the score and differ between the samples: only the stratified test keeps alpha."""
    labels_n, labels_m = np.array([0] * 4 + [1] * 12), np.array([0] * 15 + [1] * 5)
    rng = np.random.default_rng(4)
    stratified = pooled = 0
    for _ in range(AUDITS):
        a, h = rng.normal(size=16) + 2.0 * labels_n, rng.normal(size=20) + 2.0 * labels_m
        labels = {"strata_audited": labels_n, "strata_honest": labels_m}
        stratified += permutation_test(a, h, permutations=199, rng=rng, **labels).p_value <= ALPHA
        pooled += permutation_test(a, h, permutations=199, rng=rng).p_value <= ALPHA
    assert LEAST <= stratified <= MOST
    assert pooled > AUDITS / 2


def test_largest_p_over_stacks_keeps_the_level_and_the_smallest_does_not():
    rng = np.random.default_rng(6)
    largest = smallest = 0
    for _ in range(AUDITS // 2):
        audited = rng.normal(0.3, 1, 15)  # behaves like the second of three stacks
        results = [
            permutation_test(audited, rng.normal(mean, 1, 20), permutations=199, rng=rng) for mean in (0.0, 0.3, 0.1)
        ]
        largest += pooled_p_value(results) <= ALPHA
        smallest += min(r.p_value for r in results) <= ALPHA
    most = binom.ppf(0.999, AUDITS // 2, ALPHA)
    assert largest <= most < smallest
