"""Fingerprint scores of sequences, and what honest ones look like: the optional part of a calibration.

A sequence's score is the log-likelihood ratio of its codes, given the verifier's own projections, for larger errors
against the honest ones (`fingerprints.score`), over all taps. It is kept as sign(x) log(1 + |x|): the order stays, and
no sequence, however far off or however exact, can outweigh the rest of an audit.

For plans each sequence is also scored as if the provider's errors had been larger: codes are drawn anew, of errors of
several multiples of the honest scale about the verifier's own projections.
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
from veridifr.fingerprints.encoding import Intervals, to_codes, to_intervals
from veridifr.fingerprints.score import ErrorScale, combine, fit_scale, ratios
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.trace import Trace

Floats = npt.NDArray[np.float64]
EFFECTS = (1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 10.0, 20.0, 40.0)
"""Sizes of the simulated deviations, as multiples of the honest errors."""
SIMULATED_TOKENS = 64
"""Longer prefixes are not simulated: a deviation that a fingerprint shows, it shows in these."""


@dataclass(frozen=True, kw_only=True)
class NullSequence:
    """Scores of one honest sequence at the edges that it reaches: over all taps, and with several taps also of each.

    `simulated` are those over all taps had the provider's errors been larger: a row for each of
    `FingerprintNull.effects`, at edges up to `SIMULATED_TOKENS`."""

    id: str
    scores: tuple[tuple[float, ...], ...]
    simulated: tuple[tuple[float, ...], ...] = ()


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
    effects: tuple[float, ...] = ()
    """Sizes of the simulated deviations, ascending, as multiples of the honest errors; empty where none are held."""

    def alone(self, tap: str) -> FingerprintNull:
        """The part about one of the taps, without simulated scores. `FingerprintError` for another tap."""
        spec, place = self.spec.alone(tap), self.spec.taps.index(tap)
        row = place + 1 if len(self.spec.taps) > 1 else 0
        stacks = [
            replace(
                stack, sequences=tuple(NullSequence(id=one.id, scores=(one.scores[row],)) for one in stack.sequences)
            )
            for stack in self.stacks
        ]
        return replace(self, spec=spec, scales=(self.scales[place],), stacks=tuple(stacks), effects=())


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
    totals_AEM = np.cumsum(ratios_AFM, axis=1)[:, _last(spec, edges)]
    return _scores([totals_AEM.sum(axis=0), *(totals_AEM if len(totals_AEM) > 1 else ())])


def simulated_scores(
    measured: Measured,
    spec: FingerprintSpec,
    scales: Sequence[ErrorScale],
    edges: Sequence[int],
    effects: Sequence[float],
    rng: np.random.Generator,
) -> Floats:
    """Scores over all taps of the first `edges[i]` tokens, float64[len(effects), len(edges)], had the provider's errors
    been `effects[m]` times the honest ones. All sizes share their draws, so that they differ in nothing but size."""
    last_E = _last(spec, edges)
    first, count = slice(0, int(last_E[-1]) + 1), len(effects)
    totals_AMER = []
    for tap, scale in enumerate(scales):
        own_FK, apart_F = measured.own_AFK[tap, first], measured.sensitivity_A[tap]
        values_MFK = own_FK + np.multiply.outer(effects, _errors(own_FK.shape, scale, apart_F, rng))
        claimed = to_intervals(spec, tap, to_codes(spec, tap, values_MFK.reshape(-1, own_FK.shape[1])))
        apart_N = None if apart_F is None else np.tile(apart_F[first], count)
        found = ratios(claimed, np.tile(own_FK, (count, 1)), scale, sensitivity_F=apart_N)
        totals_AMER.append(np.cumsum(found.reshape(count, len(own_FK), -1), axis=1)[:, last_E])
    return _scores(np.sum(totals_AMER, axis=0))


def _errors(
    shape: tuple[int, int], scale: ErrorScale, apart_F: npt.NDArray[np.float32] | None, rng: np.random.Generator
) -> Floats:
    """Honest errors of a tap's entries, float64[F, k], as its scale describes them. Of a log-normal the factor is drawn
    once for a sequence, as honest errors differ from prompt to prompt; rare large ones are those of single tokens."""
    sizes_S, weights_S = scale.sizes
    if scale.shares:
        factor_F = rng.choice(sizes_S, p=weights_S / weights_S.sum(), size=shape[0])
    else:
        factor_F = np.full(shape[0], np.exp(scale.spread * rng.standard_normal()))
    if apart_F is not None and scale.relative:
        factor_F = factor_F * apart_F[: shape[0]]
    found: Floats = scale.sigma * factor_F[:, None] * rng.standard_normal(shape)
    return found


def _last(spec: FingerprintSpec, edges: Sequence[int]) -> npt.NDArray[np.int64]:
    """The last entry of each prefix."""
    return np.array([spec.entries(edge) for edge in edges], dtype=np.int64) - 1


def _scores(totals: npt.ArrayLike) -> Floats:
    """Scores as they are kept, of summed log-likelihood ratios: the last axis is the score's multiples."""
    nats = combine(totals)
    return np.asarray(rounded(np.sign(nats) * np.log1p(np.abs(nats))))


def fit_null(
    spec: FingerprintSpec | None,
    edges: Sequence[int],
    fit: Sequence[Measured | None],
    null: Sequence[tuple[str, Sequence[Measured | None]]],
    *,
    sensitivity: bool = False,
    seed: int = 0,
) -> FingerprintNull | None:
    """Fit the error scales to `fit` and score `null`, the sequences of each stack, with them, also as deviations of
    `EFFECTS`, drawn with `seed`. None without `spec`. With `sensitivity` all were measured with it."""
    if spec is None:
        return None
    fitted = [one for one in fit if one is not None]
    scales = []
    for tap in range(len(spec.taps)):
        joined = Intervals.joined([one.claimed_A[tap] for one in fitted])
        own = np.concatenate([one.own_AFK[tap] for one in fitted])
        known = [one.sensitivity_AF[tap] for one in fitted if one.sensitivity_AF is not None]
        scales.append(fit_scale(joined, own, np.concatenate(known) if sensitivity else None))
    rng, stacks = np.random.default_rng(seed), []
    for name, sequences in null:
        rows = []
        for one in (one for one in sequences if one is not None):
            reached = [edge for edge in edges if edge <= one.tokens]
            short = [edge for edge in reached if edge <= SIMULATED_TOKENS]
            found = prefix_scores(one, spec, scales, reached).tolist()
            drawn = (
                simulated_scores(one, spec, scales, short, EFFECTS, rng).tolist() if short else [[] for _ in EFFECTS]
            )
            rows.append(NullSequence(id=one.id, scores=tuple(map(tuple, found)), simulated=tuple(map(tuple, drawn))))
        stacks.append(NullStack(name=name, sequences=tuple(rows)))
    return FingerprintNull(
        spec=spec, scales=tuple(scales), stacks=tuple(stacks), sensitivity=sensitivity, effects=EFFECTS
    )


def measure_honest(
    trace: Trace, evidence: Evidence, spec: FingerprintSpec | None, where: str, *, sensitivity: bool = False
) -> Measured | None:
    """As `measure`, for a calibration: None without `spec`, `CalibrationError` where nothing can be compared."""
    try:
        return None if spec is None else measure(trace, evidence, spec, sensitivity=sensitivity)
    except FingerprintError as error:
        raise CalibrationError(f"{where}: {error}") from error
