"""Every statistic of every sequence of the pools: what benchmarks/decisions.py judges.

The reference replays all sequences once. On a quarter of the prompts (the calibration split) honest logit noise, clips
and the like are fitted; the other three quarters are only scored. Sums are taken at `EDGES`, the lengths of prefixes,
and over batches of tokens shuffled across sequences.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from _audit_cases import ROOT
from _results import COMMIT
from veridifr.evidence import Evidence
from veridifr.fitting import fit_statistic
from veridifr.honest_traces import FIT_SHARE, prompt_digest
from veridifr.named_statistics import NamedStatistics, fit_named
from veridifr.references import Reference
from veridifr.scores import Contenders, Scores
from veridifr.scoring import score_claim
from veridifr.statistic import CAP, LikelihoodRatio, mixed, simulate
from veridifr.trace import Trace
from veridifr.traces import trace_from_dict

sys.path.insert(0, str(ROOT / "tools"))
from trace_pools import load_pool, pool_names, write_arrays

DATA = ROOT / "benchmarks" / "data"
POOLS = (DATA / "h200_pools.npz", DATA / "h200_more.npz")
"""Of held.int3 and held.tb7m, which 30 tokens tell, 300 sequences are kept of the 1,200 that decisions.npz holds:
`tools/gpu_traces.py plan pools --only held.int3` makes others."""
HONEST = ("honest.v1", "honest.v2", "more.v1", "more.v2")
LEFT_OUT = ("honest.v2.plain",)
"""Another sampling setting: another null."""
EDGES = (30, 50, 75, 100, 150, 200, 300)
SHUFFLED = (30, 100, 300, 600)
MOST_SHUFFLED = 1000
"""Shuffled batches kept of each set: more would only make the file larger."""
SHUFFLED_BITS = 6
"""Bits of mantissa that are kept of a shuffled batch's values; of all others 10."""
FITTED_SEQUENCES = 800
"""Sequences of the calibration split that sigma, epsilon and the clips are fitted on; all of it informs bets."""
SIZES = (1.3, 2.0, 4.0, 10.0)
"""Multiples of the honest noise that are simulated on the calibration split, to inform bets."""
SUBTLE = 1.3
"""Multiple of the honest noise that is simulated on sequences which are judged."""
PART_SIGMA, PART_TOKENS = 0.36, 0.05
"""Errors of int4 weights, in logits, on one token of twenty."""
Floats = npt.NDArray[np.float64]


def sequences(name: str, limit: int | None) -> list[Trace]:
    """The traces of a set, of whichever pool holds it."""
    path = next(path for path in POOLS if name in pool_names(path))
    return [trace_from_dict(record) for record in load_pool(path, name)[:limit]]


def sets() -> list[str]:
    """Names of all sets, honest ones first."""
    names = [name for path in POOLS for name in pool_names(path) if name not in LEFT_OUT]
    return [*HONEST, *(name for name in names if name not in HONEST)]


def in_calibration(trace: Trace) -> bool:
    """Whether a prompt belongs to the calibration split: the same rule as `veridifr calibrate`."""
    return int(prompt_digest(trace), 16) % FIT_SHARE == 0


def scored(item: tuple[Trace, Evidence, tuple[int, ...]]) -> Scores:
    """One sequence under its claim."""
    trace, evidence, eos_ids = item
    return score_claim(trace, evidence, eos_ids=eos_ids)


def replayed(reference: Reference, traces: Sequence[Trace], pool: Executor) -> list[Scores]:
    """Scores of all traces, in their order."""
    by_id = {trace.id: trace for trace in traces}
    items = ((by_id[item.trace_id], item, reference.eos_ids) for item in reference.evidence(traces))
    ids, found = [], []
    for chunk in _chunks(items, 64):
        ids += [trace.id for trace, _, _ in chunk]
        found += list(pool.map(scored, chunk, chunksize=4))
    place = {name: index for index, name in enumerate(ids)}
    return [found[place[trace.id]] for trace in traces]


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    chunk = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


@dataclass(frozen=True, eq=False)
class Fitted:
    """What is fitted on honest sequences of the calibration split."""

    statistic: LikelihoodRatio
    others: NamedStatistics


def some_of(fits: Sequence[Scores]) -> list[Scores]:
    """`FITTED_SEQUENCES` of the calibration split, in a random order that is always the same."""
    return [fits[i] for i in np.random.default_rng(0).permutation(len(fits))[:FITTED_SEQUENCES]]


def fitted_on(fits: Sequence[Scores]) -> Fitted:
    """The likelihood score and the statistics it is compared with."""
    statistic = fit_statistic(fits)
    return Fitted(statistic, fit_named(fits, statistic.sigma))


def measured(item: tuple[Scores, Fitted], edges: tuple[int, ...] = EDGES) -> tuple[Floats, Floats, Floats]:
    """Statistics at `edges` float32[E, 7], log ratios float32[T, A] and the other token values float32[T, 6]."""
    scores, fitted = item
    ratios_TA, applies_A = fitted.statistic.ratios(scores)
    likelihood_E = fitted.statistic.prefixes(ratios_TA, applies_A, edges)
    values_T6 = fitted.others.token_values(scores)
    table = np.column_stack([likelihood_E, fitted.others.prefix_scores(scores, edges)])
    return table.astype(np.float32), ratios_TA.astype(np.float32), values_T6.astype(np.float32)


def resampled(item: tuple[Scores, Fitted, float, float, int]) -> Floats:
    """The likelihood score at `EDGES` had a share of the tokens carried errors of so many logits."""
    scores, fitted, sigma, share, seed = item
    rng = np.random.default_rng(seed)
    moved = simulate(scores, sigma, rng)
    if share < 1.0:
        moved = replace(
            moved, contenders=_merged(scores.contenders, moved.contenders, len(scores.status_T), share, rng)
        )
    return fitted.statistic.prefix_scores(moved, EDGES).astype(np.float32)


