"""Run an experiment: serve, replay, score. What is done already is not done again.

    python experiments/run.py experiments/small.toml [--work DIR] [--jobs N] [--only NAME ...]

Traces and hidden states go to DIR (default experiments/work/NAME); every sequence's values and the table go to
experiments/results/NAME: scores.npz, and table.json with commit, versions and hardware.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import scores
import spec as specs
import stacks
import tables

sys.path.insert(0, str(specs.ROOT / "benchmarks"))
import _results

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def main() -> int:
    """Exit status: 1 if a provider could not be served."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, one thread each")
    parser.add_argument("--only", nargs="+", help="serve and score these providers only, and the honest ones")
    args = parser.parse_args()
    experiment = specs.read(args.experiment)
    work = args.work or HERE / "work" / experiment.name
    begun = time.monotonic()
    arrays: dict[str, Any] = {}
    fitted: dict[str, Any] = {}
    pairs: dict[str, Any] = {}
    for model in experiment.models:
        if any(one.model == model for one in experiment.providers):
            continue  # it is served in the place of another
        folder = work / model
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "experiment.toml").write_text(args.experiment.read_text())
        serve(args, experiment, model, folder)
        judge(args, experiment, model, folder)
        fitted[model] = json.loads((folder / "fitted.json").read_text())
        for provider in _wanted(args, experiment):
            with np.load(folder / f"{provider.file}.scores.npz", allow_pickle=False) as file:
                arrays.update({f"{model}/{provider.name}/{key}": file[key] for key in file.files})
        if experiment.stacks:
            pairs[model] = stacks.table(experiment, model, folder)
    out = args.results / experiment.name
    out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out / "scores.npz", **arrays)
    raw = {
        "experiment": args.experiment.read_text(),
        "fitted": fitted,
        "stacks": pairs,
        "seconds": round(time.monotonic() - begun),
    }
    figures = _results.write(out / "table.json", raw, lambda given: table(given, out / "scores.npz"))
    for row in figures["rows"]:
        print(f"{row['model']:6} {row['deviation']:34} {row['kind']:11} {row['budget']:5} {row['status']:6} "
              f"{row['auc'][row['ours']]:.4f} {row['auc'][row['closest_peer']]:.4f} {row['closest_peer']}")  # fmt: skip
    return 0


def table(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The rows, from a results file's raw part and the values of every sequence."""
    experiment = specs.parse(raw["experiment"])
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    rows = []
    for model in raw["fitted"]:
        honest = [f"{model}/{one.name}" for one in experiment.honest]
        for provider in experiment.deviating:
            name = f"{model}/{provider.name}"
            if f"{name}/tokens" in arrays:
                rows += _rows(experiment, model, provider, honest, arrays)
    return {"rows": rows, "honest": _honest(experiment, raw, arrays)}


def _rows(
    experiment: specs.Experiment, model: str, provider: specs.Provider, honest: list[str], arrays: dict[str, Any]
) -> list[dict[str, Any]]:
    found = []
    kinds = (
        ("tokens", experiment.budgets, experiment.edges, scores.TOKEN_DETECTORS),
        ("activations", experiment.activation_budgets, experiment.activation_budgets, scores.activation_detectors()),
    )
    for kind, budgets, edges, names in kinds:
        ours = tables.lots(arrays, honest, kind)
        theirs = tables.lots(arrays, [f"{model}/{provider.name}"], kind)
        if ours is None or theirs is None or (kind == "activations" and not provider.changes_forward_pass):
            continue
        for budget in budgets:
            pair = tables.batches(ours, edges, budget), tables.batches(theirs, edges, budget)
            if pair[0] is None or pair[1] is None:
                raise ValueError(f"{experiment.name}: budget {budget}: neither an edge nor a multiple of the last one")
            row = tables.row(provider.name, kind, budget, names, pair[0], pair[1])
            if row is not None:
                found.append({"model": model, "simulated": provider.simulated, "ours": names[0], **row})
    return found


def _honest(experiment: specs.Experiment, raw: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """How honest providers compare with each other: exact match at each, by model."""
    place = scores.TOKEN_DETECTORS.index("match_rate")
    return {
        model: {
            one.name: 1.0 - float(arrays[f"{model}/{one.name}/tokens"][:, -1, place].mean()) / experiment.tokens
            for one in experiment.honest
        }
        for model in raw["fitted"]
    }


def serve(args: argparse.Namespace, experiment: specs.Experiment, model: str, folder: Path) -> None:
    """Traces of every provider."""
    prompts = folder / "prompts.json"
    if not prompts.exists():
        _worker("prompts", str(args.experiment), model, str(prompts))
    _each("serve", ".jsonl.gz", args, experiment, model, folder)


def judge(args: argparse.Namespace, experiment: specs.Experiment, model: str, folder: Path) -> None:
    """Every detector's value of every judged sequence."""
    if not (folder / "fitted.json").exists():
        _worker("fit", str(args.experiment), model, str(folder))
    _each("score", ".scores.npz", args, experiment, model, folder)


def _each(
    verb: str, leaves: str, args: argparse.Namespace, experiment: specs.Experiment, model: str, folder: Path
) -> None:
    """One step for every provider that lacks the file which it leaves, each in a process of its own."""
    missing = [one for one in _wanted(args, experiment) if not (folder / f"{one.file}{leaves}").exists()]
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(_worker, verb, str(args.experiment), model, str(folder), one.name) for one in missing]
        for one, job in zip(missing, jobs, strict=True):
            print(f"{model}: {one.name}: {verb} took {job.result():.0f} s", flush=True)


def _wanted(args: argparse.Namespace, experiment: specs.Experiment) -> list[specs.Provider]:
    return [one for one in experiment.providers if one.honest or not args.only or one.name in args.only]


def _worker(verb: str, *rest: str) -> float:
    """Run one step in a process of its own; the seconds it took. Its output is shown if it fails."""
    begun = time.monotonic()
    script = "judge.py" if verb in ("fit", "score") else "worker.py"
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE), **os.environ}
    found = subprocess.run(
        [sys.executable, str(HERE / script), verb, *rest],
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    if found.returncode:
        raise SystemExit(f"{verb} {' '.join(rest)}: exit status {found.returncode}\n{found.stdout[-4000:]}")
    return time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main())
