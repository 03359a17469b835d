"""Honest sequences scored as they are, and as if the provider had carried larger errors: several sizes in one go.

`statistic.simulate` draws each token anew among its contenders. Where the draw leaves the winner as it was, the token's
likelihood ratios are those of the honest one, and at small sizes that is nearly every token. So only the tokens that
changed are scored again, those of all sizes together: ten sizes cost little more than one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from veridifr.scores import Contenders, Scores
from veridifr.statistic import LikelihoodRatio, simulate

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
DECIMALS = 3
"""Scores are kept and compared at this precision, audited and honest ones alike: finer differences are no evidence."""
_BY_TOKEN = ("status_T", "gap_T", "match_T", "best_T", "rank_T", "logprob_T")


@dataclass(frozen=True, kw_only=True, eq=False)
class EffectScores:
    """Prefix scores in nats, rounded: `honest` float64[E] and `simulated` float64[K, E], one row for each size."""

    honest: Floats
    simulated: Floats


def rounded(scores_E: Floats) -> Floats:
    """Scores at the precision at which they are compared; minus zero becomes zero."""
    found: Floats = np.round(scores_E, DECIMALS) + 0.0
    return found


def effect_scores(
    statistic: LikelihoodRatio,
    scores: Scores,
    edges: Sequence[int],
    sizes: Sequence[float],
    rng: np.random.Generator,
) -> EffectScores:
    """Scores of the prefixes `edges` of one honest sequence, honest and under independent errors of each of `sizes`.

    `sizes` are in logits, in all: an honest error is part of the tokens already and is not added to them.
    """
    tokens = len(scores.status_T)
    drawn = [simulate(scores, size, rng).contenders for size in sizes]
    changed = [_changed(scores.contenders, found, tokens) for found in drawn]
    ratios, applies_A = statistic.ratios(_together(scores, drawn, changed))
    own, rest = ratios[:tokens], ratios[tokens:]
    simulated = np.empty((len(sizes), len(edges)))
    for number, rows in enumerate(changed):
        moved = own.copy()
        moved[rows], rest = rest[: len(rows)], rest[len(rows) :]
        simulated[number] = rounded(statistic.prefixes(moved, applies_A, edges))
    return EffectScores(honest=rounded(statistic.prefixes(own, applies_A, edges)), simulated=simulated)


def surprises(scores: Scores, edges: Sequence[int]) -> Floats:
    """Mean of -log p of the first L tokens that are scored, for each L of `edges`; 0 where none of them is.

    p is the reference's probability of the claimed token at the claimed temperature: over honest draws its mean is the
    entropy. It says what kind of text this is.
    """
    counted_T = np.cumsum(scores.usable_T)
    summed_T = np.cumsum(np.where(scores.usable_T, -scores.logprob_T, 0.0))
    places = np.asarray(edges, dtype=np.int64) - 1
    return rounded(summed_T[places] / np.maximum(counted_T[places], 1))


def _changed(before: Contenders, after: Contenders, tokens: int) -> Rows:
    """Tokens of which anything differs, ascending."""
    differs = (before.claimed_M != after.claimed_M) | (before.scores_M != after.scores_M)
    differs |= before.edges_M != after.edges_M
    found = np.zeros(tokens, dtype=bool)
    found[before.rows_M[differs]] = True
    return np.flatnonzero(found)


def _together(scores: Scores, drawn: Sequence[Contenders], changed: Sequence[Rows]) -> Scores:
    """The honest tokens, then the changed ones of each draw, as if they were one sequence."""
    tokens = len(scores.status_T)
    parts, first = [scores.contenders], tokens
    for found, rows in zip(drawn, changed, strict=True):
        number_T = np.full(tokens, -1, dtype=np.int32)
        number_T[rows] = first + np.arange(len(rows), dtype=np.int32)
        some = found.at(number_T[found.rows_M] >= 0)
        parts.append(replace(some, rows_M=number_T[some.rows_M]))
        first += len(rows)
    names = ("rows_M", "scores_M", "edges_M", "noise_M", "claimed_M")
    joined = Contenders(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    taken = np.concatenate([np.arange(tokens), *changed])
    return replace(scores, contenders=joined, **{name: getattr(scores, name)[taken] for name in _BY_TOKEN})
