"""Scores under other sampling settings than the usual one: the same deviations, shorter prefixes, fewer statistics.

The sequences are made by `tools/gpu_traces.py plan unfiltered` and `plan hot` on a GPU and are not kept. Beside our
score and its peers there is one that was *told* the deviation: what is left to gain for a score that adds up tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from trace_pools import write_arrays

import _decision_scores as scores_of
from _decision_pauc import SETTING, STATISTICS
from veridifr.likelihood import SIGMA_GRID, mix, win_matrix
from veridifr.references import Reference
from veridifr.scores import Scores
from veridifr.shares import fit_shares

Floats = npt.NDArray[np.float64]
TOLD_SIZES = ("int4", "fp8", "kv_fp8")
"""Forward passes: told by the share of tokens at each size of error, fitted on every other sequence of the set."""
TOLD_TEMPERATURES = {"temp1.1": 0.1}
"""Told by the change of the temperature, relative."""
MOST_SHUFFLED_HONEST, MOST_SHUFFLED = 500, 300
BITS = 6
"""Bits of mantissa that are kept of every value."""
COLUMNS = [STATISTICS.index(name) for name in SETTING.statistics]


def collect(
    reference: Reference, pool: Executor, out: Path, limit: int | None, *, pools: Sequence[Path], every: bool = True
) -> dict[str, Any]:
    """Write the scores of all judged sequences of `pools` to `out`, of honest and told sets alone unless `every`; what
    was fitted, for the results file."""
    found = scores_of.replay_honest(reference, pool, pools, limit)
    null_G = fit_shares(np.concatenate(list(_logs(found.fits, found.fitted, pool))))
    arrays: dict[str, Any] = {"edges": np.array(SETTING.edges), "statistics": np.array(SETTING.statistics)}
    shares: dict[str, Floats] = {}
    told = {*TOLD_SIZES, *TOLD_TEMPERATURES}
    deviating = [name for name in found.traces if name not in found.honest and (every or name in told)]
    for name in [*deviating, *found.honest]:
        honest = name in found.honest
        scores = found.honest[name] if honest else scores_of.replayed(reference, found.traces[name], pool)
        if honest:
            scores = [item for item, fit in zip(scores, found.split[name], strict=True) if not fit]
        measure = partial(scores_of.measured, edges=SETTING.edges)
        tables = list(pool.map(measure, [(item, found.fitted) for item in scores], chunksize=8))
        arrays[f"{name}/scores"] = np.stack([table[:, COLUMNS] for table, _, _ in tables])
        arrays[f"{name}/fit"] = np.zeros(len(tables), dtype=bool)
        most = MOST_SHUFFLED_HONEST if honest else MOST_SHUFFLED
        for size, batch in scores_of.shuffled(tables, found.fitted, np.random.default_rng(1), most).items():
            arrays[f"{name}/shuffled{size}"] = batch[:, COLUMNS]
        for other, change in TOLD_TEMPERATURES.items():
            if honest or other == name:
                place = _place(found.fitted, change)
                values = [_at_edges(ratios[:, place]) for _, ratios, _ in tables]
                arrays[f"{name}/told.{other}" if honest else f"{name}/told"] = np.stack(values)
        if honest or name in TOLD_SIZES:
            logs = list(_logs(scores, found.fitted, pool))
            if not honest:
                shares[name] = fit_shares(np.concatenate(logs[::2]))
                arrays[f"{name}/told"] = np.stack([_ratio(logs_TG, shares[name], null_G) for logs_TG in logs[1::2]])
            for other in shares if honest else ():
                values = [_ratio(logs_TG, shares[other], null_G) for logs_TG in logs]
                arrays[f"{name}/told.{other}"] = np.stack(values)
        print(name, len(scores), flush=True)
    write_arrays(out, {key: scores_of.shortened(value, BITS) for key, value in arrays.items()})
    about = scores_of.described(reference, found)
    sizes = {name: values.round(5).tolist() for name, values in {"honest": null_G, **shares}.items()}
    return {**about, "temperature": found.traces["honest.v1"][0].sampling.temperature, "shares": sizes}


def error_logs(item: tuple[Scores, float]) -> Floats:
    """log q of each token at each size of error of the grid, float32[T, G]."""
    scores, epsilon = item
    return mix(win_matrix(scores, SIGMA_GRID), scores, epsilon).astype(np.float32)


def _logs(scores: Sequence[Scores], fitted: scores_of.Fitted, pool: Executor) -> Any:
    return pool.map(error_logs, [(item, fitted.statistic.epsilon) for item in scores], chunksize=8)


def _ratio(logs_TG: Floats, told_G: Floats, null_G: Floats) -> Floats:
    """Log ratio of two ways to share out the sizes of errors, over each prefix: float32[E]."""
    likely_TG = np.exp(logs_TG.astype(np.float64))
    return _at_edges(np.log(likely_TG @ told_G) - np.log(likely_TG @ null_G))


def _at_edges(ratios_T: Floats) -> Floats:
    return np.cumsum(ratios_T, dtype=np.float64)[np.array(SETTING.edges) - 1].astype(np.float32)


def _place(fitted: scores_of.Fitted, change: float) -> int:
    alternatives = fitted.statistic.alternatives
    return next(i for i, one in enumerate(alternatives) if one.kind == "temperature" and one.size == change)
