"""Bets on ranks: densities on [0, 1] that a deviating provider's ranks might have, mixed with fixed weights.

A bet pays f(u) for a stake of 1 when the rank u comes out. As the integral of f is 1 and honest ranks are uniform, an
honest provider gains nothing on average, whatever f. f may depend on anything known before the rank *except* the values
of the calibration scores that form the bag: given those, a rank is not uniform (docs/statistics.md). So what informs a
bet comes from another part of the calibration (the *fit* part), or from a simulation fixed beforehand.

Every density is kept as a distribution function at fixed knots, straight in between, so all integrals are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from veridifr.stats.checks import FloatArray, check_count, check_probability, check_scores

_FINEST = 1e-6
KNOTS: FloatArray = np.concatenate([[0.0], np.geomspace(_FINEST, 0.2, 56, endpoint=False), np.linspace(0.2, 1.0, 17)])
"""Edges of the cells in which densities are constant: geometric near 0, where a deviating provider's ranks lie."""
_UNIFORM = 0.01
"""Share of the uniform density in each bet, so that no single rank takes all that was staked on it."""
_RESERVE = 0.01
"""Share of the stake that is never bet: it keeps every account above 0, and costs 0.01 nats."""
SHIFTS = (0.3, 0.5, 0.8, 1.3, 2.0)
"""Shifts of the uninformed bets, in honest standard deviations of a sequence's score."""
_SPARSE = ((0.05, 4.0), (0.1, 2.0), (0.1, 4.0))
"""(share of the requests, shift) of the uninformed bets on a provider that deviates on some requests only."""
_LEHMANN = (0.2, 0.3)
"""(share of the requests, exponent): one more of those, with a heavier tail."""


@dataclass(frozen=True, kw_only=True)
class Bet:
    """One density on ranks: `name`, and its distribution function at `KNOTS`, from 0 to 1 and never falling."""

    name: str
    cdf: FloatArray

    def __post_init__(self) -> None:
        cdf = check_scores(f"cdf of {self.name}", self.cdf)
        if cdf.shape != KNOTS.shape or cdf[0] != 0.0 or cdf[-1] != 1.0 or (np.diff(cdf) < 0.0).any():
            raise ValueError(f"cdf of {self.name}: expected {len(KNOTS)} values that rise from 0 to 1, one per knot.")

    def on_part(self, part: float) -> Bet:
        """The bet on a provider that deviates on a share `part` of the requests, at random, and is honest otherwise."""
        check_probability("part", part)
        return Bet(name=f"{self.name} on {part:g} of requests", cdf=(1.0 - part) * KNOTS + part * self.cdf)


