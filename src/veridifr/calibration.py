"""What honest runs look like: the null that an audit is judged against, with where it came from.

A calibration is made from traces of providers known to be honest, pooled over several stacks (engine, runner, device).
Their prompts are split once: a quarter fits the honest logit noise and the share of unexplained tokens, the rest gives
the null scores, so that nothing is judged on data that it was fitted to. It holds for one model, one set of sampling
settings and the contracts that it saw; used for anything else it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from veridifr._version import __version__
from veridifr.contracts.registry import infer
from veridifr.errors import CalibrationError, UnsupportedError
from veridifr.likelihood import SIGMA_GRID, fit_sigma, mix, win_matrix
from veridifr.references import Reference
from veridifr.replay import Replayer
from veridifr.requests import Planned, plan
from veridifr.scores import Hypothesis, Scores
from veridifr.scoring import score
from veridifr.statistic import LikelihoodRatio, edges_up_to, simulate
from veridifr.trace import Sampling, Trace

SCHEMA = "veridifr-calibration/1"
FIT_SHARE = 4
"""One in this many prompts fits the parameters; the others give the null."""
FEWEST_FIT = 2
FEWEST_NULL = 5
EPSILON_GRID = (1e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)


@dataclass(frozen=True, kw_only=True)
class NullSequence:
    """One honest sequence of the null: its scores at the calibration's edges that it reaches, honest and simulated."""

    id: str
    prompt: str
    """First 16 hex digits of the SHA-256 of the prompt ids."""
    tokens: int
    exact_match: float
    scores: tuple[float, ...]
    deviating: tuple[float, ...]
    """Scores had the provider carried the declared deviation (`Calibration.detect_sigma`)."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Honest traces of one engine setup."""

    name: str
    contract: str
    engine: Mapping[str, Any]
    traces_digest: str | None
    fit_sequences: int
    sequences: tuple[NullSequence, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """See the module. `sampling` are the settings (without seed and lengths) that it holds for."""

    model: str
    weights: str
    reference_settings: Mapping[str, Any]
    sampling: Mapping[str, Any]
    statistic: LikelihoodRatio
    detect_sigma: float
    edges: tuple[int, ...]
    stacks: tuple[Stack, ...]
    created: str
    veridifr: str = __version__

    @property
    def contracts(self) -> tuple[str, ...]:
        """Contract ids that the honest traces ran under."""
        return tuple(sorted({stack.contract for stack in self.stacks}))

    @property
    def exact_match(self) -> float:
        """Share of honest tokens that were the reference's argmax, over the null."""
        pairs = [(s.exact_match, s.tokens) for stack in self.stacks for s in stack.sequences]
        return sum(m * t for m, t in pairs) / sum(t for _, t in pairs)

    def check_fits(self, reference: Reference, sampling: Sampling, contract: str) -> None:
        """Raise `CalibrationError` unless this calibration was made for that reference, sampling and contract."""
        if reference.weights_digest != self.weights:
            raise CalibrationError(
                f"calibration: weights: made for {self.weights[:16]} ({self.model}), "
                f"the reference has {reference.weights_digest[:16]}; calibrate with this reference"
            )
        for key in ("dtype", "tail_mass"):
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
) -> Calibration:
    """Build a calibration from honest traces, pooled over `stacks`.

    `detect_sigma` (logits) is the smallest deviation that a consistent verdict will rule out; default twice the honest
    effective logit noise. Raises `CalibrationError` where the traces do not agree in model, sampling or engine, or are
    too few.
    """
    if not stacks or not all(stack.traces for stack in stacks):
        raise CalibrationError("calibration: got no honest traces")
    replayer = replayer or Replayer(reference)
    first = stacks[0].traces[0]
    scored = [(stack, *_score_stack(stack, first, reference, replayer)) for stack in stacks]
    fits: list[_Scored] = []
    nulls: list[list[_Scored]] = []
    for stack, _, items in scored:
        fit, null = _split(items)
        if len(fit) < FEWEST_FIT or len(null) < FEWEST_NULL:
            raise CalibrationError(
                f"calibration: {stack.name}: {len(items)} usable sequences, expected at least "
                f"{FEWEST_FIT} to fit and {FEWEST_NULL} for the null (about {FIT_SHARE * FEWEST_FIT + FEWEST_NULL})"
            )
        fits += fit
        nulls.append(null)
    statistic = fit_statistic([item.scores for item in fits])
    detect = detect_sigma if detect_sigma is not None else 2.0 * statistic.sigma
    longest = max(item.planned.end for null in nulls for item in null)
    edges = edges_up_to(longest)
    rng = np.random.default_rng(seed)
    return Calibration(
        model=first.model,
        weights=reference.weights_digest,
        reference_settings=dict(reference.settings),
        sampling=distribution_of(first.sampling),
        statistic=statistic,
        detect_sigma=detect,
        edges=edges,
        stacks=tuple(
            Stack(
                name=stack.name,
                contract=contract,
                engine=_engine_json(stack.traces[0]),
                traces_digest=stack.digest,
                fit_sequences=len(items) - len(null),
                sequences=tuple(_null(item, statistic, detect, edges, rng) for item in null),
            )
            for (stack, contract, items), null in zip(scored, nulls, strict=True)
        ),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _score_stack(
    stack: HonestTraces, first: Trace, reference: Reference, replayer: Replayer
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
    found = []
    for item, evidence in replayer.run(planned, label=f"replay {stack.name}"):
        if evidence is None or item.trace is None:
            raise CalibrationError(f"calibration: {stack.name}: sequence {item.id!r}: {item.reason}")
        claim = Hypothesis(contract=inference.contract, sampling=item.trace.sampling, seed=item.trace.sampling.seed)
        try:
            scores = score(item.trace, evidence, claim, eos_ids=reference.eos_ids)
        except UnsupportedError as error:
            raise CalibrationError(f"calibration: {stack.name}: sequence {item.id!r}: {error}") from error
        found.append(_Scored(planned=item, scores=scores))
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


def _null(
    item: _Scored, statistic: LikelihoodRatio, detect: float, edges: Sequence[int], rng: np.random.Generator
) -> NullSequence:
    reached = [edge for edge in edges if edge <= item.planned.end]
    deviating = simulate(item.scores, detect, rng)
    return NullSequence(
        id=item.planned.id,
        prompt=prompt_digest(item.trace),
        tokens=item.planned.end,
        exact_match=float(item.scores.match_T.mean()),
        scores=tuple(np.round(statistic.prefix_scores(item.scores, reached), 6).tolist()),
        deviating=tuple(np.round(statistic.prefix_scores(deviating, reached), 6).tolist()),
    )


def _engine_json(trace: Trace) -> dict[str, Any]:
    names = ("name", "version", "runner", "device", "dtype", "sampler")
    return {name: getattr(trace.engine, name) for name in names if getattr(trace.engine, name) is not None}
