"""Every claim beside its peers: rows of deviation x model x budget, and where this package is ahead, tied or behind.

    python benchmarks/evidence.py                     collect, from what is measured already
    python benchmarks/evidence.py --check             recompute everything from the same files
    python benchmarks/evidence.py --write-docs        write the tables of docs/results.md

Rows come from the experiments that were run (experiments/results/*/scores.npz, made by experiments/run.py) and from the
H200's sequences of tb24m: results/decisions.npz (made by benchmarks/decisions.py: vLLM 0.24, 300 tokens a sequence) and
for activations results/fingerprints_h200.npz (benchmarks/fingerprints.py). All hold every detector's value of every
sequence, on the same evidence. What a row says is in experiments/tables.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import _results
from _decision_pauc import judged, partial_auc
from _decision_scores import EDGES
from _evidence_docs import END, START, block
from _fingerprint_figures import Cell, cells_of
from _fingerprint_scores import TOKENS
from veridifr.stats import clopper_pearson, permutation_test, permutations_for

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "experiments"))
import peer_package  # noqa: E402  (they lie beside the package)
import run  # noqa: E402
import scores  # noqa: E402
import spec as specs  # noqa: E402
import tables  # noqa: E402

RESULTS = _results.RESULTS / "evidence.json"
DOCS = ROOT / "docs" / "results.md"
DECISIONS = _results.RESULTS / "decisions.npz"
FINGERPRINTS = _results.RESULTS / "fingerprints.json"
EXPERIMENTS = ROOT / "experiments" / "results"
NAMES = ("likelihood", "mean_clipped_margin", "finite_clipped_margin", "paper_likelihood", "match_rate",
    "cross_entropy", "rank")  # fmt: skip
HONEST = ("honest.v1", "honest.v2", "more.v1", "more.v2")
BUDGETS = (*EDGES, 600, 1200)
MOST = 3000
"""Honest batches of a row at most: more would only take longer."""
H200 = {
    "held.int3": ("int3 weights", True),
    "int4": ("int4 weights", True),
    "held.int8": ("int8 weights and activations", False),
    "fp8": ("fp8 weights and activations", False),
    "kv_fp8": ("fp8 key-value cache", False),
    "held.tb7m": ("a smaller model (7 M for 24 M)", False),
    "held.temp0.95": ("temperature 0.95", False),
    "temp1.02": ("temperature 1.02", False),
    "temp1.1": ("temperature 1.1", False),
    "top_p0.85": ("top-p 0.85", False),
    "held.top_p0.9": ("top-p 0.9", False),
}
"""Set: what it is, and whether its kernels are simulated by rounded weights."""
FINGERPRINTED = {
    "int4": ("int4 weights", True),
    "int8": ("int8 weights", True),
    "fp8": ("fp8 weights", True),
    "kv_fp8": ("fp8 key-value cache", True),
    "low_rank": ("low-rank change of 1 %", False),
    "tb7m": ("a smaller model (7 M for 24 M)", False),
}
"""The same for the H200's hidden states, which are of transformers."""
SHOWN = 2
"""Tokens at which our fingerprints are compared with each other."""
ALPHA = 0.01
AUDITS, SIZE = 1000, 20
"""Simulated honest audits of each pool, and sequences of one."""
INT8_BUDGET = 10_000


