"""Many simulated sequential audits at once: for planning, choosing a floor, and checking error rates.

These are estimates of what the test would do, no part of its guarantee.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.stats.bets import Bets, Table
from veridifr.stats.checks import FloatArray, IndexArray, check_probability, check_scores
from veridifr.stats.wealth import Bounds, learned, settle, stake

_BLOCK = 2000
"""Audits in one go: their payoffs stay in the cache."""


@dataclass(frozen=True, kw_only=True)
class SimulatedAudits:
    """D audits of up to N sequences: `e_values` float[D, N] after each sequence, constant once decided.

    `rejected` and `given_up` are bool[D]; `used` int[D] is the number of sequences until either, N where neither came.
    """

    e_values: FloatArray
    rejected: npt.NDArray[np.bool_]
    given_up: npt.NDArray[np.bool_]
    used: IndexArray


def simulate_audits(ranks_DN: npt.ArrayLike, bets: Bets, bounds: Bounds, *, m: int) -> SimulatedAudits:
    """`SequentialTest` with one stack and one stratum of m honest scores, on ranks float[D, N] in [0, 1] at hand."""
    ranks = check_scores("ranks", ranks_DN, ndim=2)
    if ranks.min() < 0.0 or ranks.max() > 1.0:
        raise ValueError("ranks: expected numbers from 0 to 1.")
    table = bets.table(m)
    parts = [_simulate(ranks[i : i + _BLOCK], bets, table, bounds) for i in range(0, len(ranks), _BLOCK)]
    accounts = np.concatenate(parts)
    rejected = accounts[:, -1] >= bounds.goal
    given_up = bounds.closed(accounts[:, -1]) & ~rejected
    closed = bounds.closed(accounts)
    used = np.where(closed[:, -1], closed.argmax(axis=1) + 1, ranks.shape[1]).astype(np.int64)
    return SimulatedAudits(e_values=bounds.e_value(accounts), rejected=rejected, given_up=given_up, used=used)


def floor_for_power(ranks_DN: npt.ArrayLike, bets: Bets, *, alpha: float, m: int, power: float = 0.9) -> float:
    """The largest floor, within 0.005, at which `power` of the simulated audits still reject; 0.0 if none does.

    `ranks` float[D, N] come from `simulated_ranks` for the smallest deviation that the audit must see, on the fit part
    or a simulation: the floor is fixed before the audit, and the error rate holds for any floor. The share is an
    estimate: with 1000 audits it is known to about 0.01 at power 0.9.
    """
    check_probability("power", power)
    steps = np.arange(0.0, 0.8, 0.005)
    low, high = 0, len(steps)
    while high - low > 1:
        middle = (low + high) // 2
        found = simulate_audits(ranks_DN, bets, Bounds(alpha=alpha, floor=float(steps[middle])), m=m)
        low, high = (middle, high) if found.rejected.mean() >= power else (low, middle)
    return float(steps[low])


def _simulate(ranks_DN: FloatArray, bets: Bets, table: Table, bounds: Bounds) -> FloatArray:
    """Accounts float[D, N]. Decided audits are left out of the work."""
    cells_DN, density_CK = table.cell(ranks_DN), table.density.T.copy()
    accounts_DN = np.empty(ranks_DN.shape)
    account_D = np.ones(len(ranks_DN))
    shares_DK = np.tile(bets.prior, (len(ranks_DN), 1))
    open_A = np.arange(len(ranks_DN))
    for step in range(ranks_DN.shape[1]):
        if len(open_A):
            cells_A = cells_DN[open_A, step]
            paid_AC = stake(shares_DK[open_A], account_D[open_A], table, bounds)
            account_D[open_A] = settle(account_D[open_A], paid_AC[np.arange(len(open_A)), cells_A], bounds)
            shares_DK[open_A] = learned(shares_DK[open_A], density_CK[cells_A], bets.prior)
            open_A = open_A[~bounds.closed(account_D[open_A])]
        accounts_DN[:, step] = account_D
    return accounts_DN
