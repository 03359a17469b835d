"""The audit: where traces, reference, calibration and test meet. See `audit` for the steps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from veridifr import profiles, summaries
from veridifr._version import __version__
from veridifr.betting import Sequential
from veridifr.calibration import Calibration
from veridifr.contracts.base import Contract
from veridifr.contracts.registry import mode_of
from veridifr.diagnosis import diagnose
from veridifr.distribution_summary import summarize
from veridifr.errors import TraceError
from veridifr.finding import Diagnosis, Finding, Provenance, Verdict
from veridifr.fingerprint_judging import explained, judge_both, settle
from veridifr.fingerprint_stopping import Prints
from veridifr.fingerprints.opened import Openings
from veridifr.honest_traces import prompt_digest
from veridifr.judging import Judgement, honest_scores, nothing_scored
from veridifr.references import Reference
from veridifr.replay import Replayer
from veridifr.replayed import same_setting, score_all
from veridifr.requests import Planned, plan
from veridifr.retokenizing import retokenized
from veridifr.sampler_choice import OwnRecords, choose
from veridifr.scored import ScoredItem, tokens_by_status, tokens_owed
from veridifr.seed_use import seed_report
from veridifr.stopping import look, purchases
from veridifr.trace import EngineRecord, Trace

ALPHA = 0.01
"""Default probability with which an honest provider is called divergent."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Names and SHA-256 digests of the files that an audit was given, for its provenance."""

    traces: tuple[tuple[str, str], ...] = ()
    calibration: tuple[str, str] | None = None
    seed_commitment: str | None = None
    """The commitment to the secret that the seeds were checked with, None if they were not."""


def audit(  # noqa: PLR0913 (all but three have defaults)
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
    sequential: Sequential | bool = False,
    fingerprints: str | Openings = "auto",
    sampler: str = "auto",
) -> Finding:
    """Judge whether `traces` came from the model, weights and sampling settings that they claim.

    `alpha` is the probability with which an honest provider is called divergent. `requests` is what the verifier asked
    for, as traces whose outputs are ignored; without it the claims stand in. `engine` fixes the engine record; default
    the one that most traces state. `seed` draws the permutations. `fingerprints` is auto (those that traces carry, if
    the calibration knows them), required, off, or the `Openings` that they must open. `sampler` is auto (by the record;
    else as `identification` finds; else the tokens' distribution, if calibrated for it) or unknown (that at once).
    Steps: (1) fix the record and its contract, (2) check that the calibration fits, (3) replay and score every sequence
    that was asked for, (4) test their scores against each honest stack at matched lengths and weigh power and coverage,
    (5) if divergent, look for the cause.

    With `sequential` they are replayed one by one, in an order fixed by its seed, until the test is decided. To go on,
    give old and new traces, and the sizes of both purchases as `Sequential.batches`.

    Raises `TraceError` for no or duplicate traces and `CalibrationError` for a calibration made for something else; a
    sampler that cannot be replayed is not an error but the verdict `unsupported`.
    """
    _check(traces, requests, alpha)
    prints = settle(fingerprints, traces, calibration, replayer or Replayer(reference))
    # (1) one record and one setting for the whole audit, from what is stated and before any token is looked at
    record = engine or _commonest([trace.engine for trace in traces], requests)
    traces = retokenized(traces, prints.replayer, requests or ())
    planned, assumptions = plan(traces, requests, record, reference.eos_ids, reference.decode)
    chosen = choose(planned, sampler, OwnRecords(engine=engine, requests=requests or ()), calibration, prints.replayer)
    if not isinstance(chosen, str) and chosen.identified:  # only now texts can be split as their sampler would have
        traces = retokenized(traces, prints.replayer, requests or (), chosen.contract.id)
        planned, assumptions = plan(traces, requests, record, reference.eos_ids, reference.decode)
        chosen = chosen.of(planned)
    run = _Run(
        reference=reference,
        calibration=calibration,
        alpha=alpha,
        rng=np.random.default_rng(seed),
        sources=sources or Sources(),
        model=traces[0].model if traces else "",
        record=record,
        planned=planned,
        quiet=prints.replayer.quiet,
    )
    seeds = seed_report(item.trace for item in planned if item.trace is not None).sentences
    if isinstance(chosen, str):
        return run.unsupported(chosen, (*assumptions, *seeds))
    head, contract = chosen.head, chosen.contract
    assumptions += seeds if mode_of(contract.id) == "seeded" else ()
    assumptions += (*chosen.assumptions, *prints.assumptions, *_other_model(head, calibration))
    # (2) the calibration must be for this model, contract and setting
    calibration.check_fits(reference, head.sampling, contract.id)
    run = replace(run, planned=[same_setting(item, head) for item in chosen.planned])

    def score_some(some: Sequence[Planned]) -> tuple[list[ScoredItem], dict[str, str]]:
        return score_all(some, contract, reference, prints.replayer)

    # (3) evidence and scores; what cannot be scored counts against coverage; (4) one test, one error rate
    if sequential:
        settings = sequential if isinstance(sequential, Sequential) else Sequential(seed=seed)
        batches = purchases(run.planned, [trace.id for trace in traces], settings)
        looked = look(batches, score_some, calibration, alpha, settings, Prints.of(prints, traces))
        run = replace(run, planned=looked.planned)
        items, left_out, found = looked.items, looked.left_out, looked.judged(alpha, run.rng)
    else:
        items, left_out = score_some(run.planned)
        found = judge_both(prints, traces, run.planned, items, alpha, run.rng)
    found, about = _compared(found or _nothing(left_out, items), items, calibration)
    return run.finding(items, left_out, contract, (*assumptions, *about), found)


