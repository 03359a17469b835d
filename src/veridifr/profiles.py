"""Whether the audited text is of the calibration's kind: error rates hold for the calibration's prompts only.

Each sequence's surprise (mean -log p of its tokens under the reference) is compared with honest ones at equal length by
the permutation test, in both directions. Assumption: as for the scores. Guarantee: prompts of the calibration's
population are called different with a probability of at most `LEVEL`. Not finding a difference proves nothing, and a
provider that deviates may change the profile by itself; so a difference never excuses and never accuses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr import stats
from veridifr.calibration import Calibration, Stack
from veridifr.effects import surprises
from veridifr.scored import ScoredItem, reaching
from veridifr.strata import matched

Floats = npt.NDArray[np.float64]
LEVEL = 0.001
UNKNOWN = "The calibration (format 1) says nothing of its prompts' kind, so it was not compared with the audit's."
_PERMUTATIONS = 40_000


@dataclass(frozen=True, kw_only=True)
class ProfileDifference:
    """Mean surprise of the audited and the honest sequences, in nats, with the p-value of the comparison."""

    audited: float
    honest: float
    p_value: float

    @property
    def sentence(self) -> str:
        """What is assumed no longer."""
        side = "less" if self.audited > self.honest else "more"
        return (
            f"The text is {side} predictable than the calibration's (mean -log p {self.audited:.2f} against "
            f"{self.honest:.2f}, p = {self.p_value:.1g}): other prompts, or a deviation. Error rates hold for the "
            "calibration's kind of prompts and may not hold here."
        )


def difference(items: Sequence[ScoredItem], calibration: Calibration) -> ProfileDifference | None:
    """How the audited text differs from that of every honest stack; None if it does not clearly, or is not known."""
    usable = reaching(items, calibration.edges)
    if not usable or not known(calibration):
        return None
    places = np.array([place for _, place in usable], dtype=np.int64)
    values = np.array([surprises(item.scores, [calibration.edges[place]])[0] for item, place in usable])
    found = [_against(stack, values, places) for stack in calibration.stacks]
    if any(one is None or one.p_value > LEVEL for one in found):
        return None  # like one of the stacks' prompts, which is all that the tests need
    return max((one for one in found if one is not None), key=lambda one: one.p_value)


def known(calibration: Calibration) -> bool:
    """Whether the calibration holds its prompts' profile."""
    return all(sequence.surprise for stack in calibration.stacks for sequence in stack.sequences)


def _against(stack: Stack, values_N: Floats, places_N: npt.NDArray[np.int64]) -> ProfileDifference | None:
    honest_M, strata_M = matched([s.surprise for s in stack.sequences], places_N.tolist())
    known_N = np.isin(places_N, strata_M)
    if not known_N.any():
        return None
    values, places = values_N[known_N], places_N[known_N]
    above = sum(values[places == place].sum() - (places == place).sum() * honest_M[strata_M == place].mean()
                for place in np.unique(places))  # fmt: skip
    side = 1.0 if above >= 0.0 else -1.0
    result = stats.permutation_test(
        side * values,
        side * honest_M,
        permutations=_PERMUTATIONS,
        rng=np.random.default_rng(len(values)),
        strata_audited=places,
        strata_honest=strata_M,
    )
    # The direction was chosen by the data: twice the smaller of the two one-sided p-values is a p-value.
    p_value = min(1.0, 2.0 * result.p_value)
    return ProfileDifference(audited=float(values.mean()), honest=float(honest_M.mean()), p_value=p_value)
