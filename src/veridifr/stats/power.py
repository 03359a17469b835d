"""Before an audit: how likely would it find a deviation, and how many sequences does that take?

Both answers come from simulated audits, bootstrapped from scores at hand: honest ones, and ones that deviate by the
amount in question. They are estimates of what the test would do, no part of its guarantee.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veridifr.stats.checks import FloatArray, check_count, check_probability, check_scores
from veridifr.stats.intervals import clopper_pearson
from veridifr.stats.permutation import fewest_sequences, permutation_p_values, permutations_for

DRAWS = 200
"""Simulated audits per power estimate: its standard error is about 0.02 at power 0.9."""

_BLOCK = 2**23
"""Largest number of scores simulated at once: bounds memory to a few hundred MB at the largest n."""


@dataclass(frozen=True, kw_only=True)
class PowerResult:
    """Share of `draws` simulated audits of `n` sequences that were rejected.

    `interval` (95 %, Clopper-Pearson) is the error of the simulation alone: it does not hold the error from having
    only so many honest and deviating scores to draw from.
    """

    power: float
    interval: tuple[float, float]
    n: int
    draws: int


def power(
    honest: FloatArray | Sequence[FloatArray],
    deviating: FloatArray,
    n: int,
    *,
    alpha: float,
    rng: np.random.Generator,
    draws: int = DRAWS,
    permutations: int | None = None,
) -> PowerResult:
    """Chance that `n` audited sequences whose scores look like `deviating` float[k] are rejected at level `alpha`.

    `honest` is one stack's scores float[m], or a list of such arrays; with several, rejected means that *every* stack
    rejects (`pooled_p_value` <= alpha). Each simulated audit draws n scores from `deviating` and as many as each stack
    has from that stack, with replacement, and runs the permutation test with `permutations` (default
    `permutations_for(alpha)`). Assumes one stratum: where scores of several lengths are mixed, subtract the honest
    mean of its length from each score first.

    Raises `ValueError` for empty or non-finite scores and counts below 1.
    """
    stacks, scores_K = _stacks(honest), check_scores("deviating", deviating)
    check_probability("alpha", alpha)
    n, draws = check_count("n", n), check_count("draws", draws)
    permutations = permutations_for(alpha) if permutations is None else permutations
    found, group = 0, max(1, _BLOCK // (n + max(map(len, stacks))))
    for first in range(0, draws, group):
        count = min(group, draws - first)
        audited_DN = _bootstrap(scores_K, count, n, rng)
        rejected_D = np.ones(count, dtype=np.bool_)
        for stack_M in stacks:
            honest_DM = _bootstrap(stack_M, count, len(stack_M), rng)
            rejected_D &= permutation_p_values(audited_DN, honest_DM, permutations=permutations, rng=rng) <= alpha
        found += int(rejected_D.sum())
    return PowerResult(power=found / draws, interval=clopper_pearson(found, draws, 0.95), n=n, draws=draws)


def sequences_needed(
    honest: FloatArray | Sequence[FloatArray],
    deviating: FloatArray,
    *,
    alpha: float,
    rng: np.random.Generator,
    power: float = 0.9,
    have: int = 0,
    limit: int = 100_000,
) -> int | None:
    """Fewest audited sequences in total, `have` or more, for which the estimated power reaches `power`.

    `honest`, `deviating` and `alpha` as in `power()`. Returns `have` where that is enough, and None where `limit` is
    not: because the deviation is too small, or because there are too few honest scores for any number of audited ones.
    Power is taken to rise with n; the search doubles, then bisects to within 1 %.
    """
    check_probability("power", power)
    start = max(check_count("have", have, least=0), *(fewest_sequences(len(s), alpha) for s in _stacks(honest)))
    seed = int(rng.integers(2**63))

    def reached(n: int) -> bool:  # the same random numbers for the same n, so that the answer is reproducible
        return _power(honest, deviating, n, alpha=alpha, rng=np.random.default_rng([seed, n])).power >= power

    if start > check_count("limit", limit):
        return None
    if reached(start):
        return start
    low, high = start, min(2 * start, limit)
    while not reached(high):
        if high == limit:
            return None
        low, high = high, min(2 * high, limit)
    while high - low > max(1, high // 100):
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


_power = power  # `sequences_needed` has a parameter of that name


def _bootstrap(scores: FloatArray, draws: int, size: int, rng: np.random.Generator) -> FloatArray:
    return scores[rng.integers(0, len(scores), size=(draws, size))]


def _stacks(honest: FloatArray | Sequence[FloatArray]) -> list[FloatArray]:
    arrays = [honest] if isinstance(honest, np.ndarray) else list(honest)
    if not arrays:
        raise ValueError("honest: got no stack, expected the scores of at least one.")
    return [check_scores(f"honest[{i}]", scores) for i, scores in enumerate(arrays)]