def _commonest(records: Sequence[EngineRecord], requests: Sequence[Trace] | None) -> EngineRecord:
    """The record that most traces state, the first of equals: one odd line must not decide for the others."""
    if not records:
        if not requests:
            raise TraceError("traces: got none, and no requests that would say what is missing")
        return requests[0].engine
    counts = Counter(record.identity() for record in records)
    top = max(counts.values())
    return next(record for record in records if counts[record.identity()] == top)


def _check(traces: Sequence[Trace], requests: Sequence[Trace] | None, alpha: float) -> None:
    if not 0.0 < alpha < 0.5:
        raise TraceError(f"alpha: got {alpha}, expected above 0 and below 0.5")
    for where, sequences in (("", traces), ("requests: ", requests or ())):
        twice = [name for name, count in Counter(trace.id for trace in sequences).items() if count > 1]
        if twice:
            raise TraceError(f"{where}id: {twice[0]!r} names more than one sequence")


def _other_model(head: Trace, calibration: Calibration) -> tuple[str, ...]:
    if head.model == calibration.model:
        return ()
    return (f"The traces name the model {head.model!r}, the calibration {calibration.model!r}.",)


def _nothing(left_out: Mapping[str, str], items: Sequence[ScoredItem]) -> Judgement:
    why = next(iter(left_out.values()), "no token could be scored")
    return nothing_scored(why, unsupported=bool(left_out) and not items)


def _fresh_prompts(items: Sequence[ScoredItem], calibration: Calibration) -> bool:
    """Whether no audited prompt is one of the calibration's: honest traces should have prompts of their own."""
    known = {sequence.prompt for stack in calibration.stacks for sequence in (*stack.fit, *stack.sequences)}
    return not any(prompt_digest(item.scored.trace) in known for item in items)


