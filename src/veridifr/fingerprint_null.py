"""Fingerprint scores of sequences, and what honest ones look like: the optional part of a calibration.

A sequence's score is the log-likelihood ratio of its codes, given the verifier's own projections, for larger errors
against the honest ones (`fingerprints.score`), over all taps. It is kept as sign(x) log(1 + |x|): the order stays, and
no sequence, however far off or however exact, can outweigh the rest of an audit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from veridifr.effects import rounded
from veridifr.errors import CalibrationError, FingerprintError
from veridifr.evidence import Evidence
from veridifr.fingerprints.attached import fingerprint_of
from veridifr.fingerprints.encoding import Intervals
from veridifr.fingerprints.score import ErrorScale, combine, fit_scale, ratios
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.trace import Trace

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class NullSequence:
    """Scores of one honest sequence at the edges that it reaches: over all taps, and with several taps also of each."""

    id: str
    scores: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True)
class NullStack:
    """The null part of one honest stack."""

    name: str
    sequences: tuple[NullSequence, ...]


@dataclass(frozen=True, kw_only=True)
class FingerprintNull:
    """What honest fingerprints look like: their error scale at each tap, and scores of sequences not fitted to."""

    spec: FingerprintSpec
    scales: tuple[ErrorScale, ...]
    stacks: tuple[NullStack, ...]
    sensitivity: bool = False
    """Whether the scales are relative to how sensitive each hidden state is to rounding, which evidence then holds."""

    def alone(self, tap: str) -> FingerprintNull:
        """The part about one of the taps. `FingerprintError` for another tap."""
        spec, place = self.spec.alone(tap), self.spec.taps.index(tap)
        row = place + 1 if len(self.spec.taps) > 1 else 0
        stacks = [
            replace(stack, sequences=tuple(replace(one, scores=(one.scores[row],)) for one in stack.sequences))
            for stack in self.stacks
        ]
        return replace(self, spec=spec, scales=(self.scales[place],), stacks=tuple(stacks))


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """A sequence's decoded fingerprint beside the verifier's own projections, cut to the tokens that are evidence."""

    id: str
    tokens: int
    claimed_A: tuple[Intervals, ...]
    own_AFK: npt.NDArray[np.float32]
    sensitivity_AF: npt.NDArray[np.float32] | None = None

    @property
    def sensitivity_A(self) -> Sequence[npt.NDArray[np.float32] | None]:
        """Sensitivities at each tap, or None."""
        return [None] * len(self.own_AFK) if self.sensitivity_AF is None else list(self.sensitivity_AF)


def measure(trace: Trace, evidence: Evidence, spec: FingerprintSpec, *, sensitivity: bool = False) -> Measured:
    """The fingerprint of `trace`, as the provider sent it, against evidence for the first tokens of its output.

    Raises `FingerprintError` if there is none to compare: it is missing, malformed, too short or of another
    specification, or the evidence holds no projections, or with `sensitivity` none of that.
    """
    found = fingerprint_of(trace, spec)
    if found is None:
        raise FingerprintError("fingerprint: missing")
    own_AFK = evidence.projections_AFK
    entries = spec.entries(evidence.tokens)
    if own_AFK is None or own_AFK.shape != (len(spec.taps), entries, spec.k):
        raise FingerprintError("evidence: holds no projections of this specification")
    if not np.isfinite(own_AFK).all():
        raise FingerprintError("evidence: the reference's own projections are not finite")
    if sensitivity and evidence.sensitivity_AF is None:
        raise FingerprintError("evidence: does not say how sensitive the projections are to rounding")
    claimed = [found.intervals(tap) for tap in range(len(spec.taps))]
    return Measured(
        id=trace.id,
        tokens=evidence.tokens,
        claimed_A=tuple(one.of(slice(entries)) for one in claimed),
        own_AFK=own_AFK,
        sensitivity_AF=evidence.sensitivity_AF if sensitivity else None,
    )


def prefix_scores(
    measured: Measured, spec: FingerprintSpec, scales: Sequence[ErrorScale], edges: Sequence[int]
) -> Floats:
    """Scores of the first `edges[i]` tokens: row 0 is over all taps; with several taps a row for each follows."""
    ratios_AFM = np.stack([
        ratios(claimed, own, scale, sensitivity_F=apart)
        for claimed, own, scale, apart in zip(
            measured.claimed_A, measured.own_AFK, scales, measured.sensitivity_A, strict=True
        )
    ])  # fmt: skip
    last_E = np.array([spec.entries(edge) for edge in edges], dtype=np.int64) - 1
    totals_AEM = np.cumsum(ratios_AFM, axis=1)[:, last_E]
    rows = [totals_AEM.sum(axis=0), *(totals_AEM if len(totals_AEM) > 1 else ())]
    nats = np.array([combine(row) for row in rows])
    return np.asarray(rounded(np.sign(nats) * np.log1p(np.abs(nats))))


def fit_null(
    spec: FingerprintSpec | None,
    edges: Sequence[int],
    fit: Sequence[Measured | None],
    null: Sequence[tuple[str, Sequence[Measured | None]]],
    *,
    sensitivity: bool = False,
) -> FingerprintNull | None:
    """Fit the error scales to `fit` and score `null`, the sequences of each stack, with them. None without `spec`. With
    `sensitivity` all were measured with it."""
    if spec is None:
        return None
    fitted = [one for one in fit if one is not None]
    scales = []
    for tap in range(len(spec.taps)):
        joined = Intervals.joined([one.claimed_A[tap] for one in fitted])
        own = np.concatenate([one.own_AFK[tap] for one in fitted])
        known = [one.sensitivity_AF[tap] for one in fitted if one.sensitivity_AF is not None]
        scales.append(fit_scale(joined, own, np.concatenate(known) if sensitivity else None))
    stacks = []
    for name, sequences in null:
        rows = []
        for one in (one for one in sequences if one is not None):
            found = prefix_scores(one, spec, scales, [edge for edge in edges if edge <= one.tokens])
            rows.append(NullSequence(id=one.id, scores=tuple(tuple(row) for row in found.tolist())))
        stacks.append(NullStack(name=name, sequences=tuple(rows)))
    return FingerprintNull(spec=spec, scales=tuple(scales), stacks=tuple(stacks), sensitivity=sensitivity)


def measure_honest(
    trace: Trace, evidence: Evidence, spec: FingerprintSpec | None, where: str, *, sensitivity: bool = False
) -> Measured | None:
    """As `measure`, for a calibration: None without `spec`, `CalibrationError` where nothing can be compared."""
    try:
        return None if spec is None else measure(trace, evidence, spec, sensitivity=sensitivity)
    except FingerprintError as error:
        raise CalibrationError(f"{where}: {error}") from error
