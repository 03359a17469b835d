"""One verdict at one alpha from tokens and fingerprints: each is tested at alpha / 2.

By Bonferroni's inequality min(1, 2 min(p_tokens, p_fingerprints)) is a valid p-value whatever the dependence between
the two, and they are strongly dependent: both come from the same forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from veridifr.calibration import Calibration
from veridifr.errors import CalibrationError, FingerprintError, TraceError
from veridifr.evidence import Evidence
from veridifr.finding import Diagnosis, FingerprintSummary, StackResult, Verdict
from veridifr.fingerprint_null import FingerprintNull, Measured, measure, prefix_scores
from veridifr.fingerprints.attached import KEY
from veridifr.fingerprints.opened import Openings
from veridifr.fingerprints.spec import FINAL, layer_of
from veridifr.judging import COVERAGE, Judgement, judge, stack_results
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.scored import ScoredItem, tokens_owed
from veridifr.statistic import edge_of
from veridifr.stats import SequentialOutcome, SequentialStatus
from veridifr.trace import Trace

MODES = ("auto", "required", "off")


@dataclass(frozen=True, kw_only=True, eq=False)
class Settled:
    """Whether fingerprints are used: `null` is None if not, and `assumptions` then say so."""

    replayer: Replayer
    calibration: Calibration
    null: FingerprintNull | None
    assumptions: tuple[str, ...] = ()
    openings: Openings | None = None
    """With it fingerprints are of one tap, opened from a commitment; `null` is about that tap alone."""

    def measure(self, trace: Trace, evidence: Evidence) -> Measured:
        """The fingerprint of a trace against its evidence; `FingerprintError` if there is none to compare."""
        whole, null = self.calibration.fingerprints, self.null
        if whole is None or null is None:
            raise FingerprintError("fingerprint: not settled")
        if self.openings is not None:
            self.openings.check(trace, whole.spec)
            evidence = _alone(evidence, whole.spec.taps.index(self.openings.tap))
        return measure(trace, evidence, null.spec, sensitivity=null.sensitivity)


def settle(mode: str | Openings, traces: Sequence[Trace], calibration: Calibration, replayer: Replayer) -> Settled:
    """Decide, before any score is seen, whether fingerprints are tested.

    auto: if the calibration knows them, any trace has one, and the reference can project. required: always, with an
    error where that cannot be. off: never. `Openings`: required, and only what opens a root counts.
    """
    openings = mode if isinstance(mode, Openings) else None
    mode = "required" if isinstance(mode, Openings) else mode
    if mode not in MODES:
        raise TraceError(f"fingerprints: got {mode!r:.40}, expected one of {', '.join(MODES)}")
    null, must = calibration.fingerprints, mode == "required"
    sent = any(trace.extra.get(KEY) is not None for trace in traces)
    why = None
    if null is None:
        if must:
            raise CalibrationError("calibration: fingerprints: required, and it was made without them")
        why = "the calibration knows nothing of them" if sent else ""
    elif mode == "off":
        why = "they were switched off"
    elif not (must or sent):
        why = "no trace has one"
    elif not must and replayer.reference.measuring(null.spec, sensitivity=null.sensitivity) is None:
        why = "the reference cannot give projections" + " and their sensitivity" * null.sensitivity
    if null is None or why is not None:
        said = (f"Fingerprints are not used: {why}. The verdict is about tokens alone.",) if why else ()
        return Settled(replayer=replayer, calibration=calibration, null=None, assumptions=said)
    measuring = replayer.with_projections(null.spec, sensitivity=null.sensitivity)
    if openings is None:
        return Settled(replayer=measuring, calibration=calibration, null=null)
    told = (
        f"Tap {openings.tap} was named only after the roots of the commitments had been received: the verifier's word."
    )
    alone = null.alone(openings.tap)
    return Settled(replayer=measuring, calibration=calibration, null=alone, assumptions=(told,), openings=openings)


def judge_both(
    settled: Settled,
    traces: Sequence[Trace],
    planned: Sequence[Planned],
    items: Sequence[ScoredItem],
    alpha: float,
    rng: np.random.Generator,
) -> Judgement | None:
    """Test the tokens, and the fingerprints where `settled` says so; None if no token can be tested."""
    if settled.null is None:
        return judge(planned, items, settled.calibration, alpha, rng)
    found = judge(planned, items, settled.calibration, alpha / 2, rng)
    sent = {trace.id: trace for trace in traces}
    return None if found is None else weigh(found, settled, planned, items, sent, alpha, rng)


def weigh(
    found: Judgement,
    settled: Settled,
    planned: Sequence[Planned],
    items: Sequence[ScoredItem],
    sent: Mapping[str, Trace],
    alpha: float,
    rng: np.random.Generator,
    ended: SequentialOutcome | None = None,
) -> Judgement:
    """The judgement of tokens and fingerprints together. `found` is that of the tokens at alpha / 2, `sent` the traces
    as the provider sent them, by id; `ended` how the fingerprints' own test ended in a sequential audit."""
    null = settled.null
    if null is None or found.p_value is None:
        return found
    measured, reasons = _measured(settled, planned, items, sent)
    compared = _Compared.of(measured, null, settled.calibration.edges)
    if ended is not None:
        p_value = ended.p_value if ended.n else None
        speak_prints = ended.status is SequentialStatus.REJECTED
    else:
        results = [] if compared is None else compared.test(0, alpha / 2, rng)
        p_value = max((result.p_value for result in results), default=None)
        speak_prints = p_value is not None and p_value <= alpha / 2
    tap = compared.first_tap(alpha / 2, rng) if compared is not None and speak_prints else None
    summary = FingerprintSummary(
        spec=null.spec.digest().hex(),
        p_value=p_value,
        tokens_p_value=found.p_value,
        sequences=len(measured),
        missing=len(reasons),
        speaks=_speaks(found.verdict is Verdict.DIVERGENT, speak_prints),
        tap=tap,
        reasons=reasons,
    )
    lower = found.p_value if p_value is None else min(found.p_value, p_value)
    owed = tokens_owed(planned)
    covered = sum(one.tokens for one in measured) / owed if owed else 0.0
    joined = replace(found, p_value=min(1.0, 2 * lower), fingerprints=summary)
    return _conclude(joined, summary, covered, alpha)


