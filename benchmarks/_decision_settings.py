"""Scores under other sampling settings than the usual one: the same deviations, shorter prefixes, fewer statistics.

The sequences are made by `tools/gpu_traces.py plan unfiltered` and `plan hot` on a GPU and are not kept. Beside our
score and its peers there is one that was *told* the deviation, to see what knowing it would gain.
Every process has a reference of its own and replays parts of the sets.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import _decision_scores as scores_of
from _audit_cases import ROOT
from _decision_pauc import HONEST, SETTING, STATISTICS
from _results import COMMIT
from veridifr.likelihood import SIGMA_GRID, mix, win_matrix
from veridifr.references import Reference, ReferenceSettings, load
from veridifr.rng import compiled
from veridifr.scores import Scores
from veridifr.shares import fit_shares
from veridifr.traces import trace_from_dict

sys.path.insert(0, str(ROOT / "tools"))
from trace_pools import load_pool, load_set, pool_names, write_arrays

Floats = npt.NDArray[np.float64]
TOLD_SIZES = ("int4", "fp8", "kv_fp8")
"""Forward passes: told by the share of tokens at each size of error, fitted on every other sequence of the set."""
TOLD_TEMPERATURES = {"temp1.1": 0.1}
"""Told by the change of the temperature, relative."""
MOST_SHUFFLED_HONEST, MOST_SHUFFLED = 500, 300
BITS = 6
"""Bits of mantissa that are kept of every value."""
FLOOR = 0.95
USUAL = "usual"
"""The setting of decisions.npz, which holds its scores: of it only what was told is kept."""
COLUMNS = [STATISTICS.index(name) for name in SETTING.statistics]
PART = 25
"""Sequences that a process replays at a time."""


@dataclass(frozen=True)
class Source:
    """The reference's model directory and device, and the files of sequences."""

    model: Path
    device: str
    pools: tuple[Path, ...]


@dataclass(frozen=True)
class Part:
    """Sequences `first` to `stop - 1` of a set."""

    pool: Path
    name: str
    first: int
    stop: int


class Judged(NamedTuple):
    """Of one sequence: statistics [E, 7], log ratios [T, A], other token values [T, 6], and log q of each token at each
    size of error of the grid [T, G]; all float32."""

    table: Floats
    ratios: Floats
    values: Floats
    logs: Floats


def collect(source: Source, out: Path, setting: str, jobs: int, limit: int | None, only: Sequence[str]) -> None:
    """Leave the scores of all judged sequences of the honest sets and of those in `only` (none: all) in
    `out`/decisions_SETTING.npz, and what was fitted in the .json beside it."""
    out.mkdir(parents=True, exist_ok=True)
    parts = parts_of(source.pools, limit)
    names = [name for name in only or parts if name not in HONEST]
    honest = [name for name in HONEST if name in parts]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        items = [part for name in honest for part in parts[name]]
        fits = [scores for found in pool.map(partial(_calibration, source), items) for scores in found]
        fits = scores_of.some_of(fits)
        fitted = scores_of.fitted_on(fits)
        print("fitted", fitted.statistic.sigma, fitted.statistic.epsilon, fitted.statistic.spread, flush=True)
        null_G = fit_shares(np.concatenate([_logs(scores, fitted) for scores in fits]))
        shares: dict[str, Floats] = {}
        arrays: dict[str, Any] = {"edges": np.array(SETTING.edges), "statistics": np.array(SETTING.statistics)}
        for name in [*names, *honest]:
            found = [one for part in pool.map(partial(_judged, source, fitted), parts[name]) for one in part]
            if name in TOLD_SIZES:
                shares[name] = fit_shares(np.concatenate([one.logs for one in found[::2]]))
            arrays |= {f"{name}/{key}": value for key, value in _kept(name, found, fitted, shares, null_G).items()}
            print(name, len(found), flush=True)
    kept = floored(told_alone(arrays) if setting == USUAL else arrays)
    write_arrays(
        out / f"decisions_{setting}.npz", {key: scores_of.shortened(value, BITS) for key, value in kept.items()}
    )
    about = scores_of.described(_reference(source), fitted, len(fits)) | {
        "temperature": load_set(source.pools[0], honest[0]).meta["sampling"]["temperature"],
        "shares": {name: values.round(5).tolist() for name, values in {"honest": null_G, **shares}.items()},
    }
    (out / f"decisions_{setting}.json").write_text(json.dumps({"fitted": about, "made_at": COMMIT}, indent=1))


