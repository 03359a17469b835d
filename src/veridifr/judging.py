"""From scores to a verdict: the test at matched lengths, the power that the audit had, and what follows from both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from veridifr import stats
from veridifr.calibration import Calibration, scores_at
from veridifr.contracts.registry import Mode
from veridifr.effects import rounded
from veridifr.errors import CalibrationError
from veridifr.finding import FingerprintSummary, StackResult, TestSummary, Verdict
from veridifr.requests import Planned
from veridifr.scored import ScoredItem, reaching, tokens_by_status, tokens_owed, tokens_scored
from veridifr.statistic import edge_of
from veridifr.stats.power import power
from veridifr.strata import matched

Floats = npt.NDArray[np.float64]
POWER = 0.9
"""Chance of seeing the declared deviation that `consistent` takes."""
COVERAGE = 0.95
"""Share of the tokens asked for that must be scored for `consistent`."""
FEWEST_PERMUTATIONS = 10_000
STATISTICS: Mapping[Mode, str] = {
    "seeded": "score of a sequence (log-likelihood ratio, cut at 40), nats",
    "greedy": "score of a sequence (log-likelihood ratio, cut at 40), nats",
    "distribution": "score of a sequence (log-likelihood ratio of draws with unknown noise, cut at 40), nats",
}
_LIMIT = 10_000
"""Longest audit, in sequences, that is ever suggested."""
_LIST_MORE = (
    "Most of the others are bounds, since an unlisted token might have won: let the reference list more "
    "(--top-logprobs), or ask for a top-k or top-p that keeps fewer."
)
_ASK_AGAIN = "Ask for a setting or an engine record that can be replayed; `veridifr samplers` lists them."


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with its reasons. `scores` gives the score of each sequence that was tested, by id."""

    verdict: Verdict
    why: str
    next_step: str | None = None
    p_value: float | None = None
    test: TestSummary | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    fingerprints: FingerprintSummary | None = None


def nothing_scored(why: str, *, unsupported: bool) -> Judgement:
    """The judgement where no sequence could be scored at all."""
    verdict = Verdict.UNSUPPORTED if unsupported else Verdict.NO_EVIDENCE
    return Judgement(verdict=verdict, why=why, next_step=_ASK_AGAIN)


def judge(
    planned: Sequence[Planned],
    items: Sequence[ScoredItem],
    calibration: Calibration,
    alpha: float,
    rng: np.random.Generator,
) -> Judgement | None:
    """Test the sequences that speak and weigh what the test could see; None if none reaches an edge."""
    usable = reaching(items, calibration.edges)
    if not usable:
        return None
    places = np.array([place for _, place in usable], dtype=np.int64)
    values = np.array([score_at(item, place, calibration) for item, place in usable])
    summary = _test(values, places, calibration, alpha, rng)
    p_value = max(stack.p_value for stack in summary.stacks)
    scores = {item.planned.id: float(value) for (item, _), value in zip(usable, values, strict=True)}
    covered = covered_share(planned, items)
    verdict, why, following = _conclude(summary, p_value, covered, alpha)
    if verdict is Verdict.UNDECIDED and covered < COVERAGE and _mostly_bounds(planned, items):
        following = _LIST_MORE
    return Judgement(verdict=verdict, why=why, next_step=following, p_value=p_value, test=summary, scores=scores)


def covered_share(planned: Sequence[Planned], items: Sequence[ScoredItem]) -> float:
    """Share of the tokens asked for that were scored; 0 if none was asked for."""
    owed = tokens_owed(planned)
    return tokens_scored(items) / owed if owed else 0.0


def _mostly_bounds(planned: Sequence[Planned], items: Sequence[ScoredItem]) -> bool:
    """Whether most of the tokens that were asked for and are not scored were replayed, but left open."""
    counts = tokens_by_status(planned, items)
    return counts["bound"] > counts["missing"]


def honest_scores(items: Sequence[ScoredItem], calibration: Calibration) -> dict[str, tuple[float, ...]]:
    """Scores of each honest stack at the audit's typical length."""
    places = [edge_of(item.planned.end, calibration.edges) for item in items]
    known = [place for place in places if place is not None]
    if not known:
        return {}
    place = int(np.median(known))
    return {stack.name: tuple(scores_at(stack.sequences, place).tolist()) for stack in calibration.stacks}


def score_at(item: ScoredItem, place: int, calibration: Calibration) -> float:
    """The score of a sequence cut at edge number `place`."""
    return float(rounded(calibration.statistic.prefix_scores(item.scores, [calibration.edges[place]]))[0])


