"""Two-sample permutation test of per-sequence scores: did the audited ones fall higher than honest ones do?

Assumption: given the strata, audited and honest scores are exchangeable when the provider is honest. Guarantee: then
P(p <= a) <= a for every a, at any sample size and for any distribution, ties and heavy tails included. The proof, and
what breaks the assumption, are in docs/statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr.stats.arrangements import Design, count_at_least
from veridifr.stats.checks import FloatArray, check_count, check_labels, check_probability, check_scores


@dataclass(frozen=True, kw_only=True)
class PermutationResult:
    """One test. `floor` is the smallest p-value that these sample sizes allow: never reject below it, never promise it.

    `permutations` is the number of arrangements looked at: all of them if `exact`, else that many random ones. `n` and
    `m` are the audited and honest scores used; honest scores in strata without an audited score are not.
    """

    p_value: float
    floor: float
    permutations: int
    exact: bool
    n: int
    m: int


def permutation_test(
    audited: npt.ArrayLike,
    honest: npt.ArrayLike,
    *,
    permutations: int,
    rng: np.random.Generator,
    strata_audited: npt.ArrayLike | None = None,
    strata_honest: npt.ArrayLike | None = None,
) -> PermutationResult:
    """One-sided test of audited float[n] against honest float[m] scores, one per sequence; large means deviating.

    The statistic is the sum of the audited scores. Labels are permuted within strata only (integer labels, one per
    score: for example the length to which a sequence was cut). Every arrangement is listed where there are at most
    `arrangements.EXACT_LIMIT`; otherwise p = (b + 1) / (B + 1) with b of B random arrangements whose sum is at least
    the observed one (Phipson & Smyth 2010, https://doi.org/10.2202/1544-6115.1585). Ties count against rejection.
    Use at least `permutations_for(alpha)`.

    Raises `ValueError` for empty or non-finite scores, labels that do not fit, or an audited stratum without honest
    scores (leave those sequences out beforehand, and count them as not covered).
    """
    audited_N, honest_M = check_scores("audited", audited), check_scores("honest", honest)
    permutations = check_count("permutations", permutations)
    pooled_N, design = _pool(audited_N, honest_M, strata_audited, strata_honest)
    counts, looked_at, exact = count_at_least(pooled_N[:, None], design, permutations, rng)
    return PermutationResult(
        p_value=float(_p_values(counts, looked_at, exact, design)[0]),
        floor=design.floor(),
        permutations=looked_at,
        exact=exact,
        n=sum(design.audited),
        m=sum(design.honest),
    )


def permutation_p_values(
    audited_DN: npt.ArrayLike, honest_DM: npt.ArrayLike, *, permutations: int, rng: np.random.Generator
) -> FloatArray:
    """p-values float64[D] of D unstratified tests of the same size, as `permutation_test` would give each.

    For simulations: all D tests share the same random arrangements, which makes them fast. Each p-value is as valid as
    one alone, but they are dependent, so they are not for multiple testing that needs independence.
    """
    audited, honest = check_scores("audited", audited_DN, ndim=2), check_scores("honest", honest_DM, ndim=2)
    if len(audited) != len(honest):
        raise ValueError(f"audited holds {len(audited)} data sets and honest {len(honest)}, expected as many.")
    design = Design((audited.shape[1],), (honest.shape[1],))
    pooled_ND = np.concatenate([audited, honest], axis=1).T
    counts, looked_at, exact = count_at_least(pooled_ND, design, check_count("permutations", permutations), rng)
    return _p_values(counts, looked_at, exact, design)


def _p_values(counts_D: npt.NDArray[np.int64], looked_at: int, exact: bool, design: Design) -> FloatArray:
    if exact:
        return counts_D / np.float64(looked_at)
    # Random arrangements may hold the observed one never; counting it once is what makes p valid (and never 0).
    p_values: FloatArray = np.maximum((counts_D + 1) / np.float64(looked_at + 1), design.floor())
    return p_values


def _pool(
    audited_N: FloatArray,
    honest_M: FloatArray,
    strata_audited: npt.ArrayLike | None,
    strata_honest: npt.ArrayLike | None,
) -> tuple[FloatArray, Design]:
    """Pooled scores in the order that `Design` asks for."""
    if strata_audited is None and strata_honest is None:
        return np.concatenate([audited_N, honest_M]), Design((len(audited_N),), (len(honest_M),))
    if strata_audited is None or strata_honest is None:
        raise ValueError("strata are given for one sample only, expected them for both or for none.")
    labels_N = check_labels("strata_audited", strata_audited, len(audited_N))
    labels_M = check_labels("strata_honest", strata_honest, len(honest_M))
    lonely = np.setdiff1d(labels_N, labels_M)
    if lonely.size:
        raise ValueError(
            f"strata_audited: no honest score lies in stratum {', '.join(map(str, lonely[:5].tolist()))}"
            f"{' and others' if lonely.size > 5 else ''}, so its audited scores cannot be compared."
        )
    names = np.unique(labels_N).tolist()
    groups = [(audited_N[labels_N == name], honest_M[labels_M == name]) for name in names]
    pooled = np.concatenate([scores for group in groups for scores in group])
    return pooled, Design(tuple(len(a) for a, _ in groups), tuple(len(h) for _, h in groups))


def pooled_p_value(results: Sequence[PermutationResult]) -> float:
    """The largest p-value over the honest stacks.

    Valid if an honest provider behaves like *any one* of the stacks (exchangeable with it), whichever that is: the
    largest p is then at least the p against the right stack. It is not shown for a provider that mixes stacks.
    Raises `ValueError` if there is no stack.
    """
    if not results:
        raise ValueError("results: got none, expected the test against at least one honest stack.")
    return max(result.p_value for result in results)


def permutations_for(alpha: float) -> int:
    """The least number of random permutations worth taking at level `alpha`: ceil(10 / alpha)."""
    return math.ceil(10.0 / check_probability("alpha", alpha))


def p_floor(n: int, m: int) -> float:
    """Smallest p-value that n audited against m honest scores (one stratum) can give: 1 / C(n+m, n)."""
    return Design((check_count("n", n),), (check_count("m", m),)).floor()


def fewest_sequences(m: int, alpha: float) -> int:
    """Smallest n such that n audited scores can be rejected at all at `alpha` against m honest: `p_floor` <= alpha.

    Power is another matter: see `power.sequences_needed`.
    """
    check_probability("alpha", alpha)
    high = 1
    while p_floor(high, m) > alpha:
        high *= 2
    low = high // 2  # too few, or 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if p_floor(middle, m) > alpha else (low, middle)
    return high