def main() -> int:
    """Exit status: 1 if figures or tables do not follow from the files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    if not (args.check or args.write_docs):
        figures = _results.write(RESULTS, collected(), figures_of)
        print(json.dumps({key: value for key, value in figures.items() if key != "by_source"}, indent=1))
        return 0
    raw = _results.read(RESULTS)["raw"]
    wrong = _results.documented(DOCS, START, END, block(raw), write=args.write_docs)
    if args.check:
        wrong += _results.check(RESULTS, figures_of)
        again = json.loads(json.dumps(collected()))
        wrong += [f"raw.{key}: does not follow from the files" for key in again if again[key] != raw.get(key)]
    print("\n".join(wrong) or "evidence: figures and tables follow from the measured values")
    return 1 if wrong else 0


def collected() -> dict[str, Any]:
    """Everything that figures and tables are made of."""
    files = {"h200": DECISIONS, **{path.parent.name: path for path in sorted(EXPERIMENTS.glob("*/scores.npz"))}}
    raw: dict[str, Any] = {
        "sources": {},
        "rows": [],
        "beyond": 0,
        "honest": {},
        "stacks": {},
        "package": {},
        "configurations": [],
        "together": [],
    }
    for name, path in files.items():
        raw["sources"][name] = _results.digest(path)
        if name == "h200":
            continue
        document = json.loads((path.parent / "table.json").read_text())
        found = run.table(document["raw"], path)
        if json.loads(json.dumps(found)) != document["figures"]:
            raise SystemExit(f"{path.parent}: table.json does not follow from scores.npz")
        raw["rows"] += [{"source": name, **_compared(row, "batches")} for row in found["rows"]]
        raw["beyond"] += found["beyond"]
        raw["configurations"] += _configurations(name, found["fingerprints"])
        raw["stacks"][name] = document["raw"]["stacks"]
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        experiment = specs.parse(document["raw"]["experiment"])
        raw["together"] += [{"source": name, **row} for row in run.together(experiment, arrays, list(found["honest"]))]
        installed = path.parent / f"{peer_package.NAME}.json"
        if installed.exists():
            about = json.loads(installed.read_text())["raw"]
            raw["package"] |= {"name": about["package"], "sequences": about["sequences"]}
            raw["package"]["found"] = peer_package.figures(about, path.parent)
        for model, stacks in _experiment_stacks(
            arrays, found
        ).items():  # stacks of one model: another is no calibration
            raw["honest"][name if len(found["honest"]) == 1 else f"{name}/{model}"] = _rate(stacks)
    with np.load(DECISIONS, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files if key.endswith(("/scores", "/fit"))}
    for path in sorted(EXPERIMENTS.glob("*/table.json")):
        if path.parent.name not in files:  # honest stacks alone
            raw["sources"][path.parent.name] = _results.digest(path)
            raw["stacks"][path.parent.name] = _results.read(path)["raw"]["stacks"]
    rows, beyond = _h200_rows(arrays)
    raw["rows"] += rows + list(_fingerprint_rows(raw["sources"]))
    raw["beyond"] += beyond
    raw["honest"]["h200"] = _rate([judged(arrays, name)[:, EDGES.index(300), 0] for name in HONEST])
    raw["int8"] = _int8(arrays)
    return raw


def figures_of(raw: dict[str, Any]) -> dict[str, Any]:
    """Counts of rows, and the rates."""
    rows = raw["rows"]
    count = {status: sum(row["status"] == status for row in rows) for status in ("ahead", "tied", "behind")}
    rejected = sum(one["rejected"] for one in raw["honest"].values())
    audits = sum(one["audits"] for one in raw["honest"].values())
    sources = sorted({row["source"] for row in rows})
    return {
        "rows": len(rows),
        **{f"rows_{status}": number for status, number in count.items()},
        "share_ahead": count["ahead"] / len(rows),
        "share_ahead_of_undecided": count["ahead"] / max(1, len(rows) - sum(map(_saturated, rows))),
        "rows_saturated": sum(map(_saturated, rows)),
        "rows_beyond": raw["beyond"],
        "false_positive_rate_pooled": rejected / audits,
        "false_positive_interval": list(clopper_pearson(rejected, audits, 0.999)),
        "alpha": ALPHA,
        "int8_pauc_10k": raw["int8"]["pauc"],
        "int8_batches": raw["int8"]["batches"],
        "by_source": {
            name: {
                status: sum(row["status"] == status for row in rows if row["source"] == name)
                for status in ("ahead", "tied", "behind")
            }
            for name in sources
        },
    }


def _saturated(row: dict[str, Any]) -> bool:
    """Whether both are certain, or both blind: no detector can be ahead."""
    return bool(row["certain"]) or max(row["auc"].values()) <= tables.CHANCE


def _h200_rows(arrays: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Rows of tokens, and how many are left out as one of fewer tokens is certain."""
    honest = np.concatenate([judged(arrays, name) for name in HONEST])
    honest = honest[np.random.default_rng(0).permutation(len(honest))]
    rows, beyond = [], 0
    for name, (deviation, simulated) in H200.items():
        theirs = judged(arrays, name)
        found = []
        for budget in BUDGETS:
            pair = [tables.batches(part, EDGES, budget) for part in (honest, theirs)]
            assert pair[0] is not None and pair[1] is not None
            row = tables.row(deviation, "tokens", budget, NAMES, pair[0][:MOST], pair[1])
            assert row is not None
            found.append({"source": "h200", "model": "tb24m", "simulated": simulated, **_compared(row)})
        kept, more = tables.ladder(found)
        rows += kept
        beyond += more
    return rows, beyond