def _compared(
    found: Judgement, items: Sequence[ScoredItem], calibration: Calibration
) -> tuple[Judgement, tuple[str, ...]]:
    """The judgement in view of the prompts, and what to say of them: a difference clears nobody and accuses nobody."""
    about = []
    if not _fresh_prompts(items, calibration):
        about.append("Some prompts also occur in the calibration, so scores are compared with their own twins.")
    if not profiles.known(calibration):
        return found, (*about, profiles.UNKNOWN)
    differs = profiles.difference(items, calibration)
    if differs is None:
        return found, tuple(about)
    if found.verdict is Verdict.CONSISTENT:
        why = f"Nothing was found, but on text of another kind than the calibration's. {differs.sentence}"
        step = "Make a calibration on prompts drawn from the same pool as the audit's."
        found = replace(found, verdict=Verdict.UNDECIDED, why=why, next_step=step)
    elif found.verdict is Verdict.DIVERGENT:
        found = replace(found, why=f"{found.why} {differs.sentence}")
    return found, (*about, differs.sentence)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Run:
    """What is fixed for one audit, and how its finding is put together."""

    reference: Reference
    calibration: Calibration
    alpha: float
    rng: np.random.Generator
    sources: Sources
    model: str
    record: EngineRecord
    planned: Sequence[Planned]
    quiet: bool

    def finding(
        self,
        items: Sequence[ScoredItem],
        left_out: Mapping[str, str],
        contract: Contract | None,
        assumptions: tuple[str, ...],
        judgement: Judgement,
    ) -> Finding:
        """The finding of a judged audit. (5) Only a divergent one gets a cause: that is no second chance to accuse."""
        statuses = tokens_by_status(self.planned, items)
        divergent = judgement.verdict is Verdict.DIVERGENT
        speaking = [item for item in items if item.speaks]
        diagnosis = Diagnosis()
        prints = judgement.fingerprints
        mode = None if contract is None else mode_of(contract.id)
        if divergent and prints is not None and prints.speaks == "fingerprints":
            diagnosis = explained(prints)
        elif divergent:
            scored = [item.scored for item in speaking]
            diagnosis = diagnose(scored, self.calibration.statistic, self.rng, quiet=self.quiet)
        return Finding(
            verdict=judgement.verdict,
            alpha=self.alpha,
            p_value=judgement.p_value,
            reason=judgement.why,
            next_step=judgement.next_step,
            test=judgement.test,
            model=self.model,
            engine=_engine_text(self.record),
            contract=None if contract is None else contract.id,
            assumptions=assumptions,
            sequences=len(self.planned),
            sequences_unsupported=len(left_out),
            tokens_requested=tokens_owed(self.planned),
            tokens_scored=statuses["scored"],
            tokens_by_status=statuses,
            exact_match=summaries.mean_of(items, "match_T"),
            mean_margin=summaries.mean_of(items, "margin_T"),
            effective_logit_noise=summaries.logit_noise(items, self.calibration, self.rng),
            diagnosis=diagnosis,
            provenance=self._provenance(items),
            results=summaries.results(self.planned, items, left_out, judgement.scores),
            worst_tokens=summaries.worst_tokens(speaking, self.reference) if divergent else (),
            honest_scores=honest_scores(items, self.calibration),
            honest_exact_match=self.calibration.exact_match if mode != "distribution" else None,
            fingerprints=judgement.fingerprints,
            mode=mode,
            distribution=summarize(items, self.calibration, self.rng),
        )

    def unsupported(self, why: str, assumptions: tuple[str, ...]) -> Finding:
        """The finding where no sampler can be replayed."""
        left_out = {item.id: item.reason or why for item in self.planned}
        judgement = nothing_scored(why, unsupported=any(item.trace is not None for item in self.planned))
        return self.finding([], left_out, None, assumptions, judgement)

    def _provenance(self, items: Sequence[ScoredItem]) -> Provenance:
        name, digest = self.sources.calibration or (None, "not from a file")
        settings = dict(self.reference.settings)
        tokens = sum(item.scored.evidence.tokens for item in items)
        if tokens:
            settings["hashes_per_token"] = round(sum(item.scores.hashes for item in items) / tokens, 1)
        if self.sources.seed_commitment is not None:
            settings["seed_commitment"] = self.sources.seed_commitment
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


def _engine_text(record: EngineRecord) -> str:
    parts = [record.name, record.version, record.runner and f"runner {record.runner}", record.device, record.dtype]
    return ", ".join(part for part in parts if part)