def _merged(old: Contenders, new: Contenders, tokens: int, share: float, rng: np.random.Generator) -> Contenders:
    """`new` in a random share of the rows, `old` in the others: both hold the same candidates."""
    chosen_M = (rng.random(tokens) < share)[old.rows_M]
    return Contenders(
        rows_M=old.rows_M,
        scores_M=np.where(chosen_M, new.scores_M, old.scores_M),
        edges_M=old.edges_M,
        noise_M=np.where(chosen_M, new.noise_M, old.noise_M),
        claimed_M=np.where(chosen_M, new.claimed_M, old.claimed_M),
    )


def shuffled(
    tables: Sequence[tuple[Floats, Floats, Floats]], fitted: Fitted, rng: np.random.Generator, most: int = MOST_SHUFFLED
) -> dict[int, Floats]:
    """Batches of tokens shuffled across sequences, at most so many: for each size float32[batches, 7]."""
    weights_A = np.array([entry.weight for entry in fitted.statistic.alternatives])
    ratios = np.concatenate([ratios for _, ratios, _ in tables])
    values = np.concatenate([values for _, _, values in tables])
    order = rng.permutation(len(ratios))
    found = {}
    for size in SHUFFLED:
        count = min(len(order) // size, most)
        index = order[: count * size].reshape(count, size)
        sums = np.stack([ratios[row].sum(axis=0, dtype=np.float64) for row in index])
        likelihood = np.minimum(mixed(sums, weights_A), CAP)
        others = np.stack([values[row].sum(axis=0, dtype=np.float64) for row in index])
        found[size] = np.column_stack([likelihood, others]).astype(np.float32)
    return found


def collect(reference: Reference, pool: Executor, out: Path, limit: int | None) -> dict[str, Any]:
    """Write all scores to `out`; what was fitted, for the results file."""
    arrays: dict[str, Any] = {}
    traces = {name: sequences(name, limit) for name in sets()}
    honest = {name: replayed(reference, traces[name], pool) for name in HONEST}
    split = {name: np.array([in_calibration(trace) for trace in traces[name]]) for name in traces}
    fits = [s for name in HONEST for s, fit in zip(honest[name], split[name], strict=True) if fit]
    fits = some_of(fits)
    fitted = fitted_on(fits)
    print("fitted", fitted.statistic.sigma, fitted.statistic.epsilon, fitted.others, flush=True)
    for name in traces:
        scores = honest.pop(name) if name in honest else replayed(reference, traces[name], pool)
        tables = list(pool.map(measured, [(item, fitted) for item in scores], chunksize=8))
        arrays[f"{name}/scores"] = np.stack([table for table, _, _ in tables])
        arrays[f"{name}/fit"] = split[name]
        judged = [table for table, fit in zip(tables, split[name], strict=True) if not fit]
        for size, batch in shuffled(judged, fitted, np.random.default_rng(1)).items():
            arrays[f"{name}/shuffled{size}"] = batch
        if name in HONEST:
            arrays.update(_simulated(name, scores, split[name], fitted, pool))
        print(name, len(scores), flush=True)
    write_arrays(
        out, {key: shortened(value, SHUFFLED_BITS if "/shuffled" in key else 10) for key, value in arrays.items()}
    )
    return described(reference, fitted, len(fits))


def described(reference: Reference, fitted: Fitted, sequences: int) -> dict[str, Any]:
    """What was fitted on so many sequences, and with which reference."""
    return {
        "sigma": fitted.statistic.sigma,
        "epsilon": fitted.statistic.epsilon,
        "spread": fitted.statistic.spread,
        "clip": fitted.others.clip,
        "finite_clip": fitted.others.finite_clip,
        "fitted_sequences": sequences,
        "reference": dict(reference.settings),
    }


def collect_into(out: Path, reference: Reference, jobs: int, limit: int | None) -> None:
    """`collect` with so many processes: leaves decisions.npz and decisions.json in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        fitted = collect(reference, pool, out / "decisions.npz", limit)
    (out / "decisions.json").write_text(json.dumps({"fitted": fitted, "made_at": COMMIT}, indent=1))


def _simulated(
    name: str, scores: Sequence[Scores], fit: npt.NDArray[np.bool_], fitted: Fitted, pool: Executor
) -> dict[str, Any]:
    sigma = fitted.statistic.sigma
    parts = {f"{name}/fit.sigma{size:g}": (fit, size * sigma, 1.0) for size in SIZES}
    if name == HONEST[0]:
        parts[f"{name}/sigma{SUBTLE:g}"] = (~fit, SUBTLE * sigma, 1.0)
        parts[f"{name}/part_tokens"] = (~fit, PART_SIGMA, PART_TOKENS)
    found = {}
    for number, (key, (chosen, size, share)) in enumerate(parts.items()):
        items = [(scores[i], fitted, size, share, 1000 * number + int(i)) for i in np.flatnonzero(chosen)]
        found[key] = np.stack(list(pool.map(resampled, items, chunksize=8)))
    return found


def shortened(values: Any, bits: int) -> Any:
    """float32 as float16 with `bits` bits of mantissa, rounded to nearest: enough to rank by. The values of
    one statistic stand together, and compress well."""
    if values.dtype != np.float32:
        return values
    gone = 10 - bits
    raised = np.ascontiguousarray(values.astype(np.float16)).view(np.uint16) + np.uint16((1 << gone) // 2)
    return np.asfortranarray((raised >> np.uint16(gone) << np.uint16(gone)).view(np.float16))