def _fingerprint_rows(sources: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of the H200's hidden states. Their scores are kept as counts, so that each detector's batches are redrawn by
    themselves: intervals are wider than of pairs."""
    about = _results.read(FINGERPRINTS)["raw"]["h200"]
    sources["h200/activations"] = about["sha256"]
    with np.load(
        _results.unchanged(FINGERPRINTS.with_name(about["scores"]), about["sha256"]), allow_pickle=False
    ) as file:
        every = list(cells_of({key: file[key] for key in ("counts", "ends", "names")}))
    for name, (deviation, simulated) in FINGERPRINTED.items():
        ranked = sorted((pair for pair in every if pair[1].deviation == name), key=lambda pair: -pair[1].auc)

        def judge(place: int, limit: int, ranked: Any = ranked, deviation: str = deviation) -> dict[str, Any]:
            most, size = TOKENS[place], scores.PROOF_BYTES[limit]
            affordable = [pair for pair in ranked if pair[1].tokens <= most and pair[1].size <= size]
            best = next(cell for method, cell in affordable if method == "ours")
            compared = [best, *[cell for method, cell in affordable if method == "toploc"][: run.PEERS]]
            labels = [f"{cell.config}, {cell.tokens} tokens" for cell in compared]
            drawn = np.column_stack([_redrawn(cell, seed) for seed, cell in enumerate(compared)])
            count = tuple(int(total) for total in best.counts.sum(axis=0))
            found = np.array([cell.auc for cell in compared])
            return _compared(tables.compared(deviation, "activations", most, labels, count, found, drawn))  # type: ignore[arg-type]  # two

        for row in tables.grid(TOKENS, scores.PROOF_BYTES, judge):
            yield {"source": "h200", "model": "tb24m", "simulated": simulated, **row}


def _redrawn(cell: Cell, seed: int) -> Any:
    """AUC of batches redrawn, from counts [levels, 2] of honest and deviating ones."""
    rng = np.random.default_rng(seed)
    honest, theirs = (rng.multinomial(c.sum(), c / c.sum(), tables.REDRAWS) for c in cell.counts.T.astype(np.int64))
    below = np.cumsum(honest, axis=1) - honest
    return (theirs * (below + honest / 2)).sum(axis=1) / (honest[0].sum() * theirs[0].sum())


def _compared(row: dict[str, Any], *left_out: str) -> dict[str, Any]:
    """A row with the two detectors that it compares; what is left out of it follows from the same files, as the others'
    values do."""
    kept = {key: value for key, value in row.items() if key not in ("interval", *left_out)}
    return {**kept, "auc": {name: row["auc"][name] for name in (row["ours"], row["closest_peer"])}}


def _configurations(source: str, fingerprints: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What each of our fingerprints finds by itself, at `SHOWN` tokens, where they differ."""
    found = []
    for one in fingerprints:
        auc = dict(zip(one["names"], one["auc"][str(SHOWN)], strict=True))
        if len(auc) > 1 and min(auc.values()) < tables.SURE:
            found.append({"source": source, "model": one["model"], "deviation": one["deviation"], "auc": auc})
    return found


def _experiment_stacks(arrays: dict[str, Any], table: dict[str, Any]) -> dict[str, list[Any]]:
    """By model, the likelihood of every judged sequence of each honest provider."""
    return {
        model: [arrays[f"{model}/{name}/tokens"][:, -1, 0].astype(np.float64) for name in stacks]
        for model, stacks in table["honest"].items()
    }


def _rate(stacks: list[Any]) -> dict[str, Any]:
    """How many simulated honest audits are called divergent: the sequences of each are drawn from one stack in turn,
    the others of all stacks calibrate, and the largest p-value over the stacks decides."""
    rng = np.random.default_rng(0)
    rejected = 0
    for number in range(AUDITS):
        audited = number % len(stacks)
        lot = rng.permutation(len(stacks[audited]))
        values = stacks[audited][lot[:SIZE]]
        against = [stacks[audited][lot[SIZE:]] if k == audited else stack for k, stack in enumerate(stacks)]
        rejected += max(_p_value(values, stack, rng) for stack in against) <= ALPHA
    return {"audits": AUDITS, "sequences": SIZE, "stacks": len(stacks), "rejected": rejected}


def _p_value(values: Any, honest: Any, rng: np.random.Generator) -> float:
    found = permutation_test(values, honest, permutations=permutations_for(ALPHA), rng=rng)
    return found.p_value


def _int8(arrays: dict[str, Any]) -> dict[str, Any]:
    """Partial AUC of int8 at the largest budget, from all the batches that there are."""
    count = INT8_BUDGET // EDGES[-1]
    honest = np.concatenate([judged(arrays, name) for name in HONEST])
    honest = honest[np.random.default_rng(0).permutation(len(honest))]
    pair = []
    for part in (honest, judged(arrays, "held.int8")):
        whole = len(part) // count
        pair.append(part[: whole * count, -1, :].reshape(whole, count, -1).sum(axis=1))
    return {
        "tokens": count * EDGES[-1],
        "batches": [len(part) for part in pair],
        "pauc": partial_auc(pair[0][:, 0], pair[1][:, 0]),
        "peers": {name: partial_auc(pair[0][:, c], pair[1][:, c]) for c, name in enumerate(NAMES) if c},
    }


if __name__ == "__main__":
    sys.exit(main())
