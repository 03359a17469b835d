"""What a sequential audit is fixed to before it begins: strata, bets, and the floor at which it gives up.

Bets and floor come from the calibration's *fit* part, whose prompts are none of the null's: bets that had seen the null
would break the guarantee (docs/statistics.md). Everything here depends on lengths, never on an audited score, and on
the first purchase only, so that an audit which is extended later is the same test gone on with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veridifr import stats
from veridifr.calibration import Calibration, HonestSequence, scores_at
from veridifr.errors import CalibrationError
from veridifr.strata import matched

Floats = npt.NDArray[np.float64]
FEWEST_FIT_SCORES = 10
"""With fewer fit scores at a length, nothing is known of deviating scores: no informed bets, no floor, no power."""
FLOOR_POWER = 0.93
"""Power that the floor must leave, a little above what `consistent` takes: fit scores are few."""
_OWN_FIT = 30
"""A stack with as many fit scores stands for itself in simulations; with fewer, all stacks' are drawn from."""
_PART = 0.1
_LONGEST = 500
"""Longest audit that is simulated, in sequences."""
_FLOORS = np.arange(0.0, 0.8, 0.01)


@dataclass(frozen=True, kw_only=True)
class Sequential:
    """How a sequential audit is run, all of it fixed before scoring.

    `seed` gives order and tie-breaks; a provider that knows it can deviate where the audit will no longer look, so take
    one that it cannot know when it answers. `batches` are the sizes of the purchases in which the traces came, in their
    order (default: one); the first decides strata, bets and floor. `give_up` False looks on to the end of the order:
    for deviations smaller than the declared one, or on a part of the requests.
    """

    seed: int = 0
    batches: tuple[int, ...] = ()
    give_up: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Design:
    """A sequential test made ready: `honest` null scores by stack and stratum, `places` the strata, ascending."""

    test: stats.SequentialTest
    honest: tuple[Mapping[int, Floats], ...]
    places: tuple[int, ...]
    typical: int
    """The stratum that simulations stand for."""
    informed: bool

    def place(self, place: int | None) -> int | None:
        """The stratum of a sequence that reaches edge `place`: the longest known one within it."""
        found = [known for known in self.places if place is not None and known <= place]
        return found[-1] if found else None


def design(calibration: Calibration, places: Sequence[int], alpha: float, settings: Sequential) -> Design:
    """The test for a first purchase whose sequences reach the edges `places`."""
    honest = []
    for stack in calibration.stacks:
        scores_M, strata_M = matched([s.scores for s in stack.sequences], places)
        honest.append({int(place): scores_M[strata_M == place] for place in np.unique(strata_M)})
    known = sorted(set.intersection(*(set(stack) for stack in honest)))
    if not known:
        raise CalibrationError(
            f"calibration: some stack's sequences are too short to compare {len(places)} audited ones with"
        )
    honest = [{place: stack[place] for place in known} for stack in honest]
    median = int(np.median(places))
    typical = max((place for place in known if place <= median), default=known[0])
    informed = informed_at(calibration, known)
    bets = {place: bets_at(calibration, place, informed=informed) for place in known}
    floor = 0.0
    if informed and settings.give_up:
        simulation = simulation_of(calibration, typical)
        floor = simulation.floor(simulation.ranks(calibration.detect_place, len(places)), bets[typical], alpha)
    test = stats.SequentialTest(alpha=alpha, bets=bets, tie_seed=settings.seed, floor=floor)
    return Design(test=test, honest=tuple(honest), places=tuple(known), typical=typical, informed=informed)


def informed_at(calibration: Calibration, places: Sequence[int]) -> bool:
    """Whether there are fit scores enough at every one of the edges."""
    return all(len(scores_at(_fit(calibration), place)) >= FEWEST_FIT_SCORES for place in places)


def bets_at(calibration: Calibration, place: int, *, informed: bool) -> stats.Bets:
    """The mixture for sequences cut at edge `place`: general bets, and informed ones for a few sizes of deviation."""
    if not informed:
        return stats.mixed_bets()
    fit, effects, declared = _fit(calibration), calibration.effects, calibration.detect_place
    honest = scores_at(fit, place)
    double = next((k for k, size in enumerate(effects) if size >= 1.99 * effects[declared]), len(effects) - 1)
    chosen = dict.fromkeys([declared, double, len(effects) - 1])
    bets = [
        stats.informed_bet(f"{effects[k]:.3g} times the honest noise", honest, scores_at(fit, place, k)) for k in chosen
    ]
    return stats.mixed_bets([*bets, bets[-1].on_part(_PART)])