def _alone(evidence: Evidence, tap: int) -> Evidence:
    """Evidence with what it says of one tap's hidden states alone."""
    own_AFK, apart_AF = evidence.projections_AFK, evidence.sensitivity_AF
    return replace(
        evidence,
        projections_AFK=None if own_AFK is None else own_AFK[tap : tap + 1],
        sensitivity_AF=None if apart_AF is None else apart_AF[tap : tap + 1],
    )


def explained(summary: FingerprintSummary) -> Diagnosis:
    """The diagnosis where the fingerprints speak alone: the tokens have nothing to explain."""
    where = f" The first depth at which they do not fit is {summary.tap}." if summary.tap else ""
    sentence = f"The hidden states that were sent are not those of the claimed model; the tokens do not show it.{where}"
    return Diagnosis(code="unexplained", sentence=sentence)


def _measured(
    settled: Settled, planned: Sequence[Planned], items: Sequence[ScoredItem], sent: Mapping[str, Trace]
) -> tuple[list[Measured], dict[str, str]]:
    """Fingerprints that can be compared, and why each other one that was owed is missing."""
    by_id, shortest = {item.planned.id: item for item in items}, settled.calibration.edges[0]
    measured, reasons = [], {}
    for entry in planned:
        item = by_id.get(entry.id)
        if entry.forced:
            continue
        if item is None:
            reasons[entry.id] = "its tokens could not be replayed"
            continue
        try:
            one = settled.measure(sent[entry.id], item.scored.evidence)
        except FingerprintError as error:
            reasons[entry.id] = str(error)
            continue
        if one.tokens < shortest:
            reasons[entry.id] = f"{one.tokens} tokens are fewer than the calibration's shortest length of {shortest}"
        else:
            measured.append(one)
    return measured, reasons