@dataclass(frozen=True, kw_only=True)
class Table:
    """Bets made ready for one stratum: densities float[K, C], constant on C cells between `edges` float[C + 1].

    The last of the K is the reserve, which is not bet.
    """

    edges: FloatArray
    widths: FloatArray
    density: FloatArray

    def cell(self, ranks: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """The cell in which each rank of [0, 1] lies."""
        found = np.searchsorted(self.edges, np.asarray(ranks, dtype=np.float64), side="right") - 1
        return np.clip(found, 0, len(self.widths) - 1).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Bets:
    """A mixture of bets with weights that sum to 1, all fixed before the audit."""

    bets: tuple[Bet, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        weights = check_scores("weights", self.weights)
        if len(weights) != len(self.bets) or (weights <= 0.0).any() or abs(math.fsum(weights) - 1.0) > 1e-9:
            raise ValueError("weights: expected one above 0 for each bet, with sum 1.")

    @property
    def prior(self) -> FloatArray:
        """Weights float[K] of a table's densities, the reserve last."""
        return np.append((1.0 - _RESERVE) * np.array(self.weights), _RESERVE)

    def table(self, m: int) -> Table:
        """The densities for a bag that starts with m scores.

        Where a score stands below 1/(m + 1) is decided by the tie-breaker alone, so all of that is one cell: a bet on
        where in it the rank falls would be a bet on noise.
        """
        least = 1.0 / (check_count("m", m) + 1)
        edges = np.concatenate([[0.0, least], KNOTS[np.searchsorted(KNOTS, least * (1.0 + 1e-9)) :]])
        widths = np.diff(edges)
        masses = np.diff(np.array([np.interp(edges, KNOTS, bet.cdf) for bet in self.bets]), axis=1)
        density = np.vstack([(1.0 - _UNIFORM) * masses / widths + _UNIFORM, np.ones(len(widths))])
        return Table(edges=edges, widths=widths, density=density)


def shift_bet(shift: float) -> Bet:
    """The bet on normal scores that lie `shift` deviations higher: the density exp(dq - d²/2), q = Φ⁻¹(1-u)."""
    if not 0.0 < shift <= 8.0:
        raise ValueError(f"shift: got {shift}, expected a number above 0 and at most 8.")
    return Bet(name=f"shift {shift:g}", cdf=_ends(ndtr(ndtri(KNOTS) + shift)))


def lehmann_bet(exponent: float) -> Bet:
    """The bet f(u) = a u^(a-1) with a = `exponent` below 1: Lehmann's alternatives, with a heavy tail."""
    return Bet(name=f"exponent {exponent:g}", cdf=_ends(KNOTS ** check_probability("exponent", exponent)))


def informed_bet(name: str, honest_fit: npt.ArrayLike, deviating_fit: npt.ArrayLike) -> Bet:
    """The bet that deviating scores look like `deviating_fit` float[v] where honest ones look like `honest_fit`.

    Estimates the density of the deviating scores' ranks among the honest, made non-increasing (high scores are
    suspicious): the slope of the least concave majorant of their distribution function (Grenander 1956).

    Condition for validity: neither array holds a score of the calibration part that serves as null in the audit, or one
    made from it; they come from prompts of a disjoint *fit* part, or from a simulation fixed before. Given the fit
    part the rest stays exchangeable, which is all that is needed. A poor estimate costs power only.
    """
    honest, deviating = np.sort(check_scores("honest_fit", honest_fit)), check_scores("deviating_fit", deviating_fit)
    below, through = np.searchsorted(honest, deviating), np.searchsorted(honest, deviating, side="right")
    low, high = (len(honest) - through) / (len(honest) + 1), (len(honest) - below + 1) / (len(honest) + 1)
    # Each deviating score spreads its mass evenly over the ranks that its ties could give it.
    cdf = np.zeros_like(KNOTS)
    for start in range(0, len(low), 1000):
        first, last = low[start : start + 1000, None], high[start : start + 1000, None]
        cdf += np.clip((KNOTS - first) / (last - first), 0.0, 1.0).sum(axis=0)
    return Bet(name=name, cdf=_ends(_concave(cdf / len(deviating))))


def mixed_bets(informed: Sequence[Bet] = (), *, share: float = 0.5) -> Bets:
    """The default mixture. `informed` bets, if any, hold `share` of the weight, evenly.

    The rest is spread over normal shifts (three quarters of it) and over bets on a provider that deviates on some
    requests only. The price of a mixture is at most log(1 / weight of the best bet), in nats of wealth.
    """
    sparse = [shift_bet(shift).on_part(part) for part, shift in _SPARSE]
    sparse.append(lehmann_bet(_LEHMANN[1]).on_part(_LEHMANN[0]))
    plain = [shift_bet(shift) for shift in SHIFTS]
    taken = check_probability("share", share) if informed else 0.0
    weights = [taken / max(1, len(informed))] * len(informed)
    weights += [(1.0 - taken) * 0.75 / len(plain)] * len(plain) + [(1.0 - taken) * 0.25 / len(sparse)] * len(sparse)
    return Bets(bets=(*informed, *plain, *sparse), weights=tuple(weights))


def _ends(cdf: FloatArray) -> FloatArray:
    cdf[0], cdf[-1] = 0.0, 1.0
    return np.maximum.accumulate(np.clip(cdf, 0.0, 1.0))


def _concave(cdf: FloatArray) -> FloatArray:
    """The least concave majorant at the knots of a function given there."""
    hull: list[int] = []
    for i in range(len(KNOTS)):
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (cdf[b] - cdf[a]) * (KNOTS[i] - KNOTS[a]) > (cdf[i] - cdf[a]) * (KNOTS[b] - KNOTS[a]):
                break
            hull.pop()
        hull.append(i)
    return np.interp(KNOTS, KNOTS[hull], cdf[hull])
