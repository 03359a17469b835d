"""Many audits: which to reject so that few, or none, of the rejections is false, and one e-value from several.

Every rule here holds however the audits depend on each other (they do where they share a calibration), but for
`merge_products`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from veridifr.stats.checks import FloatArray, check_probability, check_scores

BoolArray = npt.NDArray[np.bool_]


def bonferroni(p_values: npt.ArrayLike, alpha: float) -> BoolArray:
    """Which of k audits to reject, bool[k]: those with p <= alpha/k. Any false rejection: probability at most alpha."""
    p = _check_p_values(p_values)
    return p * len(p) <= check_probability("alpha", alpha)


def holm(p_values: npt.ArrayLike, alpha: float) -> BoolArray:
    """Holm's procedure (1979): rejects all that Bonferroni does or more, at the same guarantee under any dependence."""
    p = _check_p_values(p_values)
    order = np.argsort(p, kind="stable")
    passed = np.logical_and.accumulate(p[order] * (len(p) - np.arange(len(p))) <= check_probability("alpha", alpha))
    rejected = np.zeros(len(p), dtype=np.bool_)
    rejected[order] = passed
    return rejected


def holm_adjusted(p_values: npt.ArrayLike) -> FloatArray:
    """For each of k audits the smallest alpha at which `holm` rejects it, float64[k], at most 1."""
    p = _check_p_values(p_values)
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p)))), 1.0)
    return adjusted


def e_bh(e_values: npt.ArrayLike, alpha: float) -> BoolArray:
    """The e-BH procedure: which of k audits to reject so that on average at most alpha of the rejections are false.

    Rejects the j largest e-values for the largest j with e_(j) >= k / (alpha j). Guarantee: false discovery rate at
    most alpha under any dependence, if each e-value has mean at most 1 for an honest provider (Wang & Ramdas 2022,
    JRSS B 84:822). That the rate is a share of the rejections is weaker than `holm`, and finds more.
    """
    e = _check_e_values(e_values)
    order = np.argsort(-e, kind="stable")
    enough = np.flatnonzero(e[order] * np.arange(1, len(e) + 1) >= len(e) / check_probability("alpha", alpha))
    rejected = np.zeros(len(e), dtype=np.bool_)
    if len(enough):
        rejected[order[: enough[-1] + 1]] = True
    return rejected


def merge_mean(e_values: npt.ArrayLike) -> float:
    """One e-value against "all of them honest" from e-values that depend on each other in any way: their mean.

    Vovk & Wang 2021, Ann. Statist. 49:1736: nothing symmetric does better under arbitrary dependence.
    """
    return float(_check_e_values(e_values).mean())


def merge_products(e_values: npt.ArrayLike) -> float:
    """One e-value from e-values that each have mean at most 1 *given the earlier ones*: their product.

    So for audits on fresh sequences *and* fresh calibrations. Audits that share a calibration aren't of this kind: go
    on with one `SequentialState` (its `extend`), or take `merge_mean`. A product beyond the largest float is lowered.
    """
    e = _check_e_values(e_values)
    if (e == 0.0).any():
        return 0.0
    return math.exp(min(math.fsum(np.log(e).tolist()), 700.0))


def anytime_p_value(e_value: float) -> float:
    """The p-value min(1, 1/e) of an e-value, or of the largest that a test martingale has reached."""
    e = float(_check_e_values([e_value])[0])
    return 1.0 if e <= 1.0 else 1.0 / e


def _check_p_values(values: npt.ArrayLike) -> FloatArray:
    p = check_scores("p_values", values)
    if (p < 0.0).any() or (p > 1.0).any():
        raise ValueError("p_values: expected numbers from 0 to 1.")
    return p


def _check_e_values(values: npt.ArrayLike) -> FloatArray:
    e = check_scores("e_values", values)
    if (e < 0.0).any():
        raise ValueError("e_values: expected numbers of at least 0.")
    return e
