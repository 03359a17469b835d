"""Guarantees given *one* calibration: the error rate that this very calibration gives, not the average over all.

Assumption: audited and calibration scores are independent draws of one distribution when the provider is honest (more
than exchangeability). Guarantee: with probability `confidence` over calibrations, the audits that use it have an error
rate of at most alpha each. Vovk 2012, *Conditional validity of inductive conformal predictors*, ACML, PMLR 25:475.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betainc, betaincinv, ndtr, ndtri
from scipy.stats import binom

from veridifr.stats.checks import check_count, check_probability, check_scores


@dataclass(frozen=True, kw_only=True)
class ConditionalPlan:
    """A test that counts audited scores above the k-th largest of m calibration scores; fixed by the sizes alone.

    With probability `confidence` over calibrations, an honest score exceeds it with probability at most `rate`, and
    `needed` or more of n do with probability at most alpha.
    """

    k: int
    m: int
    n: int
    needed: int
    rate: float
    alpha: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class ConditionalResult:
    """One test: `exceeding` of the n audited scores lie above `threshold`. `p_value` is valid given the calibration,
    with probability `plan.confidence` over calibrations."""

    rejected: bool
    p_value: float
    exceeding: int
    threshold: float
    plan: ConditionalPlan


def conditional_rank_limit(m: int, alpha: float, confidence: float) -> int | None:
    """Largest k such that "above the k-th largest of m honest scores" happens to an honest score with probability at
    most alpha, given the calibration, with probability `confidence` over calibrations; None if not even k = 1.

    That probability has the distribution Beta(k, m + 1 - k), and is smaller with ties.
    """
    check_probability("alpha", alpha)
    check_probability("confidence", confidence)
    k = np.arange(1, check_count("m", m) + 1)
    good = np.flatnonzero(betainc(k, m + 1 - k, alpha) >= confidence)
    return None if not len(good) else int(k[good[-1]])


def conditional_plan(m: int, n: int, *, alpha: float, confidence: float = 0.95) -> ConditionalPlan | None:
    """The test for n audited against m honest scores; None if no threshold lets n scores be rejected.

    k is the one at which the smallest shift of normal scores is found with power 0.9: a choice by sizes alone, which
    costs no validity.
    """
    check_probability("alpha", alpha)
    check_probability("confidence", confidence)
    m, n = check_count("m", m), check_count("n", n)
    k = np.unique(np.geomspace(1, max(1, m // 2), 60).astype(np.int64))
    rate = betaincinv(k, m + 1 - k, confidence)
    # The fewest exceedances that are rare: P(Binomial(n, rate) >= needed) <= alpha.
    needed = np.asarray(binom.isf(alpha, n, rate)).astype(np.int64) + 1
    possible = needed <= n
    if not possible.any():
        return None
    seen = betaincinv(needed.clip(max=n), n - needed.clip(max=n) + 1, 0.9)  # chance of exceeding that gives power 0.9
    shift = np.where(possible, ndtri(seen) - ndtri(k / (m + 1)), math.inf)
    best = int(np.argmin(shift))
    return ConditionalPlan(
        k=int(k[best]),
        m=m,
        n=n,
        needed=int(needed[best]),
        rate=float(rate[best]),
        alpha=alpha,
        confidence=confidence,
    )


def conditional_test(audited: npt.ArrayLike, honest: npt.ArrayLike, plan: ConditionalPlan) -> ConditionalResult:
    """Whether `plan.needed` or more of audited float[n] exceed the k-th largest of honest float[m] scores.

    One stratum; scores equal to the threshold do not exceed it. `ValueError` where the sizes are not the plan's.
    """
    audited_N, honest_M = check_scores("audited", audited), check_scores("honest", honest)
    if (len(audited_N), len(honest_M)) != (plan.n, plan.m):
        raise ValueError(
            f"plan: made for {plan.n} audited and {plan.m} honest scores, got {len(audited_N)} and {len(honest_M)}."
        )
    threshold = float(np.sort(honest_M)[plan.m - plan.k])
    exceeding = int((audited_N > threshold).sum())
    return ConditionalResult(
        rejected=exceeding >= plan.needed,
        p_value=float(binom.sf(exceeding - 1, plan.n, plan.rate)),
        exceeding=exceeding,
        threshold=threshold,
        plan=plan,
    )


def conditional_rate(n: int, m: int, alpha: float, *, quantile: float = 0.5) -> float:
    """The false-positive rate that the fixed permutation test has given one calibration: the `quantile` over them.

    An approximation for roughly normal scores with a mean and a variance (docs/statistics.md): no guarantee.
    """
    n, m = check_count("n", n), check_count("m", m)
    z = float(-ndtri(check_probability("alpha", alpha)))
    u = float(ndtri(check_probability("quantile", quantile)))
    return float(ndtr(u * math.sqrt(n / m) - z * math.sqrt(1.0 + n / m)))
