"""The audit: where traces, reference, calibration and test meet. See `audit` for the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from veridifr import stats
from veridifr._version import __version__
from veridifr.calibration import Calibration, prompt_digest
from veridifr.contracts.base import Contract
from veridifr.contracts.registry import infer
from veridifr.diagnosis import diagnose
from veridifr.errors import CalibrationError, TraceError, UnsupportedError
from veridifr.evidence import Evidence
from veridifr.finding import (
    Diagnosis,
    Finding,
    LogitNoise,
    Provenance,
    SequenceResult,
    StackResult,
    TestSummary,
    TokenNote,
    Verdict,
)
from veridifr.hypotheses import ScoredSequence
from veridifr.likelihood import SIGMA_GRID, fit_sigma, log_likelihoods, sigma_interval
from veridifr.references import Reference
from veridifr.replay import Replayer
from veridifr.requests import Planned, plan
from veridifr.scores import Hypothesis, Scores, Status
from veridifr.scoring import score
from veridifr.statistic import edge_of
from veridifr.stats.power import power
from veridifr.trace import EngineRecord, Trace

Floats = npt.NDArray[np.float64]
ALPHA = 0.01
POWER = 0.9
COVERAGE = 0.95
WORST_TOKENS = 8
_CONTEXT = 12
_LIMIT = 10_000
"""Longest audit, in sequences, that the report suggests."""
_COPIES = 20
"""Simulated deviating audits are drawn from this many noise draws; see `calibration`."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Names and SHA-256 digests of the files that an audit was given, for its provenance."""

    traces: tuple[tuple[str, str], ...] = ()
    calibration: tuple[str, str] | None = None


def audit(
    traces: Sequence[Trace],
    reference: Reference,
    calibration: Calibration,
    alpha: float = ALPHA,
    *,
    requests: Sequence[Trace] | None = None,
    engine: EngineRecord | None = None,
    replayer: Replayer | None = None,
    sources: Sources | None = None,
    seed: int = 0,
) -> Finding:
    """Judge whether `traces` came from the model, weights and sampling settings that they claim.

    `alpha` is the probability with which an honest provider is called divergent. `requests` is what the verifier asked
    for, as traces whose outputs are ignored; without it the claims stand in. `engine` fixes the engine record; default
    the first trace's. `seed` draws the permutations. Steps: (1) fix the record and its contract, (2) check that the
    calibration fits, (3) replay and score every sequence that was asked for, (4) test their scores against each honest
    stack at matched lengths, (5) weigh power and coverage, (6) if divergent, look for the cause.

    Raises `TraceError` for no or duplicate traces and `CalibrationError` for a calibration made for something else; a
    sampler that cannot be replayed is not an error but the verdict `unsupported`.
    """
    # (1) one record for the whole audit, before any token is looked at
    head = _first(traces, requests)
    _check(traces, alpha)
    record = engine or head.engine
    planned, assumptions = plan(traces, requests, record, reference.eos_ids, reference.decode)
    run = _Run(reference, calibration, alpha, np.random.default_rng(seed), sources or Sources(), head, record)
    try:
        inference = infer(record, head.sampling, reference.vocab_size)
    except UnsupportedError as error:
        return run.unsupported(planned, str(error), tuple(assumptions))
    assumptions += inference.assumptions
    # (2) the calibration must be for this model, contract and setting
    calibration.check_fits(reference, head.sampling, inference.contract.id)
    # (3) evidence and scores; a sequence that cannot be scored keeps its reason and counts against coverage
    items, left_out = _score_all(planned, head, inference.contract, reference, replayer)
    if not stated_prompts_fresh(items, calibration):
        assumptions.append("Some prompts also occur in the calibration, so scores are compared with their own twins.")
    return run.judge(planned, items, left_out, inference.contract, tuple(assumptions))


def _first(traces: Sequence[Trace], requests: Sequence[Trace] | None) -> Trace:
    if requests:
        by_id = {trace.id: trace for trace in traces}
        request = next((r for r in requests if r.id in by_id), requests[0])
        return replace(by_id.get(request.id, request), sampling=request.sampling)
    if not traces:
        raise TraceError("traces: got none, and no requests that would say what is missing")
    return traces[0]


