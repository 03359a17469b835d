"""What honest tokens of an unknown sampler would have been had the provider deviated: for power, plans and comparisons.

A token that was drawn from p is the argmax of l/T + g for Gumbel noise g that nobody saw. Given the token, that noise
can be drawn (the maximum is independent of which candidate has it, and the others are truncated below it), and then the
deviation is applied with the noise held: small deviations change few tokens, so little simulation error is added. The
same draws say what the seeded test would have seen, had the noise been known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from veridifr import stats
from veridifr.distribution import DistributionRatio, choices_of, edges_at
from veridifr.effects import EffectScores, rounded
from veridifr.likelihood import EPSILON, shifted
from veridifr.scores import WINNER_WINDOW, Choices, Contenders, Scores
from veridifr.statistic import LikelihoodRatio, prefixes_of, simulate

Floats = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


HEATS = (-0.2, -0.1, -0.05, 0.02, 0.05, 0.1, 0.2)
"""Relative changes of the temperature that are simulated."""
_COMPARED = 60
"""Sequences that the comparison with the seeded test takes at most: it is an order of magnitude."""
_LENGTHS = 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Scores with noise drawn for them, and which candidate each contender is."""

    scores: Scores
    index_M: Index


def distribution_effects(
    statistic: DistributionRatio,
    scores: Scores,
    edges: Sequence[int],
    sizes: Sequence[float],
    heats: Sequence[float],
    rng: np.random.Generator,
) -> EffectScores:
    """Scores of the prefixes `edges` of one honest sequence: honest, under errors of each of `sizes` logits, and at
    each of `heats` (relative changes of the temperature), in this order."""
    choices, drawn = choices_of(scores), with_noise(scores, rng)
    taken = [drawn.index_M[simulate(drawn.scores, size, rng).contenders.claimed_M] for size in sizes]
    taken += [drawn.index_M[at_temperature(drawn, choices, heat)] for heat in heats]
    ratios, applies_A = statistic.ratios_at(choices, np.concatenate([choices.claimed_T, *taken]))
    parts = np.split(ratios, 1 + len(taken))
    for part in parts:
        part[~scores.usable_T] = 0.0
    rows = [rounded(prefixes_of(statistic.alternatives, part, applies_A, edges)) for part in parts]
    return EffectScores(honest=rows[0], simulated=np.array(rows[1:]).reshape(len(taken), len(edges)))


def seeded_tokens(
    honest: Sequence[tuple[Scores, int]], statistic: DistributionRatio, size: float, edges: Sequence[int]
) -> int | None:
    """How many tokens the seeded test would take to find errors of `size` logits, had the noise been known.

    `honest` are scores with the number of tokens that are evidence. The length that takes the fewest tokens counts;
    alpha 0.01, power 0.9. None where no number up to `stats.sequences_needed`'s limit is enough.
    """
    seeded, rng = LikelihoodRatio(sigma=statistic.sigma, epsilon=EPSILON), np.random.default_rng(len(honest))
    shortest = min(end for _, end in honest)
    reached = [edge for edge in edges if edge <= shortest] or [shortest]
    lengths = sorted({min(reached, key=lambda e: abs(e - x)) for x in np.geomspace(reached[0], reached[-1], _LENGTHS)})
    columns = [
        [rounded(seeded.prefix_scores(simulate(drawn, s, rng), lengths)) for s in (statistic.sigma, size)]
        for drawn in (with_noise(scores, rng).scores for scores, _ in honest[:_COMPARED])
    ]
    table = np.array(columns)
    needed = [
        (length, stats.sequences_needed([table[:, 0, k]], table[:, 1, k], alpha=0.01, rng=rng, power=0.9, limit=2000))
        for k, length in enumerate(lengths)
    ]
    return min((length * count for length, count in needed if count is not None), default=None)


def with_noise(scores: Scores, rng: np.random.Generator) -> Drawn:
    """Scores as if the noise were known: Gumbel noise drawn under the condition that it chose the claimed tokens."""
    choices = choices_of(scores)
    heat, rows = choices.temperature, choices.rows_M
    logits = choices.logits_M.astype(np.float64) / heat
    claimed = np.zeros(len(rows), dtype=bool)
    claimed[choices.claimed_T] = True
    ruled = np.where((choices.edges_M <= 0) | claimed, logits, -np.inf)
    ruled[claimed] = np.maximum(ruled[claimed], -700.0)  # a forbidden token was claimed: it is there all the same
    total_T = np.log(np.add.reduceat(np.exp(ruled), choices.starts_T))
    best_T = total_T + rng.gumbel(size=len(total_T))
    free = logits + rng.gumbel(size=len(rows))
    # A Gumbel variate of that location, given that it lies below the best one.
    below = -np.logaddexp(-free, -best_T[rows])
    perturbed = np.where(claimed, best_T[rows], np.where(ruled > -np.inf, below, free))
    relative = heat * (perturbed - best_T[rows])
    near = np.flatnonzero((relative > -WINNER_WINDOW) | claimed)
    noise = relative - heat * logits
    contenders = Contenders(
        rows_M=rows[near].astype(np.int32),
        scores_M=relative[near].astype(np.float32),
        edges_M=choices.edges_M[near],
        noise_M=(noise[near] - noise[choices.claimed_T][rows[near]]).astype(np.float32),
        claimed_M=claimed[near],
    )
    return Drawn(scores=replace(scores, contenders=contenders, choices=None), index_M=near)


def at_temperature(drawn: Drawn, choices: Choices, heat: float) -> npt.NDArray[np.bool_]:
    """Who wins at (1 + heat) times the temperature, by the filters' edge there."""
    moved = shifted(drawn.scores.contenders, temperature=heat)
    inside = edges_at(choices, (1.0 + heat) * choices.temperature)[drawn.index_M] <= 0
    kept = np.where(inside, moved.scores_M, -np.inf)
    starts = np.searchsorted(moved.rows_M, np.arange(len(choices.starts_T)))
    top = np.maximum.reduceat(kept, starts)[moved.rows_M]
    wins = np.where(top == -np.inf, moved.claimed_M, kept == top)  # none of those listed is left: as it was
    first = np.zeros(len(wins), dtype=bool)
    index = np.flatnonzero(wins)
    first[index[np.unique(moved.rows_M[index], return_index=True)[1]]] = True
    return first
