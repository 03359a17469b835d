"""The sequential audit: looks sequence by sequence, in an order fixed beforehand, and stops once it is decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from veridifr import stats
from veridifr.betting import FEWEST_FIT_SCORES, Design, Sequential, design, simulation_of
from veridifr.calibration import Calibration
from veridifr.errors import TraceError
from veridifr.finding import SequentialSummary, StackResult, TestSummary, Verdict
from veridifr.fingerprint_stopping import Prints, PrintsState
from veridifr.judging import COVERAGE, POWER, STATISTICS, Judgement, covered_share, score_at
from veridifr.requests import Planned
from veridifr.scored import ScoredItem
from veridifr.statistic import edge_of
from veridifr.stats import SequentialStatus

ScoreSome = Callable[[Sequence[Planned]], tuple[list[ScoredItem], dict[str, str]]]
"""Replays and scores some planned sequences: those scored, and the reason for each that is not."""
STOPPED = "stopped"
"""The tokens' test where the fingerprints had rejected before it was decided."""
BLOCK = 8
"""Sequences replayed at a time: a batch for the reference, and at most so many replayed in vain."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Looked:
    """What a sequential audit looked at before it ended; `judgement` is None if nothing could be compared."""

    planned: list[Planned]
    items: list[ScoredItem]
    left_out: dict[str, str]
    judgement: Judgement | None
    prints: PrintsState | None = None
    """Where the test of fingerprints stood, None if there was none."""

    def judged(self, alpha: float, rng: np.random.Generator) -> Judgement | None:
        """The judgement of tokens and fingerprints together, at `alpha` for both."""
        if self.judgement is None or self.prints is None:
            return self.judgement
        return self.prints.weigh(self.judgement, self.planned, self.items, alpha, rng)


def purchases(planned: Sequence[Planned], ids: Sequence[str], settings: Sequential) -> list[list[Planned]]:
    """The planned sequences by purchase, each in its order. `ids` are those of the traces, as `settings.batches` cuts.

    What was asked for and never came stands in the last one. It moves no account, so it shifts nobody's place.
    """
    sizes = settings.batches or (len(ids),)
    if sum(sizes) != len(ids) or min(sizes) < 0:
        raise TraceError(f"sequential.batches: got {sum(sizes)} sequences in {len(sizes)}, the traces are {len(ids)}")
    numbers = [number for number, size in enumerate(sizes) for _ in range(size)]
    batch_of = dict(zip(ids, numbers, strict=True))
    batches: list[list[Planned]] = [[] for _ in sizes]
    for item in planned:
        batches[batch_of.get(item.id, len(sizes) - 1)].append(item)
    by_id = {item.id: item for item in planned}
    return [[by_id[name] for name in stats.audit_order(settings.seed, [i.id for i in batch])] for batch in batches]


def look(
    batches: Sequence[Sequence[Planned]],
    score_some: ScoreSome,
    calibration: Calibration,
    alpha: float,
    settings: Sequential,
    prints: Prints | None = None,
) -> Looked:
    """Look at the sequences one by one until the test is decided or the order spent. With `prints` tokens and
    fingerprints are each tested at alpha / 2, and either ends the audit by rejecting."""
    alpha = alpha if prints is None else alpha / 2
    order = [item for batch in batches for item in batch]
    ranked = [item for item in order if _can_speak(item)]
    reached = {item.id: edge_of(item.end, calibration.edges) for item in ranked}
    first = next((places for batch in batches if (places := _places(batch, reached))), None)
    if first is None:
        return Looked(
            planned=order, items=[], left_out={i.id: i.reason or "no evidence" for i in order}, judgement=None
        )
    fixed = design(calibration, first, alpha, settings)
    names = [item.id for item in ranked]
    state = fixed.test.start(fixed.honest, names)
    beside = None if prints is None else prints.begin(first, names, alpha, settings)
    items: list[ScoredItem] = []
    left_out: dict[str, str] = {}
    scores: dict[str, float] = {}
    last, ended = order[-1].id, False
    for start in range(0, len(ranked), BLOCK):
        block = ranked[start : start + BLOCK]
        scored, refused = score_some(block)
        by_id = {item.planned.id: item for item in scored}
        for item in block:
            place, found = fixed.place(reached[item.id]), by_id.get(item.id)
            value = score_at(found, place, calibration) if found and found.speaks and place is not None else None
            state = fixed.test.update(state, item.id, value, fixed.typical if place is None else place)
            items += [found] if found else []
            left_out |= {item.id: refused[item.id]} if item.id in refused else {}
            scores |= {} if value is None else {item.id: value}
            beside = None if beside is None else beside.after(item.id, found, reached[item.id])
            if ended := state.decided_at is not None or (beside is not None and beside.rejected):
                last = item.id
                break
        if ended:
            break
    seen = order[: 1 + next(place for place, item in enumerate(order) if item.id == last)]
    left_out |= {item.id: item.reason or "no evidence" for item in seen if item.trace is None}
    outcome = fixed.test.outcome(state)
    looked = Looked(planned=seen, items=items, left_out=left_out, judgement=None, prints=beside)
    if not outcome.n:
        return looked
    usable = sum(fixed.place(place) is not None for place in reached.values())
    summary = _summary(fixed, outcome, calibration, usable, settings)
    return replace(looked, judgement=_conclude(summary, outcome, looked, alpha, scores))


def _can_speak(item: Planned) -> bool:
    return item.trace is not None and not item.forced


def _places(batch: Sequence[Planned], reached: dict[str, int | None]) -> list[int]:
    found = [reached.get(item.id) for item in batch]
    return [place for place in found if place is not None]


def _summary(
    fixed: Design, outcome: stats.SequentialOutcome, calibration: Calibration, ordered: int, settings: Sequential
) -> TestSummary:
    power, further = _power(fixed, calibration, ordered)
    return TestSummary(
        name="sequential test over sequences (bets on ranks), smallest e-value over the honest stacks",
        statistic=STATISTICS[calibration.mode],
        permutations=0,
        stacks=tuple(
            StackResult(
                name=stack.name,
                p_value=bet.p_value,
                floor=fixed.test.alpha,
                sequences=sum(len(scores) for scores in honest.values()),
            )
            for stack, bet, honest in zip(calibration.stacks, outcome.stacks, fixed.honest, strict=True)
        ),
        detect_sigma=calibration.detect_sigma,
        power=power,
        further_sequences=further,
        sequential=SequentialSummary(
            status=STOPPED if outcome.status is SequentialStatus.OPEN else outcome.status.value,
            e_value=outcome.e_value,
            n=outcome.n,
            ordered=ordered,
            seed=settings.seed,
            floor=fixed.test.floor,
        ),
    )


def _power(fixed: Design, calibration: Calibration, ordered: int) -> tuple[float | None, int | None]:
    """The chance that the declared deviation would have been found within the order, and how many more reach `POWER`.

    Simulated on the fit part; None where that is too small to say.
    """
    if not fixed.informed:
        return None, None
    simulation = simulation_of(calibration, fixed.typical)
    bets = fixed.test.bets if isinstance(fixed.test.bets, stats.Bets) else fixed.test.bets[fixed.typical]
    bounds = stats.Bounds(alpha=fixed.test.alpha, floor=fixed.test.floor)
    effect = calibration.detect_place
    chance = simulation.run(simulation.ranks(effect, ordered), bets, bounds).power
    if chance >= POWER:
        return chance, 0
    for factor in (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0):
        total = int(factor * ordered) + 1
        if simulation.run(simulation.ranks(effect, total), bets, bounds).power >= POWER:
            return chance, total - ordered
    return chance, None


def _conclude(
    summary: TestSummary, outcome: stats.SequentialOutcome, looked: Looked, alpha: float, scores: dict[str, float]
) -> Judgement:
    covered = covered_share(looked.planned, looked.items)
    ordered = 0 if summary.sequential is None else summary.sequential.ordered
    used = f"after {outcome.n} of {ordered} sequences (e-value {outcome.e_value:.3g}, alpha {alpha:g})"
    verdict, following = Verdict.UNDECIDED, None
    if outcome.status is SequentialStatus.REJECTED:
        verdict = Verdict.DIVERGENT
        why = f"Its sequences score higher than those of every honest stack, decided {used}."
    elif covered < COVERAGE:
        why = f"Only {covered:.1%} of the tokens asked for could be scored; {COVERAGE:.0%} are needed."
        following = "Ask for the missing sequences and tokens again."
    elif summary.power is None:
        why = (
            f"Not divergent {used}, and the calibration cannot say what would have been found: it takes "
            f"{FEWEST_FIT_SCORES} sequences of this length in its fit part."
        )
        following = "Make a calibration with more sequences."
    elif summary.power < POWER:
        why = (
            f"Not divergent {used}. Logit noise of {summary.detect_sigma:.3g} would have shown with probability "
            f"{summary.power:.2f} only; {POWER} is asked for."
        )
        following = _buy(summary, outcome)
    else:
        verdict = Verdict.CONSISTENT
        ended = "The test gave up" if outcome.status is SequentialStatus.GIVEN_UP else "The test found nothing"
        why = (
            f"{ended} {used}. Logit noise of {summary.detect_sigma:.3g} or more would have shown with probability "
            f"{summary.power:.2f}, and {covered:.1%} of the tokens asked for so far were scored."
        )
    return Judgement(
        verdict=verdict, why=why, next_step=following, p_value=outcome.p_value, test=summary, scores=scores
    )


def _buy(summary: TestSummary, outcome: stats.SequentialOutcome) -> str:
    if outcome.status is SequentialStatus.GIVEN_UP:
        return "Audit other sequences with the fixed test, and count that as a second audit."
    if summary.further_sequences is None:
        return "Enlarge the calibration, or audit for a larger deviation (calibrate --detect sigma=...)."
    count = summary.further_sequences
    return f"Go on with about {count} further {'sequence' if count == 1 else 'sequences'} of this length."