def _check(traces: Sequence[Trace], alpha: float) -> None:
    if not 0.0 < alpha < 0.5:
        raise TraceError(f"alpha: got {alpha}, expected above 0 and below 0.5")
    twice = [name for name, count in Counter(trace.id for trace in traces).items() if count > 1]
    if twice:
        raise TraceError(f"id: {twice[0]!r} names more than one sequence")


def stated_prompts_fresh(items: Sequence[_Item], calibration: Calibration) -> bool:
    """Whether no audited prompt is one of the calibration's: honest traces should have prompts of their own."""
    known = {sequence.prompt for stack in calibration.stacks for sequence in stack.sequences}
    return not any(prompt_digest(item.scored.trace) in known for item in items)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Item:
    """A planned sequence with its scores."""

    planned: Planned
    scored: ScoredSequence

    @property
    def scores(self) -> Scores:
        return self.scored.scores


def _score_all(
    planned: Sequence[Planned],
    head: Trace,
    contract: Contract,
    reference: Reference,
    replayer: Replayer | None,
) -> tuple[list[_Item], dict[str, str]]:
    """Scored sequences in the order planned, and the reason for each one that is not."""
    order = {item.id: place for place, item in enumerate(planned)}
    items, left_out = [], {}
    wanted = [_same_setting(item, head) for item in planned]
    for item, evidence in (replayer or Replayer(reference)).run(wanted, label="replay"):
        if item.trace is None or evidence is None:
            left_out[item.id] = item.reason or "no evidence"
            continue
        try:
            scored = _score_one(item.trace, evidence, contract, reference)
        except UnsupportedError as error:
            left_out[item.id] = str(error)
            continue
        items.append(_Item(planned=item, scored=scored))
    items.sort(key=lambda found: order[found.planned.id])
    return items, left_out


def _same_setting(item: Planned, head: Trace) -> Planned:
    """One audit, one setting: the calibration holds for the first sequence's."""
    if item.trace is None or item.trace.sampling.distribution() == head.sampling.distribution():
        return item
    return replace(item, trace=None, reason="sampling: another setting than the audit's first sequence")


def _score_one(trace: Trace, evidence: Evidence, contract: Contract, reference: Reference) -> ScoredSequence:
    claim = Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed)
    scores = score(trace, evidence, claim, eos_ids=reference.eos_ids)
    return ScoredSequence(trace=trace, evidence=evidence, claim=claim, scores=scores)


