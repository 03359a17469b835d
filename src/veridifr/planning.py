"""Before an audit: how many sequences of how many tokens to buy, and what the calibration can't support.

Audits are simulated from the calibration's own scores of deviations of the sizes that it holds; between two of them
scores are interpolated. It is an estimate: how well it holds depends on how many scores there are, and on how much the
deviation resembles independent errors of that size. Error rates do not depend on it.

Fingerprints are planned in the same way, from the scores that the calibration holds of them (`fingerprint_null`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from veridifr import stats
from veridifr.betting import Sequential, design, informed_at, simulation_of
from veridifr.calibration import Calibration, scores_at
from veridifr.deviations import Shown, size_of
from veridifr.errors import CalibrationError
from veridifr.fingerprint_planning import of_fingerprints
from veridifr.interpolated import holding

Floats = npt.NDArray[np.float64]
FEWEST_SCORES = 10
"""Scores below which nothing is planned at a length."""
_LENGTHS = 6
"""Lengths that are compared, at most."""
_SHORTEST = 8
_MOST_FIXED = 2000
_MOST_SEQUENTIAL = 500
_SATURATES = 60
"""Sequences beyond which a power that rises no longer has reached its end: the bag fills with what it should find."""
_MIXED = 4000
_FIXED_ALONE = "A sequential audit looks at fingerprints too, after each sequence; what it takes is not planned."
Evidence = Literal["tokens", "fingerprints"]


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What an audit shall see: `share` of the requests deviates; error rate `alpha`, found with probability `power`.

    `tokens` fixes the length of a sequence; by default the one that takes the fewest tokens in all is chosen.
    """

    share: float = 1.0
    alpha: float = 0.01
    power: float = 0.9
    tokens: int | None = None

    def __post_init__(self) -> None:
        for name, high in (("share", 1.0), ("alpha", 0.5), ("power", 0.999)):
            if not 0.0 < getattr(self, name) <= high:
                raise CalibrationError(f"plan: {name}: got {getattr(self, name)}, expected above 0, at most {high:g}")
        if self.tokens is not None and self.tokens < 1:
            raise CalibrationError(f"plan: tokens: got {self.tokens}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class SequentialPlan:
    """A sequential audit: `ordered` sequences are bought at most; how many are used if the provider deviates.

    `give_up` says whether it may stop early without a rejection; `honest_mean` is what an honest provider takes.
    """

    ordered: int
    mean: float
    percentile_90: int
    honest_mean: float
    power: float
    give_up: bool


@dataclass(frozen=True, kw_only=True)
class Option:
    """What one length takes. None: no number up to the largest that is tried is enough, or it is not known."""

    tokens: int
    fixed: int | None
    sequential: SequentialPlan | None = None

    @property
    def fixed_tokens(self) -> int | None:
        """Tokens in all for the fixed test."""
        return None if self.fixed is None else self.fixed * self.tokens


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to buy. `multiple` is the deviation's size, `planned_multiple` the one that it was planned with: the largest
    stored one where the deviation is larger than all. `sigma` is that size in logits, None for fingerprints.

    `best` is the option to take, None if none is enough. `touched` is the chance that the fixed number of requests
    holds one that deviates, 1 - (1 - share)^n. `warnings` say what the calibration can't support, `source` where a
    named deviation's size is from.
    """

    deviation: str
    aim: Aim
    evidence: Evidence
    sigma: float | None
    multiple: float
    planned_multiple: float
    source: str | None
    options: tuple[Option, ...]
    best: Option | None
    touched: float | None
    warnings: tuple[str, ...]


def plan(calibration: Calibration, deviation: str, aim: Aim | None = None, *, fingerprints: bool = False) -> Plan:
    """How many sequences an audit needs to find `deviation` by its tokens: a name of `deviations.MULTIPLES`, or
    ``sigma=X`` in logits. With `fingerprints`: by these alone, at half of alpha, as audits test them; ``errors=X`` is a
    deviation of X times the honest errors.

    Raises `CalibrationError` for a deviation or a length that the calibration holds no scores for.
    """
    aim = aim or Aim()
    held = of_fingerprints(calibration) if fingerprints else calibration
    shown = "fingerprints" if fingerprints else _shown(calibration)
    multiple, source = size_of(deviation, calibration.statistic.sigma, shown)
    heat = _heat(deviation, held)
    simulated, effect = holding(held, multiple) if heat is None else (held, len(held.effects) + heat)
    tested = replace(aim, alpha=aim.alpha / 2) if fingerprints else aim
    places = _places(held, aim, shortest=1 if fingerprints else _SHORTEST)
    options = [Option(tokens=held.edges[p], fixed=_fixed(simulated, p, effect, tested)) for p in places]
    enough = [(option, place) for option, place in zip(options, places, strict=True) if option.fixed is not None]
    best, touched = None, None
    if enough:
        chosen, place = min(enough, key=lambda pair: pair[0].fixed_tokens or 0)
        best = replace(chosen, sequential=_sequential(held, simulated, place, effect, aim))
        options = [best if option is chosen else option for option in options]
        touched = 1.0 - (1.0 - aim.share) ** (chosen.fixed or 0)
    warnings = _warnings(simulated, tested, multiple, effect, best, places)
    if best is not None:
        warnings += [_FIXED_ALONE] if fingerprints else _sequential_warnings(simulated, aim, effect, best)
    return Plan(
        deviation=deviation,
        aim=aim,
        evidence="fingerprints" if fingerprints else "tokens",
        sigma=None if fingerprints else multiple * calibration.statistic.sigma,
        multiple=multiple,
        planned_multiple=simulated.effects[effect] if heat is None else multiple,
        source=source if heat is None else None,
        options=tuple(options),
        best=best,
        touched=touched,
        warnings=tuple(warnings),
    )


def _shown(calibration: Calibration) -> Shown:
    """What shows a deviation's size in audits of this calibration's mode."""
    if calibration.mode == "greedy":
        return "near ties"
    filtered = any(calibration.sampling.get(name) is not None for name in ("top_k", "top_p", "min_p"))
    return "edge" if calibration.mode == "distribution" and filtered else "noise"


def _heat(deviation: str, calibration: Calibration) -> int | None:
    """Which of `Calibration.heats` a change of the temperature is planned with: the largest that is no larger, so that
    it is no guess from logit noise; None for other deviations, and where the calibration has none."""
    name, _, number = deviation.partition("=")
    if name != "temperature" or not calibration.heats:
        return None
    change = float(number) - 1.0  # a name that `size_of` knows
    smaller = [k for k, heat in enumerate(calibration.heats) if 0.0 < heat / change <= 1.0 + 1e-9]
    return max(smaller, key=lambda k: abs(calibration.heats[k]), default=None)


def _places(calibration: Calibration, aim: Aim, shortest: int) -> list[int]:
    """Edges to compare: those of `shortest` tokens or more with scores enough, thinned evenly in the logarithm of the
    length."""
    least = [
        min(len(scores_at(stack.sequences, p)) for stack in calibration.stacks) for p in range(len(calibration.edges))
    ]
    usable = [p for p, count in enumerate(least) if count >= FEWEST_SCORES]
    if not usable:
        raise CalibrationError(
            f"plan: some stack holds fewer than {FEWEST_SCORES} null sequences, too few to plan with at any length"
        )
    longest = calibration.edges[usable[-1]]
    if aim.tokens is not None:
        if aim.tokens > longest:
            raise CalibrationError(
                f"plan: tokens: got {aim.tokens}, the calibration reaches {longest}; longer sequences are cut there"
            )
        within = [p for p in usable if calibration.edges[p] <= aim.tokens]
        if not within:
            first = calibration.edges[usable[0]]
            raise CalibrationError(f"plan: tokens: got {aim.tokens}, the calibration's shortest length is {first}")
        return within[-1:]
    long = [p for p in usable if calibration.edges[p] >= shortest] or usable[-1:]
    wanted = np.geomspace(calibration.edges[long[0]], longest, _LENGTHS)
    return sorted({min(long, key=lambda p: abs(np.log(calibration.edges[p] / length))) for length in wanted})


def _deviating(calibration: Calibration, place: int, effect: int, share: float) -> Floats:
    """Scores of a provider that deviates on a share of the requests, from null and fit part alike."""
    entries = [s for stack in calibration.stacks for s in (*stack.fit, *stack.sequences)]
    wrong = scores_at(entries, place, effect)
    if share == 1.0:
        return wrong
    rng = np.random.default_rng(len(entries))
    count = round(share * _MIXED)
    right = scores_at(entries, place)
    return np.concatenate([rng.choice(wrong, count), rng.choice(right, _MIXED - count)])


def _fixed(calibration: Calibration, place: int, effect: int, aim: Aim) -> int | None:
    stacks = [scores_at(stack.sequences, place) for stack in calibration.stacks]
    return stats.sequences_needed(
        stacks,
        _deviating(calibration, place, effect, aim.share),
        alpha=aim.alpha,
        rng=np.random.default_rng(place),
        power=aim.power,
        limit=_MOST_FIXED,
    )


def _sequential(
    calibration: Calibration, simulated: Calibration, place: int, effect: int, aim: Aim
) -> SequentialPlan | None:
    """The order that takes the fewest sequences, as `veridifr.stopping` would run it; None where none is enough.

    A longer order leaves room for a floor, which saves an honest provider's sequences: both sides' means are weighed.
    """
    trial = _Trial(calibration=calibration, simulated=simulated, place=place, effect=effect, aim=aim)
    if not informed_at(calibration, [place]):
        return None
    low, high, before = 1, 2, 0.0
    while (power := trial.power(high)) < aim.power:
        if high == _MOST_SEQUENTIAL or (high > _SATURATES and power < before + 0.01):
            return None
        low, high, before = high, min(2 * high, _MOST_SEQUENTIAL), power
    while high - low > max(1, high // 20):
        middle = (low + high) // 2
        low, high = (low, middle) if trial.power(middle) >= aim.power else (middle, high)
    longer = [min(int(factor * high) + 1, _MOST_SEQUENTIAL) for factor in (1.25, 1.5, 2.0)] if trial.give_up else []
    found = [trial.plan(ordered) for ordered in (high, *longer)]
    return min((one for one in found if one.power >= aim.power), key=lambda one: one.mean + one.honest_mean)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Trial:
    """Sequential audits of one length, simulated for any number of sequences ordered.

    `calibration` designs them; `simulated` also holds the scores of the planned size, effect number `effect`.
    """

    calibration: Calibration
    simulated: Calibration
    place: int
    effect: int
    aim: Aim

    @property
    def give_up(self) -> bool:
        """A floor is for the declared deviation: smaller ones and those on a part of the requests take longer."""
        detect, noise = self.simulated.detect_place, len(self.simulated.effects)
        return self.aim.share == 1.0 and detect <= self.effect < noise

    def power(self, ordered: int) -> float:
        """The chance of a rejection."""
        _, bounds, bets = self._fixed(ordered)
        simulation = simulation_of(self.simulated, self.place)
        return simulation.run(simulation.ranks(self.effect, ordered, share=self.aim.share), bets, bounds).power

    def plan(self, ordered: int) -> SequentialPlan:
        """What such audits use."""
        floor, bounds, bets = self._fixed(ordered)
        simulation = simulation_of(self.simulated, self.place)
        found = simulation.run(simulation.ranks(self.effect, ordered, share=self.aim.share), bets, bounds)
        honest = simulation.run(simulation.ranks(None, ordered), bets, bounds)
        return SequentialPlan(
            ordered=ordered,
            mean=float(found.used.mean()),
            percentile_90=int(np.quantile(found.used, 0.9, method="higher")),
            honest_mean=float(honest.used.mean()),
            power=found.power,
            give_up=floor > 0.0,
        )

    def _fixed(self, ordered: int) -> tuple[float, stats.Bounds, stats.Bets]:
        settings = Sequential(give_up=self.give_up)
        test = design(self.calibration, [self.place] * ordered, self.aim.alpha, settings).test
        bets = test.bets if isinstance(test.bets, stats.Bets) else test.bets[self.place]
        return test.floor, stats.Bounds(alpha=self.aim.alpha, floor=test.floor), bets


def _warnings(
    calibration: Calibration, aim: Aim, multiple: float, effect: int, best: Option | None, places: Sequence[int]
) -> list[str]:
    found = []
    stored = calibration.effects[effect] if effect < len(calibration.effects) else multiple
    if stored < 0.99 * multiple:
        found.append(f"Planned with the largest size that the calibration holds, {stored:.3g} times the honest one.")
    fewest = min(len(scores_at(stack.sequences, p)) for stack in calibration.stacks for p in places)
    if fewest < 30:
        found.append(f"A stack has only {fewest} honest sequences of some length: take this as an order of magnitude.")
    if best is None:
        found.append(
            f"No number of sequences up to {_MOST_FIXED} finds it with power {aim.power:g}: enlarge the calibration, "
            "or audit for a larger deviation."
        )
        return found
    place = calibration.edges.index(best.tokens)
    least = max(
        stats.fewest_sequences(len(scores_at(stack.sequences, place)), aim.alpha) for stack in calibration.stacks
    )
    if best.fixed == least:
        found.append(f"Fewer than {least} sequences give no p-value below {aim.alpha:g}, whatever their scores.")
    if best.fixed is not None and best.fixed > fewest:
        found.append("More sequences than the calibration has of a stack: enlarge it first, its own luck decides much.")
    if multiple < 0.999 * calibration.effects[calibration.detect_place]:
        found.append("Smaller than what `consistent` rules out: for a verdict on it calibrate with --detect sigma=X.")
    return found


def _sequential_warnings(calibration: Calibration, aim: Aim, effect: int, best: Option) -> list[str]:
    if best.sequential is None:
        return [_no_sequential(calibration, aim, best)]
    if aim.share < 1.0 or not calibration.detect_place <= effect < len(calibration.effects):
        return ["The sequential audit must not give up for it: audit with --sequential --never-give-up."]
    return []


def _no_sequential(calibration: Calibration, aim: Aim, best: Option) -> str:
    place = calibration.edges.index(best.tokens)
    if not informed_at(calibration, [place]):
        return "A sequential audit cannot be planned: the calibration's fit part has too few sequences of that length."
    fewest = min(len(scores_at(stack.sequences, place)) for stack in calibration.stacks)
    wanted = int(np.ceil(1.0 / (aim.alpha * aim.share)))
    if aim.share < 1.0 and fewest < wanted:
        return (
            f"A sequential audit does not reach that power: one deviating request among many can be decisive only "
            f"against about {wanted} honest sequences of each stack, and one has {fewest}."
        )
    return f"A sequential audit does not reach that power within {_MOST_SEQUENTIAL} sequences."
