"""What a finding says beside its verdict: means, counts, per-sequence results and the tokens to show a person."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from veridifr.calibration import Calibration
from veridifr.distribution import shows_errors, sizes_shown, token_log_likelihoods
from veridifr.finding import LogitNoise, SequenceResult, TokenNote
from veridifr.likelihood import fit_sigma, sigma_interval
from veridifr.references import Reference
from veridifr.requests import Planned
from veridifr.scored import ScoredItem, tokens_by_status

Floats = npt.NDArray[np.float64]
WORST_TOKENS = 8
"""Tokens shown to a person, at most two of a sequence."""
_CONTEXT = 12


def mean_of(items: Sequence[ScoredItem], name: str) -> float | None:
    """Mean over all scored tokens of the per-token array `name` of `Scores`; None without a scored token, and where
    the noise is not known: there is no token that it should have been."""
    known = [item for item in items if item.speaks and item.scores.choices is None]
    values = [getattr(item.scores, name)[item.scores.usable_T] for item in known]
    joined = np.concatenate(values) if values else np.empty(0)
    return float(joined.mean()) if len(joined) else None


def logit_noise(items: Sequence[ScoredItem], calibration: Calibration, rng: np.random.Generator) -> LogitNoise:
    """The provider's effective logit noise by maximum likelihood, beside the honest one.

    None where nothing shows it: draws of unknown noise need the edge of a filter for that.
    """
    honest = calibration.statistic.sigma
    speaking = [item for item in items if item.speaks]
    if not speaking or not shows_errors(speaking[0].scores):
        return LogitNoise(estimate=None, honest=honest, interval=None)
    epsilon, grid = calibration.statistic.unexplained, sizes_shown(speaking[0].scores)
    totals = np.array([token_log_likelihoods(i.scores, grid, epsilon).sum(axis=0) for i in speaking])
    interval = sigma_interval(totals, grid, rng) if len(speaking) > 1 else None
    return LogitNoise(estimate=fit_sigma(totals, grid), honest=honest, interval=interval)


def results(
    planned: Sequence[Planned],
    items: Sequence[ScoredItem],
    left_out: Mapping[str, str],
    scores: Mapping[str, float],
) -> tuple[SequenceResult, ...]:
    """One line for each sequence that was asked for."""
    by_id = {item.planned.id: item for item in items}
    found = []
    for entry in planned:
        own = [by_id[entry.id]] if entry.id in by_id else []
        found.append(
            SequenceResult(
                id=entry.id,
                tokens_by_status=tokens_by_status([entry], own),
                exact_match=mean_of(own, "match_T"),
                mean_margin=mean_of(own, "margin_T"),
                score=scores.get(entry.id),
                reason=left_out.get(entry.id),
            )
        )
    return tuple(found)


def worst_tokens(items: Sequence[ScoredItem], reference: Reference) -> tuple[TokenNote, ...]:
    """The tokens with the largest margins, at most two of a sequence: one bad sequence must not fill the page."""
    found: list[tuple[float, ScoredItem, int]] = []
    for item in items:
        margin_T = np.where(item.scores.usable_T, item.scores.margin_T, 0.0)
        found += [
            (float(margin_T[step]), item, int(step))
            for step in np.argsort(-margin_T, kind="stable")[:2]
            if margin_T[step] > 0
        ]
    found.sort(key=lambda entry: -entry[0])
    return tuple(_note(item, step, margin, reference) for margin, item, step in found[:WORST_TOKENS])


def _note(item: ScoredItem, step: int, margin: float, reference: Reference) -> TokenNote:
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
