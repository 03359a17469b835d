"""Error rates given one calibration: against exact distributions and simulated calibrations."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom, norm

from veridifr.stats import (
    conditional_plan,
    conditional_rank_limit,
    conditional_rate,
    conditional_test,
    permutation_p_values,
)


def test_rank_limit_by_hand():
    # Above all m honest scores: the rate is at most alpha with probability 1 - (1 - alpha)^m. For alpha = 0.01 that is
    # 0.9495 at m = 297 and 0.9505 at m = 299.
    assert conditional_rank_limit(297, 0.01, 0.95) is None
    assert conditional_rank_limit(299, 0.01, 0.95) == 1
    assert conditional_rank_limit(1, 0.5, 0.5) == 1


@pytest.mark.parametrize(("m", "alpha"), [(500, 0.05), (2000, 0.01)])
def test_rank_limit_holds_over_calibrations_and_the_next_would_not(m, alpha):
    k = conditional_rank_limit(m, alpha, 0.95)
    assert beta.cdf(alpha, k, m + 1 - k) >= 0.95 > beta.cdf(alpha, k + 1, m - k)
    rng = np.random.default_rng(0)
    rates = norm.sf(np.sort(rng.normal(size=(2000, m)), axis=1)[:, -k])
    assert (rates <= alpha).sum() >= binom.ppf(0.001, 2000, 0.95)


@pytest.mark.parametrize(("m", "n"), [(200, 10), (500, 40), (2000, 40)])
def test_the_plan_holds_for_at_least_the_stated_share_of_calibrations(m, n):
    plan = conditional_plan(m, n, alpha=0.01, confidence=0.9)
    rng = np.random.default_rng(1)
    honest = np.sort(rng.normal(size=(2000, m)), axis=1)
    rate = binom.sf(plan.needed - 1, n, norm.sf(honest[:, -plan.k]))  # exact, given each calibration
    assert (rate <= 0.01).sum() >= binom.ppf(0.001, 2000, 0.9)
    assert binom.sf(plan.needed - 2, n, plan.rate) > 0.01  # one exceedance fewer would be too few


def test_a_count_by_hand():
    plan = conditional_plan(2000, 20, alpha=0.01)
    honest = np.arange(2000.0)
    threshold = 2000.0 - plan.k
    audited = np.full(20, threshold)  # equal to it: does not exceed
    quiet = conditional_test(audited, honest, plan)
    assert (quiet.threshold, quiet.exceeding, quiet.rejected, quiet.p_value) == (threshold, 0, False, 1.0)
    audited[: plan.needed] += 0.5
    loud = conditional_test(audited, honest, plan)
    assert (loud.exceeding, loud.rejected) == (plan.needed, True)
    assert loud.p_value <= 0.01


def test_it_finds_a_shift_at_a_price():
    # The price of counting and of the guarantee: some 2 to 3 times the sequences of the permutation test (20).
    plan = conditional_plan(2000, 50, alpha=0.01)
    rng = np.random.default_rng(2)
    found = sum(conditional_test(rng.normal(0.81, 1, 50), rng.normal(size=2000), plan).rejected for _ in range(300))
    assert found >= 0.8 * 300


def test_no_plan_where_no_threshold_could_be_enough():
    assert conditional_plan(5, 1, alpha=0.01) is None


def test_the_spread_of_the_fixed_test_is_what_the_documents_say():
    at = norm.cdf([0.0, 1.0, 2.0])
    assert [conditional_rate(40, 60, 0.01, quantile=q) for q in at] == pytest.approx([0.0013, 0.014, 0.085], rel=0.05)
    assert [conditional_rate(40, 200, 0.01, quantile=q) for q in at] == pytest.approx([0.0054, 0.018, 0.049], rel=0.05)


def test_the_spread_agrees_with_simulated_calibrations():
    rng = np.random.default_rng(3)
    for u in (0.0, 1.0):
        honest = rng.normal(size=40)
        honest = (honest - honest.mean()) / honest.std() - u / np.sqrt(40)  # a calibration u standard errors low
        p = permutation_p_values(rng.normal(size=(2000, 20)), np.tile(honest, (2000, 1)), permutations=400, rng=rng)
        assert (p <= 0.05).mean() == pytest.approx(conditional_rate(20, 40, 0.05, quantile=norm.cdf(u)), abs=0.02)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: conditional_rank_limit(0, 0.01, 0.9), "m: got 0"),
        (lambda: conditional_plan(10, 10, alpha=0.01, confidence=1.0), "confidence: got 1.0"),
        (
            lambda: conditional_test([1.0], np.arange(50.0), conditional_plan(50, 2, alpha=0.05)),
            "plan: made for 2 audited and 50",
        ),
        (lambda: conditional_rate(5, 5, 0.01, quantile=0.0), "quantile: got 0.0"),
    ],
)
def test_refusals(call, said):
    with pytest.raises(ValueError, match=said):
        call()