@dataclass(frozen=True, eq=False)
class _Run:
    """One audit on its way to a finding."""

    reference: Reference
    calibration: Calibration
    alpha: float
    rng: np.random.Generator
    sources: Sources
    head: Trace
    record: EngineRecord

    def unsupported(self, planned: Sequence[Planned], why: str, assumptions: tuple[str, ...]) -> Finding:
        """The finding of an audit whose sampler cannot be replayed."""
        left_out = {item.id: item.reason or why for item in planned}
        return self._finding(
            planned, [], left_out, None, assumptions, Verdict.UNSUPPORTED, None, None, why, _UNSUPPORTED_NEXT
        )

    def judge(
        self,
        planned: Sequence[Planned],
        items: Sequence[_Item],
        left_out: Mapping[str, str],
        contract: Contract,
        assumptions: tuple[str, ...],
    ) -> Finding:
        """Test, weigh and conclude."""
        # (4) sequences cut to the calibration's edges; lengths are strata
        places = [edge_of(item.planned.end, self.calibration.edges) for item in items]
        usable = [(item, place) for item, place in zip(items, places, strict=True) if place is not None]
        usable = [(item, place) for item, place in usable if not item.planned.forced and item.scores.usable_T.any()]
        if not usable:
            nothing = Verdict.UNSUPPORTED if left_out and not items else Verdict.NO_EVIDENCE
            why = next(iter(left_out.values()), "no token could be scored")
            return self._finding(
                planned, items, left_out, contract, assumptions, nothing, None, None, why, _UNSUPPORTED_NEXT
            )
        audited = {id(item): self._scores_at(item, place) for item, place in usable}
        summary, p_value = self._test(usable, audited)
        # (5) what the audit could have seen, and how much of what was asked for it saw
        verdict, why, following = self._conclude(summary, p_value, planned, items)
        return self._finding(
            planned, items, left_out, contract, assumptions, verdict, p_value, summary, why, following, audited
        )

    def _scores_at(self, item: _Item, place: int) -> float:
        edge = self.calibration.edges[place]
        return float(self.calibration.statistic.prefix_scores(item.scores, [edge])[0])

    def _test(self, usable: Sequence[tuple[_Item, int]], audited: Mapping[int, float]) -> tuple[TestSummary, float]:
        permutations = max(10_000, stats.permutations_for(self.alpha))
        places = [place for _, place in usable]
        values = np.array([audited[id(item)] for item, _ in usable])
        results = []
        for stack in self.calibration.stacks:
            honest, strata = _strata(
                [s.scores for s in stack.sequences], places, np.random.default_rng(len(stack.sequences))
            )
            known = np.isin(places, strata)
            if not known.any():
                raise CalibrationError(
                    f"calibration: {stack.name}: its sequences are too short to compare {len(places)} audited ones with"
                )
            result = stats.permutation_test(
                values[known],
                honest,
                permutations=permutations,
                rng=self.rng,
                strata_audited=np.array(places)[known],
                strata_honest=strata,
            )
            results.append(StackResult(name=stack.name, p_value=result.p_value, floor=result.floor, sequences=result.m))
        chance, further = self._power(places)
        summary = TestSummary(
            name="two-sample permutation test over sequences, largest p over the honest stacks",
            statistic="score of a sequence: log-likelihood of excess logit noise over honest noise, nats",
            permutations=permutations,
            stacks=tuple(results),
            detect_sigma=self.calibration.detect_sigma,
            power=chance,
            further_sequences=further,
        )
        return summary, max(result.p_value for result in results)

    def _power(self, places: Sequence[int]) -> tuple[float | None, int | None]:
        """Power at the audit's typical length, and how many further sequences reach `POWER`."""
        place = int(np.median(places))
        stacks = [_at(stack.sequences, place, "scores") for stack in self.calibration.stacks]
        deviating = np.concatenate([_at(stack.sequences, place, "deviating") for stack in self.calibration.stacks])
        stacks = [scores for scores in stacks if len(scores)]
        if not stacks or not len(deviating):
            return None, None
        rng = np.random.default_rng(self.rng.integers(2**63))
        chance = power(stacks, deviating, len(places), alpha=self.alpha, rng=rng).power
        if chance >= POWER:
            return chance, 0
        total = stats.sequences_needed(
            stacks, deviating, alpha=self.alpha, rng=rng, power=POWER, have=len(places), limit=_LIMIT
        )
        return chance, None if total is None else max(1, total - len(places))

    def _conclude(
        self, summary: TestSummary, p_value: float, planned: Sequence[Planned], items: Sequence[_Item]
    ) -> tuple[Verdict, str, str | None]:
        owed, scored = _owed(planned), _scored(items)
        covered = scored / owed if owed else 0.0
        if p_value <= self.alpha:
            why = f"An honest provider would score this high in at most {p_value:.2g} of audits."
            return Verdict.DIVERGENT, why, None
        enough = summary.power is not None and summary.power >= POWER
        if enough and covered >= COVERAGE:
            return (
                Verdict.CONSISTENT,
                (
                    f"Logit noise of {summary.detect_sigma:.3g} or more would have shown with probability "
                    f"{summary.power:.2f}, and {covered:.1%} of the tokens asked for were scored."
                ),
                None,
            )
        if covered < COVERAGE:
            why = f"Only {covered:.1%} of the tokens asked for could be scored; {COVERAGE:.0%} are needed."
            return Verdict.UNDECIDED, why, "Ask for the missing sequences and tokens again."
        return Verdict.UNDECIDED, *self._too_little(summary)

    def _too_little(self, summary: TestSummary) -> tuple[str, str]:
        floor = max((stack.floor for stack in summary.stacks), default=1.0)
        chance = "an unknown probability" if summary.power is None else f"probability {summary.power:.2f}"
        why = f"Logit noise of {summary.detect_sigma:.3g} would have shown with {chance} only; {POWER} is asked for."
        if floor > self.alpha:
            why = f"So few sequences cannot give a p-value below {floor:.2g}, and {self.alpha:g} is asked for."
        if summary.further_sequences is None:
            return why, "Enlarge the calibration, or audit for a larger deviation (calibrate --detect sigma=...)."
        return why, f"Audit about {summary.further_sequences} further sequences of this length."

    def _finding(
        self,
        planned: Sequence[Planned],
        items: Sequence[_Item],
        left_out: Mapping[str, str],
        contract: Contract | None,
        assumptions: tuple[str, ...],
        verdict: Verdict,
        p_value: float | None,
        summary: TestSummary | None,
        why: str,
        following: str | None,
        audited: Mapping[int, float] | None = None,
    ) -> Finding:
        statuses = _statuses(planned, items)
        usable = [item for item in items if item.scores.usable_T.any()]
        matches = _flat([item.scores.match_T[item.scores.usable_T] for item in usable])
        margins = _flat([item.scores.margin_T[item.scores.usable_T] for item in usable])
        diagnosis = Diagnosis()
        if verdict is Verdict.DIVERGENT:  # (6) only then: a cause is no second chance to accuse
            diagnosis = diagnose([item.scored for item in usable], self.calibration.statistic, self.rng)
        return Finding(
            verdict=verdict,
            alpha=self.alpha,
            p_value=p_value,
            reason=why,
            next_step=following,
            test=summary,
            model=self.head.model,
            engine=_engine_text(self.record),
            contract=None if contract is None else contract.id,
            assumptions=assumptions,
            sequences=len(planned),
            sequences_unsupported=len(left_out),
            tokens_requested=_owed(planned),
            tokens_scored=statuses["scored"],
            tokens_by_status=statuses,
            exact_match=float(matches.mean()) if len(matches) else None,
            mean_margin=float(margins.mean()) if len(margins) else None,
            effective_logit_noise=self._noise(usable),
            diagnosis=diagnosis,
            provenance=self._provenance(items),
            results=_results(planned, items, left_out, audited or {}),
            worst_tokens=_worst(usable, self.reference) if verdict is Verdict.DIVERGENT else (),
            honest_scores=self._honest_scores(items),
            honest_exact_match=self.calibration.exact_match,
        )

    def _noise(self, items: Sequence[_Item]) -> LogitNoise:
        honest = self.calibration.statistic.sigma
        if not items:
            return LogitNoise(estimate=None, honest=honest, interval=None)
        epsilon = self.calibration.statistic.epsilon
        totals = np.array([log_likelihoods(i.scores, SIGMA_GRID, epsilon=epsilon).sum(axis=0) for i in items])
        interval = sigma_interval(totals, SIGMA_GRID, self.rng) if len(items) > 1 else None
        return LogitNoise(estimate=fit_sigma(totals, SIGMA_GRID), honest=honest, interval=interval)

    def _honest_scores(self, items: Sequence[_Item]) -> dict[str, tuple[float, ...]]:
        places = [edge_of(item.planned.end, self.calibration.edges) for item in items]
        known = [place for place in places if place is not None]
        if not known:
            return {}
        place = int(np.median(known))
        return {s.name: tuple(_at(s.sequences, place, "scores").tolist()) for s in self.calibration.stacks}

    def _provenance(self, items: Sequence[_Item]) -> Provenance:
        name, digest = self.sources.calibration or (None, "not from a file")
        settings = dict(self.reference.settings)
        tokens = sum(item.scored.evidence.tokens for item in items)
        if tokens:
            settings["hashes_per_token"] = round(sum(item.scores.hashes for item in items) / tokens, 1)
        return Provenance(
            veridifr=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            traces=self.sources.traces,
            reference=self.reference.name,
            weights=self.reference.weights_digest,
            calibration=digest,
            calibration_file=name,
            settings=settings,
        )


