"""Rules for many audits: answers by hand, what they guarantee, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from veridifr.stats import anytime_p_value, bonferroni, e_bh, holm, holm_adjusted, merge_mean, merge_products


def test_known_answers():
    p = [0.02, 0.011, 0.9, 0.001]
    assert bonferroni(p, 0.04).tolist() == [False, False, False, True]
    # Ordered: 0.001 * 4, 0.011 * 3, 0.02 * 2, 0.9 * 1 against 0.04.
    assert holm(p, 0.04).tolist() == [True, True, False, True]
    assert holm([0.02, 0.001, 0.001], 0.01).tolist() == [False, True, True]
    assert holm([0.011, 0.012], 0.02).tolist() == [False, False]  # the first that fails stops all after it


def test_holm_adjusted_is_where_holm_starts_to_reject():
    assert holm_adjusted([0.02, 0.011, 0.9, 0.001]).tolist() == pytest.approx([0.04, 0.033, 0.9, 0.004])
    assert holm_adjusted([0.3, 0.4, 0.35]).tolist() == pytest.approx([0.9, 0.9, 0.9])
    rng = np.random.default_rng(2)
    for _ in range(200):
        p, alpha = rng.random(rng.integers(1, 8)) ** 3, float(rng.uniform(0.001, 0.4))
        assert (holm(p, alpha) == (holm_adjusted(p) <= alpha)).all()


def test_e_bh_known_answers():
    # k = 4, alpha = 0.1: needs 40, 20, 13.3, 10 for the largest, second, ...
    assert e_bh([12.0, 11.0, 1.0, 15.0], 0.1).tolist() == [False] * 4
    assert e_bh([14.0, 15.0, 1.0, 16.0], 0.1).tolist() == [True, True, False, True]
    assert e_bh([41.0, 1.0, 1.0, 0.0], 0.1).tolist() == [True, False, False, False]


def test_merging():
    assert merge_mean([0.0, 4.0]) == 2.0
    assert merge_products([2.0, 3.0, 0.5]) == pytest.approx(3.0)
    assert merge_products([5.0, 0.0]) == 0.0
    assert 1e300 < merge_products([1e200, 1e200]) < np.inf
    assert [anytime_p_value(e) for e in (0.0, 0.5, 1.0, 20.0)] == [1.0, 1.0, 1.0, 0.05]


def test_holm_keeps_the_family_wise_level_where_the_single_level_does_not():
    rng = np.random.default_rng(0)
    any_false = single = 0
    for _ in range(2000):
        p = rng.random(8)
        p[:2] = 1e-6  # two providers do deviate
        any_false += holm(p, 0.05)[2:].any()
        single += (p[2:] <= 0.05).any()
    assert any_false <= binom.ppf(0.999, 2000, 0.05) < single


def test_e_bh_keeps_the_false_discovery_rate_under_dependence():
    # All honest e-values are the same one: 1/a with probability a, else 0 (mean 1).
    rng = np.random.default_rng(1)
    share = []
    for _ in range(4000):
        honest = (20.0 if rng.random() < 0.05 else 0.0) * np.ones(6)
        rejected = e_bh(np.concatenate([honest, [400.0, 400.0]]), 0.1)
        share.append(rejected[:6].sum() / max(1, rejected.sum()))
    assert np.mean(share) <= 0.1
    assert np.mean(share) > 0.02  # not for want of rejections


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: holm([0.5, 1.5], 0.05), "p_values: expected numbers from 0 to 1"),
        (lambda: bonferroni([], 0.05), "p_values: got no scores"),
        (lambda: e_bh([-1.0], 0.05), "e_values: expected numbers of at least 0"),
        (lambda: e_bh([1.0], 0.0), "alpha: got 0.0"),
        (lambda: merge_mean([np.inf]), "e_values: 1 of 1 scores are not finite"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()
