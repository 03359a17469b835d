"""The sequences of an audit, replayed and scored under one contract."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from veridifr.contracts.base import Contract
from veridifr.errors import UnsupportedError
from veridifr.evidence import Evidence
from veridifr.hypotheses import ScoredSequence
from veridifr.references import Reference
from veridifr.replay import Replayer
from veridifr.requests import Planned
from veridifr.scored import ScoredItem
from veridifr.scores import Hypothesis
from veridifr.scoring import score
from veridifr.trace import Trace


def score_all(
    planned: Sequence[Planned],
    contract: Contract,
    reference: Reference,
    replayer: Replayer,
) -> tuple[list[ScoredItem], dict[str, str]]:
    """Scored sequences in the order planned, and the reason for each one that is not."""
    order = {item.id: place for place, item in enumerate(planned)}
    items, left_out = [], {}

    def scored(trace: Trace, evidence: Evidence) -> ScoredSequence | str:
        try:
            return _score_one(trace, evidence, contract, reference)
        except UnsupportedError as error:
            return str(error)

    for item, made in replayer.map(planned, scored, label="replay"):
        if isinstance(made, ScoredSequence):
            items.append(ScoredItem(planned=item, scored=made))
        else:
            left_out[item.id] = made or item.reason or "no evidence"
    items.sort(key=lambda found: order[found.planned.id])
    return items, left_out


def same_setting(item: Planned, head: Trace) -> Planned:
    """One audit, one setting: the calibration holds for the first sequence's."""
    if item.trace is None or item.trace.sampling.distribution() == head.sampling.distribution():
        return item
    return replace(item, trace=None, reason="sampling: another setting than the audit's first sequence")


def _score_one(trace: Trace, evidence: Evidence, contract: Contract, reference: Reference) -> ScoredSequence:
    claim = Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed)
    scores = score(trace, evidence, claim, eos_ids=reference.eos_ids)
    return ScoredSequence(trace=trace, evidence=evidence, claim=claim, scores=scores)
