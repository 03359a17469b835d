"""Smoothed conformal ranks: where one score stands among earlier ones, as a number that is exactly uniform.

Assumption: the scores of a stratum, calibration and audited, are exchangeable when the provider is honest. Guarantee:
then the ranks of the audited scores, each taken before its score joins the bag, are independent and uniform on [0, 1],
for any distribution and with ties (Vovk, Gammerman & Shafer 2005, *Algorithmic Learning in a Random World*, theorem
8.2). The proof is in docs/statistics.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veridifr.stats.checks import FloatArray, check_count, check_scores


def smoothed_rank(score: float, bag: FloatArray, tie: float) -> float:
    """Rank in [0, 1] of `score` among `bag`, float[M] in ascending order; small means that the score is high.

    (number larger + tie * (number equal + 1)) / (M + 1), `tie` being a uniform number that is independent of all scores
    and was recorded or can be derived again. The score itself counts as one of the equal.
    """
    below, through = np.searchsorted(bag, [score, score], side="left")[0], np.searchsorted(bag, score, side="right")
    larger, equal = len(bag) - int(through), int(through) - int(below)
    return float((larger + tie * (equal + 1)) / (len(bag) + 1))


def joined(bag: FloatArray, score: float) -> FloatArray:
    """A new bag with `score` in it, in ascending order."""
    return np.insert(bag, int(np.searchsorted(bag, score)), score)


def tie_breaker(seed: int, index: int) -> float:
    """The uniform number that breaks the ties of the audited score number `index`: the same for the same seed."""
    return float(np.random.default_rng([seed, index]).random())


def rank_paths(audited_DN: npt.ArrayLike, honest_DM: npt.ArrayLike, *, rng: np.random.Generator) -> FloatArray:
    """Ranks float[D, N] of D simulated audits: audit d ranks its scores one by one in the bag `honest_DM[d]`.

    The same as `smoothed_rank` and `joined` in turn, one stratum each, with ties broken by `rng`.
    """
    audited, honest = check_scores("audited", audited_DN, ndim=2), check_scores("honest", honest_DM, ndim=2)
    if len(audited) != len(honest):
        raise ValueError(f"audited holds {len(audited)} data sets and honest {len(honest)}, expected as many.")
    count = audited.shape[1]
    earlier_NN = np.tri(count, k=-1, dtype=np.bool_)
    larger_DN, equal_DN = np.empty(audited.shape, dtype=np.int64), np.empty(audited.shape, dtype=np.int64)
    for row, (scores_N, bag_M) in enumerate(zip(audited, np.sort(honest, axis=1), strict=True)):
        below_N, through_N = (np.searchsorted(bag_M, scores_N, side=side) for side in ("left", "right"))
        ahead_NN, same_NN = scores_N > scores_N[:, None], scores_N == scores_N[:, None]
        larger_DN[row] = len(bag_M) - through_N + (ahead_NN & earlier_NN).sum(axis=1)
        equal_DN[row] = through_N - below_N + (same_NN & earlier_NN).sum(axis=1)
    sizes_N = honest.shape[1] + np.arange(count)
    ranks: FloatArray = (larger_DN + rng.random(audited.shape) * (equal_DN + 1)) / (sizes_N + 1)
    return ranks


def simulated_ranks(
    honest_fit: npt.ArrayLike, deviating_fit: npt.ArrayLike, *, m: int, n: int, draws: int, rng: np.random.Generator
) -> FloatArray:
    """Ranks float[draws, n] of simulated audits of a provider whose scores look like `deviating_fit`.

    Each draws n deviating scores and a calibration of m honest ones with replacement from the scores given: an
    estimate, for planning. Give honest scores as `deviating_fit` for simulated honest audits.
    """
    honest, deviating = check_scores("honest_fit", honest_fit), check_scores("deviating_fit", deviating_fit)
    m, n, draws = check_count("m", m), check_count("n", n), check_count("draws", draws)
    group = max(1, 2**23 // (m + n * n))
    blocks = []
    for first in range(0, draws, group):
        rows = min(group, draws - first)
        audited_DN = deviating[rng.integers(0, len(deviating), size=(rows, n))]
        honest_DM = honest[rng.integers(0, len(honest), size=(rows, m))]
        blocks.append(rank_paths(audited_DN, honest_DM, rng=rng))
    return np.concatenate(blocks)
