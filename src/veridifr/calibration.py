"""What honest runs look like: the null that an audit is judged against, with where it came from.

A calibration is made from traces of providers known to be honest, pooled over several stacks (engine, runner, device).
Their prompts are split once: a quarter fits the honest logit noise, the share of unexplained tokens and the bets of a
sequential audit, the rest gives the null scores, so that nothing is judged on data that it was fitted to. Each sequence
is also scored as if the provider had carried larger errors, of several sizes: what power and planning rest on. It holds
for one model, one set of sampling settings and the contracts that it saw; used for anything else it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr._version import __version__
from veridifr.contracts.registry import infer
from veridifr.effects import effect_scores, surprises
from veridifr.errors import CalibrationError, UnsupportedError
from veridifr.fingerprint_null import FingerprintNull, Measured, fit_null, measure_honest
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.likelihood import SIGMA_GRID, fit_sigma, mix, win_matrix
from veridifr.references import Reference
from veridifr.replay import Replayer
from veridifr.requests import Planned, plan
from veridifr.scores import ALL_BOUNDS, Hypothesis, Scores
from veridifr.scoring import score
from veridifr.statistic import LikelihoodRatio, edges_up_to
from veridifr.trace import Sampling, Trace

Floats = npt.NDArray[np.float64]
SCHEMA = "veridifr-calibration/2"
FIT_SHARE = 4
"""One in this many prompts fits the parameters; the others give the null."""
FEWEST_FIT = 2
FEWEST_NULL = 5
EFFECTS = (1.3, 1.6, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0, 16.0)
"""Sizes of the simulated deviations, as multiples of the honest logit noise; the declared one is added."""
EPSILON_GRID = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


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
    """Scores had the provider carried larger errors: one row for each of `Calibration.effects`."""


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
    statistic: LikelihoodRatio
    detect_sigma: float
    effects: tuple[float, ...]
    """Sizes of the simulated deviations, ascending, as multiples of the honest sigma; one of them is `detect_sigma`."""
    edges: tuple[int, ...]
    stacks: tuple[Stack, ...]
    created: str
    veridifr: str = __version__
    fingerprints: FingerprintNull | None = None
    """None: the honest traces' fingerprints, if they had any, were not calibrated."""

    @property
    def contracts(self) -> tuple[str, ...]:
        """Contract ids that the honest traces ran under."""
        return tuple(sorted({stack.contract for stack in self.stacks}))

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
        if contract not in self.contracts:
            raise CalibrationError(
                f"calibration: contract: made for {', '.join(self.contracts)}, the traces run under {contract}"
            )


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
class _Scored:
    planned: Planned
    scores: Scores
    measured: Measured | None

    @property
    def trace(self) -> Trace:
        assert self.planned.trace is not None  # noqa: S101  (only scored sequences are wrapped)
        return self.planned.trace


def calibrate(
    stacks: Sequence[HonestTraces],
    reference: Reference,
    *,
    detect_sigma: float | None = None,
    replayer: Replayer | None = None,
    seed: int = 0,
    fingerprints: FingerprintSpec | None = None,
) -> Calibration:
    """Build a calibration from honest traces, pooled over `stacks`.

    `detect_sigma` (logits) is the smallest deviation that a consistent verdict will rule out; default twice the honest
    effective logit noise. With `fingerprints` every honest trace must carry one of that specification, and audits can
    use them. Raises `CalibrationError` where the traces do not agree in model, sampling or engine, or are
    too few.
    """
    if not stacks or not all(stack.traces for stack in stacks):
        raise CalibrationError("calibration: got no honest traces")
    replayer = (replayer or Replayer(reference)).with_projections(fingerprints)
    first = stacks[0].traces[0]
    scored = [(stack, *_score_stack(stack, first, reference, replayer, fingerprints)) for stack in stacks]
    parts = [_split(items) for _, _, items in scored]
    for (stack, _, items), (fit, null) in zip(scored, parts, strict=True):
        if len(fit) < FEWEST_FIT or len(null) < FEWEST_NULL:
            raise CalibrationError(
                f"calibration: {stack.name}: {len(items)} usable sequences, expected at least "
                f"{FEWEST_FIT} to fit and {FEWEST_NULL} for the null (about {FIT_SHARE * FEWEST_FIT + FEWEST_NULL})"
            )
    statistic = fit_statistic([item.scores for fit, _ in parts for item in fit])
    detect = detect_sigma if detect_sigma is not None else 2.0 * statistic.sigma
    effects = effects_with(detect / statistic.sigma)
    edges = edges_up_to(max(item.planned.end for _, null in parts for item in null))
    summary = _Summary(statistic=statistic, effects=effects, edges=edges, rng=np.random.default_rng(seed))
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
        ),
    )


