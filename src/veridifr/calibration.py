"""What honest runs look like: the null that an audit is judged against, with where it came from.

A calibration is made from traces of providers known to be honest, pooled over several stacks (engine, runner, device).
Their prompts are split once: a quarter fits the honest logit noise, the share of unexplained tokens and the bets of a
sequential audit, the rest gives the null scores, so that nothing is judged on data that it was fitted to. Each sequence
is also scored as if the provider had carried larger errors, of several sizes: what power and planning rest on. It holds
for one model, one set of sampling settings and the contracts that it saw; used for anything else it is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr._version import __version__
from veridifr.contracts.registry import Mode, mode_of
from veridifr.distribution import DistributionRatio, Statistic
from veridifr.distribution_effects import HEATS, distribution_effects, seeded_tokens
from veridifr.effects import effect_scores, surprises
from veridifr.errors import CalibrationError
from veridifr.fingerprint_null import FingerprintNull, fit_null
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.fitting import declared_by_default, effects_with, fit_distribution, fit_statistic
from veridifr.honest_traces import (
    FEWEST_FIT,
    FIT_SHARE,
    HonestScored,
    HonestTraces,
    distribution_of,
    prompt_digest,
    score_stack,
    split,
)
from veridifr.references import Reference
from veridifr.replay import Replayer
from veridifr.statistic import edges_up_to
from veridifr.trace import Sampling, Trace

Floats = npt.NDArray[np.float64]
SCHEMA = "veridifr-calibration/2"
FEWEST_NULL = 5


@dataclass(frozen=True, kw_only=True)
class HonestSequence:
    """One honest sequence, at each of the calibration's edges that it reaches."""

    id: str
    prompt: str
    """First 16 hex digits of the SHA-256 of the prompt ids."""
    tokens: int
    exact_match: float
    surprise: tuple[float, ...]
    """Mean of -log p of the claimed tokens, in nats: what kind of text it is. Empty in calibrations of format 1."""
    scores: tuple[float, ...]
    simulated: tuple[tuple[float, ...], ...]
    """Scores had the provider carried larger errors: one row for each of `Calibration.effects`, then of `heats`."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Honest traces of one engine setup: `sequences` are the null, `fit` the part that parameters and bets come from.

    `fit` is empty in calibrations of format 1, which kept only its size, `fit_sequences`.
    """

    name: str
    contract: str
    engine: Mapping[str, Any]
    traces_digest: str | None
    fit_sequences: int
    fit: tuple[HonestSequence, ...]
    sequences: tuple[HonestSequence, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """See the module. `sampling` are the settings (without seed and lengths) that it holds for."""

    model: str
    weights: str
    reference_settings: Mapping[str, Any]
    sampling: Mapping[str, Any]
    statistic: Statistic
    detect_sigma: float
    effects: tuple[float, ...]
    """Sizes of the simulated deviations, ascending, as multiples of the honest sigma; one of them is `detect_sigma`."""
    edges: tuple[int, ...]
    stacks: tuple[Stack, ...]
    created: str
    veridifr: str = __version__
    fingerprints: FingerprintNull | None = None
    """None: the honest traces' fingerprints, if they had any, were not calibrated."""
    heats: tuple[float, ...] = ()
    """Relative changes of the temperature that are simulated too, where the noise is not known: rows of
    `HonestSequence.simulated` after those of `effects`."""
    seeded_tokens: int | None = None
    """Where the noise is not known: how many tokens the seeded test would take for `detect_sigma` (alpha 0.01, power
    0.9), by simulation; None if that is not known either."""

    @property
    def contracts(self) -> tuple[str, ...]:
        """Contract ids that the honest traces ran under."""
        return tuple(sorted({stack.contract for stack in self.stacks}))

    @property
    def mode(self) -> Mode:
        """What kind of evidence it is for: audits of another kind are refused."""
        return mode_of(self.stacks[0].contract)

    @property
    def exact_match(self) -> float:
        """Share of honest tokens that were the reference's argmax, over the null."""
        pairs = [(s.exact_match, s.tokens) for stack in self.stacks for s in stack.sequences]
        return sum(m * t for m, t in pairs) / sum(t for _, t in pairs)

    @property
    def detect_place(self) -> int:
        """Which of `effects` is the declared deviation."""
        return place_of(self.detect_sigma / self.statistic.sigma, self.effects)

    def check_fits(self, reference: Reference, sampling: Sampling, contract: str) -> None:
        """Raise `CalibrationError` unless this calibration was made for that reference, sampling and contract."""
        if reference.weights_digest != self.weights:
            raise CalibrationError(
                f"calibration: weights: made for {self.weights[:16]} ({self.model}), "
                f"the reference has {reference.weights_digest[:16]}; calibrate with this reference"
            )
        for key in ("dtype", "tail_mass", "top_logprobs"):
            mine, other = self.reference_settings.get(key), reference.settings.get(key)
            if mine != other:
                raise CalibrationError(f"calibration: reference.{key}: made with {mine}, this audit uses {other}")
        asked = distribution_of(sampling)
        for key in sorted(set(asked) | set(self.sampling)):
            if asked.get(key) != self.sampling.get(key):
                raise CalibrationError(
                    f"calibration: sampling.{key}: made for {_said(self.sampling.get(key))}, "
                    f"the traces claim {_said(asked.get(key))}"
                )
        if mode_of(contract) != self.mode:
            raise CalibrationError(
                f"calibration: mode: made for {self.mode} evidence, this audit's is {mode_of(contract)}; "
                f"{_REMEDIES[self.mode]}"
            )
        if contract not in self.contracts:
            raise CalibrationError(
                f"calibration: contract: made for {', '.join(self.contracts)}, the traces run under {contract}"
            )


_REMEDIES: Mapping[Mode, str] = {
    "distribution": "audit with the sampler taken as unknown (--sampler unknown), or calibrate without that",
    "seeded": "calibrate with the sampler taken as unknown (--sampler unknown)",
    "greedy": "calibrate with honest traces of that temperature",
}


def place_of(effect: float, effects: Sequence[float]) -> int:
    """Index of `effect` among `effects`, to rounding; `CalibrationError` if it is none of them."""
    for place, known in enumerate(effects):
        if abs(known - effect) <= 1e-6 * effect:
            return place
    raise CalibrationError("calibration: effects: the declared deviation detect_sigma is none of them")


def scores_at(sequences: Sequence[HonestSequence], place: int, effect: int | None = None) -> Floats:
    """Scores of those that reach edge number `place`: honest ones, or those simulated at effect number `effect`."""
    rows = [s.scores if effect is None else s.simulated[effect] for s in sequences]
    return np.array([row[place] for row in rows if len(row) > place], dtype=np.float64)


def _said(value: object) -> str:
    return "off" if value is None else str(value)


def calibrate(
    stacks: Sequence[HonestTraces],
    reference: Reference,
    *,
    detect_sigma: float | None = None,
    replayer: Replayer | None = None,
    seed: int = 0,
    fingerprints: FingerprintSpec | None = None,
    sensitivity: bool = False,
    sampler: str = "auto",
) -> Calibration:
    """Build a calibration from honest traces, pooled over `stacks`.

    `detect_sigma` (logits) is the smallest deviation that a consistent verdict will rule out; default twice the honest
    effective logit noise, more where the noise is not known (`fitting.declared_by_default`). With `fingerprints` every
    honest trace must carry one of that specification, and audits can use them; with `sensitivity` they are judged
    against how far rounding moves each hidden state, for a second forward pass of the reference. `sampler` is auto (the
    contract that the engine records imply) or unknown: seeds and engines are not looked at, and audits are of the
    tokens' distribution. Raises `CalibrationError` where traces are too few, or differ in model, sampling or engine.
    """
    if not stacks or not all(stack.traces for stack in stacks):
        raise CalibrationError("calibration: got no honest traces")
    if sensitivity and fingerprints is None:
        raise CalibrationError("calibration: sensitivity: is that of fingerprints; got none")
    replayer = (replayer or Replayer(reference)).with_projections(fingerprints, sensitivity=sensitivity)
    first = stacks[0].traces[0]
    scored = [
        (stack, *score_stack(stack, first, replayer, fingerprints, sampler, sensitivity=sensitivity))
        for stack in stacks
    ]
    parts = [split(items) for _, _, items in scored]
    for (stack, _, items), (fit, null) in zip(scored, parts, strict=True):
        if len(fit) < FEWEST_FIT or len(null) < FEWEST_NULL:
            raise CalibrationError(
                f"calibration: {stack.name}: {len(items)} usable sequences, expected at least "
                f"{FEWEST_FIT} to fit and {FEWEST_NULL} for the null (about {FIT_SHARE * FEWEST_FIT + FEWEST_NULL})"
            )
    fits = [item.scores for fit, _ in parts for item in fit]
    unknown = mode_of(scored[0][1]) == "distribution"
    statistic = fit_distribution(fits) if unknown else fit_statistic(fits)
    detect = detect_sigma if detect_sigma is not None else declared_by_default(statistic, fits)
    effects = effects_with(detect / statistic.sigma)
    edges = edges_up_to(max(item.planned.end for _, null in parts for item in null))
    summary = _Summary(statistic=statistic, effects=effects, edges=edges, rng=np.random.default_rng(seed))
    whole = [item for fit, null in parts for item in (*fit, *null)]
    return Calibration(
        model=first.model,
        weights=reference.weights_digest,
        reference_settings=dict(reference.settings),
        sampling=distribution_of(first.sampling),
        statistic=statistic,
        detect_sigma=detect,
        effects=effects,
        edges=edges,
        stacks=tuple(
            Stack(
                name=stack.name,
                contract=contract,
                engine=_engine_json(stack.traces[0]),
                traces_digest=stack.digest,
                fit_sequences=len(fit),
                fit=tuple(map(summary.of, fit)),
                sequences=tuple(map(summary.of, null)),
            )
            for (stack, contract, _), (fit, null) in zip(scored, parts, strict=True)
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        fingerprints=fit_null(
            fingerprints,
            edges,
            [item.measured for fit, _ in parts for item in fit],
            [(stack.name, [item.measured for item in null]) for stack, (_, null) in zip(stacks, parts, strict=True)],
            sensitivity=sensitivity,
            seed=seed,
        ),
        heats=HEATS if unknown else (),
        seeded_tokens=seeded_tokens([(item.scores, item.planned.end) for item in whole], statistic, detect, edges)
        if isinstance(statistic, DistributionRatio)
        else None,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Summary:
    """What is kept of a scored sequence."""

    statistic: Statistic
    effects: tuple[float, ...]
    edges: tuple[int, ...]
    rng: np.random.Generator

    def of(self, item: HonestScored) -> HonestSequence:
        reached = [edge for edge in self.edges if edge <= item.planned.end]
        sizes = [effect * self.statistic.sigma for effect in self.effects]
        if isinstance(self.statistic, DistributionRatio):
            found = distribution_effects(self.statistic, item.scores, reached, sizes, HEATS, self.rng)
        else:
            found = effect_scores(self.statistic, item.scores, reached, sizes, self.rng)
        return HonestSequence(
            id=item.planned.id,
            prompt=prompt_digest(item.trace),
            tokens=item.planned.end,
            exact_match=float(item.scores.match_T[item.scores.usable_T].mean()),
            surprise=tuple(surprises(item.scores, reached).tolist()),
            scores=tuple(found.honest.tolist()),
            simulated=tuple(tuple(row) for row in found.simulated.tolist()),
        )


def _engine_json(trace: Trace) -> dict[str, Any]:
    names = ("name", "version", "runner", "device", "dtype", "sampler")
    return {name: getattr(trace.engine, name) for name in names if getattr(trace.engine, name) is not None}