_UNSUPPORTED_NEXT = (
    "Ask the provider for a setting or an engine record that can be replayed; `veridifr samplers` lists them."
)


def _strata(
    sequences: Sequence[Sequence[float]], places: Sequence[int], rng: np.random.Generator
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Honest scores and their strata: every honest sequence stands in one stratum that it is long enough for.

    Strata (edges) are given out in proportion to the audited sequences, the longest first, by length and lot alone:
    an honest sequence in two strata, or placed by its score, would break the permutation argument.
    """
    wanted = Counter(places)
    free = [int(i) for i in rng.permutation(len(sequences))]
    chosen: list[tuple[int, int]] = []
    for number, place in enumerate(sorted(wanted, reverse=True)):
        fit = [i for i in free if len(sequences[i]) > place]
        left = sum(wanted[p] for p in sorted(wanted, reverse=True)[number:])
        share = len(fit) if wanted[place] == left else -(-len(fit) * wanted[place] // left)
        chosen += [(i, place) for i in fit[:share]]
        free = [i for i in free if i not in set(fit[:share])]
    return (
        np.array([sequences[i][place] for i, place in chosen], dtype=np.float64),
        np.array([place for _, place in chosen], dtype=np.int64),
    )


def _at(sequences: Sequence[object], place: int, name: str) -> Floats:
    rows = [getattr(sequence, name) for sequence in sequences]
    return np.array([row[place] for row in rows if len(row) > place], dtype=np.float64)


def _owed(planned: Sequence[Planned]) -> int:
    return sum(item.tokens for item in planned if not item.forced)


def _scored(items: Sequence[_Item]) -> int:
    return sum(int(item.scores.usable_T.sum()) for item in items if not item.planned.forced)


def _statuses(planned: Sequence[Planned], items: Sequence[_Item]) -> dict[str, int]:
    """Tokens by status; what was asked for and is not there is missing."""
    found = {status.name.lower(): 0 for status in Status}
    covered = 0
    for item in items:
        if item.planned.forced:
            continue
        counts = np.bincount(item.scores.status_T, minlength=len(Status))
        for status in Status:
            found[status.name.lower()] += int(counts[status])
        covered += item.scored.evidence.tokens
    found["missing"] += max(0, _owed(planned) - covered)
    found["forced"] += sum(item.tokens for item in planned if item.forced)
    return found


def _results(
    planned: Sequence[Planned], items: Sequence[_Item], left_out: Mapping[str, str], audited: Mapping[int, float]
) -> tuple[SequenceResult, ...]:
    by_id = {item.planned.id: item for item in items}
    results = []
    for entry in planned:
        item = by_id.get(entry.id)
        used = None if item is None else item.scores.usable_T
        some = item is not None and used is not None and bool(used.any())
        results.append(
            SequenceResult(
                id=entry.id,
                tokens_by_status=_statuses([entry], [item] if item is not None else []),
                exact_match=float(item.scores.match_T[used].mean()) if item is not None and some else None,
                mean_margin=float(item.scores.margin_T[used].mean()) if item is not None and some else None,
                score=audited.get(id(item)) if item is not None else None,
                reason=left_out.get(entry.id),
            )
        )
    return tuple(results)


def _worst(items: Sequence[_Item], reference: Reference) -> tuple[TokenNote, ...]:
    """The tokens with the largest margins, at most two of a sequence, so that one bad sequence does not fill the page."""
    found: list[tuple[float, _Item, int]] = []
    for item in items:
        margin_T = np.where(item.scores.usable_T, item.scores.margin_T, 0.0)
        found += [(float(margin_T[step]), item, int(step)) for step in np.argsort(-margin_T)[:2] if margin_T[step] > 0]
    found.sort(key=lambda entry: -entry[0])
    return tuple(_note(item, step, margin, reference) for margin, item, step in found[:WORST_TOKENS])


def _note(item: _Item, step: int, margin: float, reference: Reference) -> TokenNote:
    trace = item.scored.trace
    output, best = trace.output_token_ids, int(item.scores.best_T[step])
    everything = np.concatenate([trace.prompt_token_ids, output[:step]])
    return TokenNote(
        sequence=trace.id,
        step=step,
        claimed_id=int(output[step]),
        best_id=best,
        margin=margin,
        before=reference.decode(everything[-_CONTEXT:].tolist()),
        claimed=reference.decode([int(output[step])]),
        after=reference.decode(output[step + 1 : step + 1 + _CONTEXT].tolist()),
        best=reference.decode([best]),
    )


def _flat(arrays: Sequence[npt.NDArray[np.generic]]) -> Floats:
    return np.concatenate(arrays).astype(np.float64) if arrays else np.empty(0)


def _engine_text(record: EngineRecord) -> str:
    parts = [record.name, record.version, record.runner and f"runner {record.runner}", record.device, record.dtype]
    return ", ".join(part for part in parts if part)