def told_alone(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Without the scores that were not told."""
    return {key: value for key, value in arrays.items() if not key.endswith("/scores") and "/shuffled" not in key}


def floored(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """What was told, raised to what `FLOOR` of the honest sequences stay below: lower values are never among the one in
    a hundred that a partial AUC looks at, and compress to nothing."""
    found = dict(arrays)
    names = [key.removesuffix("/told") for key in arrays if key.endswith("/told")]
    for name in names:
        honest = [key for key in arrays if key.endswith(f"/told.{name}")]
        floor_E = np.quantile(np.concatenate([arrays[key] for key in honest]), FLOOR, axis=0, method="lower")
        found |= {key: np.maximum(arrays[key], floor_E) for key in (*honest, f"{name}/told")}
    return found


def parts_of(pools: Sequence[Path], limit: int | None) -> dict[str, list[Part]]:
    """The sets of some files in parts, of each at most `limit` sequences."""
    found: dict[str, list[Part]] = {}
    for pool in pools:
        for name in pool_names(pool):
            if name not in scores_of.LEFT_OUT:
                count = min(limit or PART**3, len(load_set(pool, name).seeds))
                starts = range(0, count, PART)
                found[name] = [Part(pool, name, first, min(first + PART, count)) for first in starts]
    return found


@cache
def _reference(source: Source) -> Reference:
    """One for each process."""
    compiled.enable()
    return load(f"hf:{source.model}", ReferenceSettings(device=source.device, dtype="float32"))


@cache
def _records(pool: Path, name: str) -> list[dict[str, Any]]:
    return load_pool(pool, name)


def _replayed(source: Source, part: Part, *, calibration: bool) -> Iterator[Scores]:
    """Scores of a part's sequences that are of the calibration split, or those that are not."""
    traces = [trace_from_dict(record) for record in _records(part.pool, part.name)[part.first : part.stop]]
    if part.name in HONEST:
        traces = [trace for trace in traces if scores_of.in_calibration(trace) == calibration]
    reference = _reference(source)
    by_id = {trace.id: trace for trace in traces}
    found = {
        item.trace_id: scores_of.scored((by_id[item.trace_id], item, reference.eos_ids))
        for item in reference.evidence(traces)
    }
    return (found[trace.id] for trace in traces)


def _calibration(source: Source, part: Part) -> list[Scores]:
    return list(_replayed(source, part, calibration=True))


def _judged(source: Source, fitted: scores_of.Fitted, part: Part) -> list[Judged]:
    return [
        Judged(*scores_of.measured((scores, fitted), SETTING.edges), _logs(scores, fitted))
        for scores in _replayed(source, part, calibration=False)
    ]


def _logs(scores: Scores, fitted: scores_of.Fitted) -> Floats:
    return mix(win_matrix(scores, SIGMA_GRID), scores, fitted.statistic.epsilon).astype(np.float32)


def _kept(
    name: str, found: list[Judged], fitted: scores_of.Fitted, shares: dict[str, Floats], null_G: Floats
) -> dict[str, Any]:
    """The arrays of one set. `shares` are those of the sets before it: honest ones come last."""
    honest = name in HONEST
    kept: dict[str, Any] = {
        "scores": np.stack([one.table[:, COLUMNS] for one in found]),
        "fit": np.zeros(len(found), dtype=bool),
    }
    most = MOST_SHUFFLED_HONEST if honest else MOST_SHUFFLED
    tables = [one[:3] for one in found]
    for size, batch in scores_of.shuffled(tables, fitted, np.random.default_rng(1), most).items():
        kept[f"shuffled{size}"] = batch[:, COLUMNS]
    for other, change in TOLD_TEMPERATURES.items():
        if honest or other == name:
            place = _place(fitted, change)
            kept[f"told.{other}" if honest else "told"] = np.stack([_at_edges(one.ratios[:, place]) for one in found])
    for other in shares:
        if honest or other == name:
            judged = found if honest else found[1::2]
            values = np.stack([_ratio(one.logs, shares[other], null_G) for one in judged])
            kept[f"told.{other}" if honest else "told"] = values
    return kept


def _ratio(logs_TG: Floats, told_G: Floats, null_G: Floats) -> Floats:
    """Log ratio of two ways to share out the sizes of errors, over each prefix: float32[E]."""
    likely_TG = np.exp(logs_TG.astype(np.float64))
    return _at_edges(np.log(likely_TG @ told_G) - np.log(likely_TG @ null_G))


def _at_edges(ratios_T: Floats) -> Floats:
    return np.cumsum(ratios_T, dtype=np.float64)[np.array(SETTING.edges) - 1].astype(np.float32)


def _place(fitted: scores_of.Fitted, change: float) -> int:
    alternatives = fitted.statistic.alternatives
    return next(i for i, one in enumerate(alternatives) if one.kind == "temperature" and one.size == change)
