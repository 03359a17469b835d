"""The account of a bettor against honesty: how the stake is spread over the bets, and what one rank does to it.

The account starts at 1 and is multiplied by g(u) for every rank u, with g(u) >= 0 and integral 1. Honest ranks are
uniform, so the account is a nonnegative martingale: it is at least 1/alpha at *some* time with probability at most
alpha (Ville 1939). Everything here is for D accounts side by side, so that audits can be simulated.

g is the mixture's forecast of the next rank, bounded so that the account stays between a floor and a goal:
g = min(max(c f, floor/account), goal/account), c such that the integral is 1. No wealth overshoots the goal; what would
is bet on other ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.stats.bets import Table
from veridifr.stats.checks import FloatArray, check_probability

_RENEWED = 0.001
"""Share of the stake that is spread by the prior weights again after each rank, so that a provider that begins to
deviate late meets bets that have not lost everything. Costs about a thousandth of a nat per sequence at most."""
_LEAST = 1e-300
"""Accounts are kept above this, so that none is 0 but at a floor; it would take some million sequences to matter."""
_STEPS = 80
_CLOSE = 1e-12


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The floor at which an account gives up and the goal at which it rejects, fixed before the audit.

    The e-value of an account M is (M - floor) / (1 - floor): 1 at the start, 0 at the floor, 1/alpha at the goal.
    """

    alpha: float
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_probability("alpha", self.alpha)
        if not 0.0 <= self.floor < 1.0:
            raise ValueError(f"floor: got {self.floor}, expected a number of at least 0 and below 1.")

    @property
    def goal(self) -> float:
        """The account at which the e-value is 1/alpha."""
        return self.floor + (1.0 - self.floor) / self.alpha

    def closed(self, account: FloatArray) -> npt.NDArray[np.bool_]:
        """Which accounts float[D] are at the goal or at a floor above 0: they bet no more."""
        return (account >= self.goal) | ((account <= self.floor) & (self.floor > 0.0))

    def e_value(self, account: FloatArray) -> FloatArray:
        """E-values float[D] of accounts float[D], within 0 and 1/alpha."""
        return np.clip((account - self.floor) / (1.0 - self.floor), 0.0, 1.0 / self.alpha)


def stake(shares_DK: FloatArray, account_D: FloatArray, table: Table, bounds: Bounds) -> FloatArray:
    """g float[D, C]: what each cell pays on the next rank, known before it, with integral 1.

    `shares` say how the stake is spread over the bets now; they sum to 1.
    """
    forecast_DC: FloatArray = shares_DK @ table.density
    low_D, high_D = np.minimum(bounds.floor / account_D, 1.0), np.maximum(bounds.goal / account_D, 1.0)
    bound_D = (forecast_DC.min(axis=1) < low_D) | (forecast_DC.max(axis=1) > high_D)
    if bound_D.any():
        forecast_DC[bound_D] = bounded(forecast_DC[bound_D], table.widths, low_D[bound_D], high_D[bound_D])
    return forecast_DC


def bounded(forecast_DC: FloatArray, widths_C: FloatArray, low_D: FloatArray, high_D: FloatArray) -> FloatArray:
    """min(max(c f, low), high) with c such that the integral is 1, for low <= 1 <= high and f > 0.

    Among the densities between the bounds this one has the largest expected log payoff under f. The integral rises with
    c and is piecewise linear in it: Newton's method within a bracket.
    """
    low, high = low_D[:, None], high_D[:, None]
    factor_D = np.ones(len(forecast_DC))
    least_D, most_D = np.zeros_like(factor_D), np.full_like(factor_D, np.inf)
    paid_DC = np.clip(forecast_DC, low, high)
    for step in range(_STEPS):
        total_D = paid_DC @ widths_C
        if (np.abs(total_D - 1.0) <= _CLOSE).all():
            break
        least_D = np.where(total_D < 1.0, factor_D, least_D)
        most_D = np.where(total_D < 1.0, most_D, factor_D)
        slope_D = (forecast_DC * ((paid_DC > low) & (paid_DC < high))) @ widths_C
        newton_D = factor_D + (1.0 - total_D) / np.maximum(slope_D, 1e-300)
        # Where all cells are at a bound, the slope says nothing of how far the next bend is.
        inside_D = (slope_D > 0.0) & (newton_D > least_D) & (newton_D < most_D)
        middle_D = np.where(np.isinf(most_D), 2.0 * factor_D, (least_D + np.minimum(most_D, 1e300)) / 2.0)
        factor_D = np.where(inside_D & (step % 5 != 4), newton_D, middle_D)
        paid_DC = np.clip(factor_D[:, None] * forecast_DC, low, high)
    # Where rounding leaves the integral above 1, the payoff is lowered: errors go against the bettor.
    lowered: FloatArray = paid_DC / np.maximum(paid_DC @ widths_C, 1.0)[:, None]
    return lowered


def learned(shares_DK: FloatArray, density_DK: FloatArray, prior_K: FloatArray) -> FloatArray:
    """The shares after a rank at which the bets' densities were `density_DK`: what was won stays with the bet that won.

    Fixed share: a small part is spread by the prior weights again (Herbster & Warmuth 1998, Mach. Learn. 32:151).
    """
    won_DK = shares_DK * density_DK
    kept_DK: FloatArray = (1.0 - _RENEWED) * won_DK / won_DK.sum(axis=1, keepdims=True) + _RENEWED * prior_K
    return kept_DK


def settle(account_D: FloatArray, paid_D: FloatArray, bounds: Bounds) -> FloatArray:
    """The accounts after `paid_D`; one within rounding of the floor or the goal is put there."""
    account_D = np.maximum(account_D * paid_D, _LEAST)
    if bounds.floor:
        account_D = np.where(account_D <= bounds.floor * (1.0 + 1e-9), bounds.floor, account_D)
    return np.where(account_D >= bounds.goal * (1.0 - 1e-9), bounds.goal, account_D)