@dataclass(frozen=True, kw_only=True, eq=False)
class Simulation:
    """Scores at one length to simulate audits from: honest ones of each stack, deviating ones for each effect."""

    honest: tuple[Floats, ...]
    deviating: tuple[Floats, ...]
    sizes: tuple[int, ...]
    """Number of null scores of each stack."""

    def ranks(self, effect: int | None, n: int, *, share: float = 1.0) -> list[Floats]:
        """For each stack, ranks float[D, n] of simulated audits of a provider that deviates on `share` of requests.

        `effect` None is an honest provider. The audited scores are the same for every stack.
        """
        n = min(n, _LONGEST)
        rng = np.random.default_rng([n, 0 if effect is None else effect + 1])
        draws = int(np.clip(30_000 // n, 200, 600))
        pool = np.concatenate(self.honest)
        audited_DN = pool[rng.integers(0, len(pool), size=(draws, n))]
        if effect is not None:
            wrong = self.deviating[effect]
            audited_DN = np.where(
                rng.random((draws, n)) < share, wrong[rng.integers(0, len(wrong), size=(draws, n))], audited_DN
            )
        found = []
        for scores, size in zip(self.honest, self.sizes, strict=True):
            honest_DM = scores[rng.integers(0, len(scores), size=(draws, size))]
            found.append(stats.rank_paths(audited_DN, honest_DM, rng=rng))
        return found

    def run(self, ranks: Sequence[Floats], bets: stats.Bets, bounds: stats.Bounds) -> Audits:
        """Simulated audits against every stack at once: rejected where all stacks reject."""
        stacks = [stats.simulate_audits(r, bets, bounds, m=m) for r, m in zip(ranks, self.sizes, strict=True)]
        rejected_D = np.all([stack.rejected for stack in stacks], axis=0)
        ended_SD = [np.where(stack.given_up, stack.used, ranks[0].shape[1]) for stack in stacks]
        used_D = np.where(rejected_D, np.max([stack.used for stack in stacks], axis=0), np.min(ended_SD, axis=0))
        return Audits(rejected=rejected_D, used=used_D)

    def floor(self, ranks: Sequence[Floats], bets: stats.Bets, alpha: float) -> float:
        """The largest floor that leaves `FLOOR_POWER`; 0 where there is none."""
        if self.run(ranks, bets, stats.Bounds(alpha=alpha)).power < FLOOR_POWER:
            return 0.0
        low, high = 0, len(_FLOORS)
        while high - low > 1:
            middle = (low + high) // 2
            found = self.run(ranks, bets, stats.Bounds(alpha=alpha, floor=float(_FLOORS[middle])))
            low, high = (middle, high) if found.power >= FLOOR_POWER else (low, middle)
        return float(_FLOORS[low])


@dataclass(frozen=True, kw_only=True, eq=False)
class Audits:
    """Simulated audits: which were rejected, and how many sequences each used."""

    rejected: npt.NDArray[np.bool_]
    used: npt.NDArray[np.int64]

    @property
    def power(self) -> float:
        """Share that was rejected."""
        return float(self.rejected.mean())


def simulation_of(calibration: Calibration, place: int) -> Simulation:
    """Simulated audits of sequences cut at edge `place`, from the fit part alone."""
    fit = _fit(calibration)
    pooled = scores_at(fit, place)
    own = [scores_at(stack.fit, place) for stack in calibration.stacks]
    return Simulation(
        honest=tuple(scores if len(scores) >= _OWN_FIT else pooled for scores in own),
        deviating=tuple(scores_at(fit, place, k) for k in range(len(calibration.effects) + len(calibration.heats))),
        sizes=tuple(len(scores_at(stack.sequences, place)) for stack in calibration.stacks),
    )


def _fit(calibration: Calibration) -> list[HonestSequence]:
    return [sequence for stack in calibration.stacks for sequence in stack.fit]