def _test(
    values_N: Floats,
    places_N: npt.NDArray[np.int64],
    calibration: Calibration,
    alpha: float,
    rng: np.random.Generator,
) -> TestSummary:
    honest = [(stack.name, [s.scores for s in stack.sequences]) for stack in calibration.stacks]
    results = stack_results(values_N, places_N, honest, alpha, rng)
    chance, further = _power(places_N, calibration, alpha, rng)
    return TestSummary(
        name="two-sample permutation test over sequences, largest p over the honest stacks",
        statistic=STATISTICS[calibration.mode],
        permutations=_permutations(alpha),
        stacks=results,
        detect_sigma=calibration.detect_sigma,
        power=chance,
        further_sequences=further,
    )


def _permutations(alpha: float) -> int:
    return max(FEWEST_PERMUTATIONS, stats.permutations_for(alpha))


def stack_results(
    values_N: Floats,
    places_N: npt.NDArray[np.int64],
    honest: Sequence[tuple[str, Sequence[Sequence[float]]]],
    alpha: float,
    rng: np.random.Generator,
) -> tuple[StackResult, ...]:
    """The test of audited scores, each cut at an edge, against every honest stack: its name, and for each of its
    sequences the scores at the edges that it reaches."""
    results = []
    for name, sequences in honest:
        honest_M, strata_M = matched(sequences, places_N.tolist())
        known_N = np.isin(places_N, strata_M)
        if not known_N.any():
            raise CalibrationError(
                f"calibration: {name}: its sequences are too short to compare {len(places_N)} audited ones with"
            )
        result = stats.permutation_test(
            values_N[known_N],
            honest_M,
            permutations=_permutations(alpha),
            rng=rng,
            strata_audited=places_N[known_N],
            strata_honest=strata_M,
        )
        results.append(StackResult(name=name, p_value=result.p_value, floor=result.floor, sequences=result.m))
    return tuple(results)


def _power(
    places_N: npt.NDArray[np.int64], calibration: Calibration, alpha: float, rng: np.random.Generator
) -> tuple[float | None, int | None]:
    """Power at the audit's typical length, and how many further sequences reach `POWER`; None where not known."""
    place, count = int(np.median(places_N)), len(places_N)
    stacks = [scores_at(stack.sequences, place) for stack in calibration.stacks]
    detect = calibration.detect_place
    deviating = np.concatenate([scores_at(stack.sequences, place, detect) for stack in calibration.stacks])
    if not len(deviating) or not all(len(scores) for scores in stacks):
        return None, None
    chance = power(stacks, deviating, count, alpha=alpha, rng=rng).power
    if chance >= POWER:
        return chance, 0
    total = stats.sequences_needed(stacks, deviating, alpha=alpha, rng=rng, power=POWER, have=count, limit=_LIMIT)
    return chance, None if total is None else max(1, total - count)


def _conclude(summary: TestSummary, p_value: float, covered: float, alpha: float) -> tuple[Verdict, str, str | None]:
    if p_value <= alpha:
        why = f"Its sequences score higher than those of every honest stack (largest p {p_value:.2g}, alpha {alpha:g})."
        return Verdict.DIVERGENT, why, None
    if covered < COVERAGE:
        why = f"Only {covered:.1%} of the tokens asked for could be scored; {COVERAGE:.0%} are needed."
        return Verdict.UNDECIDED, why, "Ask for the missing sequences and tokens again."
    if summary.power is None or summary.power < POWER:
        return Verdict.UNDECIDED, *_too_little(summary, alpha)
    why = (
        f"Logit noise of {summary.detect_sigma:.3g} or more would have shown with probability {summary.power:.2f}, "
        f"and {covered:.1%} of the tokens asked for were scored."
    )
    return Verdict.CONSISTENT, why, None


def _too_little(summary: TestSummary, alpha: float) -> tuple[str, str]:
    floor = max((stack.floor for stack in summary.stacks), default=1.0)
    chance = "an unknown probability" if summary.power is None else f"probability {summary.power:.2f}"
    why = f"Logit noise of {summary.detect_sigma:.3g} would have shown with {chance} only; {POWER} is asked for."
    if floor > alpha:
        why = f"So few sequences cannot give a p-value below {floor:.2g}, and {alpha:g} is asked for."
    if summary.further_sequences is None:
        return why, "Enlarge the calibration, or audit for a larger deviation (calibrate --detect sigma=...)."
    count = summary.further_sequences
    return why, f"Audit about {count} further {'sequence' if count == 1 else 'sequences'} of this length."