@dataclass(frozen=True, kw_only=True, eq=False)
class _Compared:
    """Audited scores, one row over all taps and with several taps one for each, and where each sequence was cut."""

    null: FingerprintNull
    values_RN: npt.NDArray[np.float64]
    places_N: npt.NDArray[np.int64]

    @classmethod
    def of(cls, measured: Sequence[Measured], null: FingerprintNull, edges: Sequence[int]) -> _Compared | None:
        # Every stack has honest sequences of this length; a longer audited one is cut to it.
        last = min(max(len(one.scores[0]) for one in stack.sequences) for stack in null.stacks) - 1
        placed = [(one, edge_of(one.tokens, edges)) for one in measured]
        usable = [(one, min(place, last)) for one, place in placed if place is not None]
        if not usable or last < 0:
            return None
        columns = [prefix_scores(one, null.spec, null.scales, [edges[place]])[:, 0] for one, place in usable]
        return cls(
            null=null, values_RN=np.stack(columns, axis=1), places_N=np.array([p for _, p in usable], dtype=np.int64)
        )

    def test(self, row: int, alpha: float, rng: np.random.Generator) -> Sequence[StackResult]:
        honest = [(stack.name, [one.scores[row] for one in stack.sequences]) for stack in self.null.stacks]
        return stack_results(self.values_RN[row], self.places_N, honest, alpha, rng)

    def first_tap(self, alpha: float, rng: np.random.Generator) -> str | None:
        """The first tap in depth that rejects by itself, at its share of alpha; None with one tap."""
        taps = self.null.spec.taps
        if len(taps) == 1:
            return None
        deep = {tap: number for tap in taps if (number := layer_of(tap)) is not None}
        for tap in sorted(taps, key=lambda tap: (tap == FINAL, deep.get(tap, 0))):
            results = self.test(1 + taps.index(tap), alpha / len(taps), rng)
            if max(result.p_value for result in results) <= alpha / len(taps):
                return tap
        return None


def _speaks(tokens: bool, prints: bool) -> str | None:
    if tokens and prints:
        return "both"
    return "tokens" if tokens else "fingerprints" if prints else None


def _conclude(found: Judgement, summary: FingerprintSummary, covered: float, alpha: float) -> Judgement:
    ps = f"p {summary.tokens_p_value:.2g} for tokens, {_shown(summary.p_value)} for fingerprints, each at {alpha / 2:g}"
    told = {
        "tokens": f"Its tokens score higher than those of every honest stack, its fingerprints do not ({ps}).",
        "fingerprints": f"Its fingerprints score higher than those of every honest stack, its tokens do not ({ps}).",
        "both": f"Its tokens and its fingerprints score higher than those of every honest stack ({ps}).",
    }
    if summary.speaks is not None:
        return replace(found, verdict=Verdict.DIVERGENT, why=told[summary.speaks], next_step=None)
    if found.verdict is not Verdict.CONSISTENT:
        return found
    if covered < COVERAGE:
        first = next(iter(summary.reasons.values()), "too few tokens")
        why = (
            f"Only {covered:.1%} of the tokens asked for came with a fingerprint that could be compared; "
            f"{COVERAGE:.0%} are needed (first reason: {first})."
        )
        step = "Ask for the missing fingerprints again."
        return replace(found, verdict=Verdict.UNDECIDED, why=why, next_step=step)
    count = f"{summary.sequences} fingerprint{'' if summary.sequences == 1 else 's'}"
    return replace(found, why=f"{found.why} {count} showed nothing either (p {_shown(summary.p_value)}).")


def _shown(p_value: float | None) -> str:
    return "not known" if p_value is None else f"{p_value:.2g}"