def _score_stack(
    stack: HonestTraces, first: Trace, reference: Reference, replayer: Replayer, spec: FingerprintSpec | None
) -> tuple[str, list[_Scored]]:
    head = stack.traces[0]
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
        inference = infer(head.engine, head.sampling, reference.vocab_size)
    except UnsupportedError as error:
        raise CalibrationError(f"calibration: {stack.name}: {error}") from error
    planned, _ = plan(stack.traces, None, head.engine, reference.eos_ids, reference.decode)
    found, sent = [], {trace.id: trace for trace in stack.traces}
    for item, evidence in replayer.run(planned, label=f"replay {stack.name}"):
        if evidence is None or item.trace is None:
            raise CalibrationError(f"calibration: {stack.name}: sequence {item.id!r}: {item.reason}")
        claim = Hypothesis(contract=inference.contract, sampling=item.trace.sampling, seed=item.trace.sampling.seed)
        try:
            scores = score(item.trace, evidence, claim, eos_ids=reference.eos_ids)
        except UnsupportedError as error:
            raise CalibrationError(f"calibration: {stack.name}: sequence {item.id!r}: {error}") from error
        if not scores.usable_T.any():
            raise CalibrationError(f"calibration: {stack.name}: sequence {item.id!r}: {ALL_BOUNDS}")
        measured = measure_honest(sent[item.id], evidence, spec, f"calibration: {stack.name}: sequence {item.id!r}")
        found.append(_Scored(planned=item, scores=scores, measured=measured))
    return inference.contract.id, found


def _split(items: Sequence[_Scored]) -> tuple[list[_Scored], list[_Scored]]:
    """Fit and null parts, by prompt: sequences of one prompt fall into the same part in every stack."""
    fit = [item for item in items if int(prompt_digest(item.trace), 16) % FIT_SHARE == 0]
    if len(fit) < FEWEST_FIT:  # few sequences: take the first by digest, still decided before any score is seen
        fit = sorted(items, key=lambda item: prompt_digest(item.trace))[:FEWEST_FIT]
    return fit, [item for item in items if not any(item is other for other in fit)]


def fit_statistic(fits: Sequence[Scores]) -> LikelihoodRatio:
    """Honest sigma and epsilon by maximum likelihood over the fit part."""
    wins = [win_matrix(scores, SIGMA_GRID) for scores in fits]
    best: tuple[float, float, float] | None = None
    for epsilon in EPSILON_GRID:
        totals = np.array([mix(matrix, scores, epsilon).sum(axis=0) for matrix, scores in zip(wins, fits, strict=True)])
        top = float(totals.sum(axis=0).max())
        if best is None or top > best[0]:
            best = (top, epsilon, fit_sigma(totals, SIGMA_GRID))
    assert best is not None  # noqa: S101  (the grid is not empty)
    return LikelihoodRatio(sigma=best[2], epsilon=best[1])


def effects_with(declared: float) -> tuple[float, ...]:
    """`EFFECTS` with the declared size among them."""
    return tuple(sorted([effect for effect in EFFECTS if abs(effect - declared) > 1e-6 * declared] + [declared]))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Summary:
    """What is kept of a scored sequence."""

    statistic: LikelihoodRatio
    effects: tuple[float, ...]
    edges: tuple[int, ...]
    rng: np.random.Generator

    def of(self, item: _Scored) -> HonestSequence:
        reached = [edge for edge in self.edges if edge <= item.planned.end]
        sizes = [effect * self.statistic.sigma for effect in self.effects]
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
