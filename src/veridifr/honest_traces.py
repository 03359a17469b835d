"""Traces known to be honest, replayed and scored: what a calibration is made from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from veridifr.contracts.registry import infer, without_noise
from veridifr.contracts.unknown import UNKNOWN
from veridifr.errors import CalibrationError, UnsupportedError
from veridifr.evidence import Evidence
from veridifr.fingerprint_null import Measured, measure_honest
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.replay import Replayer
from veridifr.requests import Planned, plan
from veridifr.scores import ALL_BOUNDS, Hypothesis, Scores
from veridifr.scoring import score
from veridifr.trace import Sampling, Trace

FIT_SHARE = 4
"""One in this many prompts fits the parameters; the others give the null."""
FEWEST_FIT = 2
SAMPLERS = ("auto", "unknown")
"""Whether the engine record says which noise was drawn, or nobody does."""


def distribution_of(sampling: Sampling) -> dict[str, Any]:
    """The settings that shape a token's distribution, as JSON values; only those that are on."""
    names = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    found: dict[str, Any] = {name: getattr(sampling, name) for name in names if getattr(sampling, name) is not None}
    if sampling.logit_bias:
        found["logit_bias"] = {str(k): v for k, v in sorted(sampling.logit_bias.items())}
    if sampling.allowed_token_ids is not None:
        found["allowed_token_ids"] = sorted(sampling.allowed_token_ids)
    if sampling.bad_words_token_ids:
        found["bad_words_token_ids"] = [list(word) for word in sampling.bad_words_token_ids]
    return found


def prompt_digest(trace: Trace) -> str:
    """First 16 hex digits of the SHA-256 of the prompt ids."""
    return hashlib.sha256(trace.prompt_token_ids.astype("<i4").tobytes()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class HonestTraces:
    """The input of one stack: traces known to be honest, and the SHA-256 of the file that they came from."""

    name: str
    traces: Sequence[Trace]
    digest: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class HonestScored:
    """One honest sequence with its scores, and its fingerprint where those are calibrated."""

    planned: Planned
    scores: Scores
    measured: Measured | None

    @property
    def trace(self) -> Trace:
        """What was replayed."""
        assert self.planned.trace is not None  # noqa: S101  (only scored sequences are wrapped)
        return self.planned.trace


def score_stack(
    stack: HonestTraces,
    first: Trace,
    replayer: Replayer,
    spec: FingerprintSpec | None,
    sampler: str,
    *,
    sensitivity: bool = False,
) -> tuple[str, list[HonestScored]]:
    """The contract that a stack's traces ran under, and their scores.

    Raises `CalibrationError` where they do not agree with each other or with `first` in model, sampling or engine.
    """
    head, reference = stack.traces[0], replayer.reference
    if sampler not in SAMPLERS:
        raise CalibrationError(f"calibration: sampler: got {sampler!r:.40}, expected one of {', '.join(SAMPLERS)}")
    seen: set[str] = set()
    for trace in stack.traces:
        if trace.id in seen:
            raise CalibrationError(f"calibration: {stack.name}: id: {trace.id!r} names more than one sequence")
        seen.add(trace.id)
        where = f"calibration: {stack.name}: sequence {trace.id!r}"
        if distribution_of(trace.sampling) != distribution_of(first.sampling):
            raise CalibrationError(f"{where}: sampling: differs from {first.id!r}; one calibration, one setting")
        if trace.engine.identity() != head.engine.identity():
            raise CalibrationError(f"{where}: engine: differs within the file; one file, one engine")
        if trace.model != first.model:
            raise CalibrationError(f"{where}: model: got {trace.model!r}, expected {first.model!r}")
    try:
        infer_by = without_noise if sampler == UNKNOWN.id else infer
        inference = infer_by(head.engine, head.sampling, reference.vocab_size)
    except UnsupportedError as error:
        raise CalibrationError(f"calibration: {stack.name}: {error}") from error
    planned, _ = plan(stack.traces, None, head.engine, reference.eos_ids, reference.decode)
    found, sent = [], {trace.id: trace for trace in stack.traces}

    def scored(trace: Trace, evidence: Evidence) -> tuple[Scores, Measured | None]:
        where = f"calibration: {stack.name}: sequence {trace.id!r}"
        claim = Hypothesis(contract=inference.contract, sampling=trace.sampling, seed=trace.sampling.seed)
        try:
            scores = score(trace, evidence, claim, eos_ids=reference.eos_ids)
        except UnsupportedError as error:
            raise CalibrationError(f"{where}: {error}") from error
        if not scores.usable_T.any():
            raise CalibrationError(f"{where}: {ALL_BOUNDS}")
        return scores, measure_honest(sent[trace.id], evidence, spec, where, sensitivity=sensitivity)

    for item, made in replayer.map(planned, scored, label=f"replay {stack.name}"):
        if made is None:
            raise CalibrationError(f"calibration: {stack.name}: sequence {item.id!r}: {item.reason}")
        found.append(HonestScored(planned=item, scores=made[0], measured=made[1]))
    return inference.contract.id, found


def split(items: Sequence[HonestScored]) -> tuple[list[HonestScored], list[HonestScored]]:
    """Fit and null parts, by prompt: sequences of one prompt fall into the same part in every stack."""
    fit = [item for item in items if int(prompt_digest(item.trace), 16) % FIT_SHARE == 0]
    if len(fit) < FEWEST_FIT:  # few sequences: take the first by digest, still decided before any score is seen
        fit = sorted(items, key=lambda item: prompt_digest(item.trace))[:FEWEST_FIT]
    return fit, [item for item in items if not any(item is other for other in fit)]
