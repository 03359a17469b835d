"""Run an experiment: serve, replay, score. What is done already is not done again.

    python experiments/run.py experiments/small.toml [--work DIR] [--jobs N] [--only NAME ...]
    python experiments/run.py experiments/gpu.toml --jobs 8 --judges 10 --keep-going

Traces and hidden states go to DIR (default experiments/work/NAME); every sequence's values and the table go to
experiments/results/NAME: scores.npz, and table.json with commit, versions and hardware. Models are run side by
side; the results are written when one is done, and again with the next.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import scores
import spec as specs
import stacks
import tables

sys.path.insert(0, str(specs.ROOT / "benchmarks"))
sys.path.insert(0, str(specs.ROOT / "tools"))
from trace_pools import write_arrays

import _results

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PEERS = 8
"""Of a peer's many configurations in a row of activations, the best that ours is compared with."""
SERVING = 0.65
"""Share of a time limit after which no provider is waited for any more: what was served is judged in the rest."""


class Failed(Exception):
    """A step without which a model cannot be judged, or any step where none may fail."""


@dataclass(frozen=True)
class Run:
    """What every step needs to know: the options, the experiment, how many processes may run, and the time."""

    args: argparse.Namespace
    experiment: specs.Experiment
    work: Path
    begun: float
    slots: dict[str, threading.BoundedSemaphore]
    """By script, what lets so many processes of it run at a time."""
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    """By model and provider, the step that failed."""

    @property
    def wanted(self) -> list[specs.Provider]:
        """The providers that are run."""
        only = self.args.only
        return [one for one in self.experiment.providers if one.honest or not only or one.name in only]

    def left(self, share: float = 1.0) -> float | None:
        """Seconds until a share of the time limit has passed; None without a limit."""
        limit = self.args.deadline
        return None if limit is None else limit * share - (time.monotonic() - self.begun)

    def say(self, text: str) -> None:
        """One line, with the seconds since the beginning."""
        print(f"[{time.monotonic() - self.begun:6.1f}s] {text}", flush=True)


def main() -> int:
    """Exit status: 1 if a provider failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--jobs", type=int, default=2, help="engines at a time")
    parser.add_argument("--judges", type=int, help="processes that judge at a time (default: as many as engines)")
    parser.add_argument("--together", type=int, default=4, help="providers that one engine serves, at most")
    parser.add_argument("--only", nargs="+", help="serve and score these providers only, and the honest ones")
    parser.add_argument("--keep-going", action="store_true", help="leave a provider that fails out, and report it")
    parser.add_argument("--deadline", type=float, help="seconds after which nothing is waited for; needs --keep-going")
    args = parser.parse_args()
    if args.deadline is not None and not args.keep_going:
        parser.error("--deadline leaves providers out: it needs --keep-going")
    args.judges = args.judges or args.jobs
    experiment = specs.read(args.experiment)
    work = args.work or HERE / "work" / experiment.name
    counts = {"worker.py": args.jobs, "judge.py": args.judges}
    slots = {script: threading.BoundedSemaphore(count) for script, count in counts.items()}
    run = Run(args, experiment, work, time.monotonic(), slots)
    served = {one.model for one in experiment.providers}  # in the place of another
    models = [model for model in experiment.models if model not in served]
    done: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(len(models)) as pool:
        jobs = {pool.submit(one_model, run, model): model for model in models}
        for job in as_completed(jobs):
            try:
                done[jobs[job]] = job.result()
                write(run, {model: done[model] for model in models if model in done})
            except Exception as error:  # whatever it is, the other models are still wanted
                what = str(error) if isinstance(error, Failed) else traceback.format_exc()
                if not args.keep_going:
                    raise SystemExit(what) from error
                run.say(f"FAILED {jobs[job]}: {what}")
                run.failed.setdefault(jobs[job], {})["all providers"] = what.split("\n")[0]
    return 1 if run.failed else 0


def one_model(run: Run, model: str) -> dict[str, Any]:
    """Serve, replay and score one model: what was fitted, its stacks, the engine that wrote its prompts, and the card
    of its training."""
    folder = run.work / model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.toml").write_text(run.args.experiment.read_text())
    serve(run, model, folder)
    with ThreadPoolExecutor(1 + len(run.experiment.stacks)) as pool:
        replays = [pool.submit(_stack, run, model, folder, name) for name in run.experiment.stacks]
        if run.experiment.deviating:
            judge(run, model, folder)
    card = run.experiment.models[model] / "card.json"
    complete = all(replay.result() for replay in replays)
    return {
        "fitted": json.loads((folder / "fitted.json").read_text()) if run.experiment.deviating else {},
        "stacks": stacks.table(run.experiment, folder) if complete and replays else {},
        "engine": json.loads((folder / "engine.json").read_text()),
        "card": json.loads(card.read_text()) if card.exists() else {},
    }


def _stack(run: Run, model: str, folder: Path, reference: str) -> bool:
    """Replay honest providers with one of the references of the table of stacks; whether that went well."""
    try:
        with run.slots["judge.py"]:
            stacks.run(model, folder, reference, run.left())
    except (subprocess.SubprocessError, OSError) as error:
        _fail(run, model, f"stacks {reference}", f"stacks: {model}: {error}")
        return False
    return True


def write(run: Run, done: dict[str, dict[str, Any]]) -> None:
    """The results file of the models that are done."""
    arrays: dict[str, Any] = {}
    for model in done:
        for provider in run.wanted:
            path = run.work / model / f"{provider.file}.scores.npz"
            if path.exists():
                with np.load(path, allow_pickle=False) as file:
                    arrays.update({f"{model}/{provider.name}/{key}": file[key] for key in file.files})
    out = run.args.results / run.experiment.name
    out.mkdir(parents=True, exist_ok=True)
    # With sequences as the fastest axis the values of one detector stand together, and compress far better.
    if arrays:
        write_arrays(out / "scores.npz", {name: np.asfortranarray(values) for name, values in arrays.items()})
    raw = {
        "experiment": run.args.experiment.read_text(),
        **{key: {model: one[key] for model, one in done.items()} for key in ("fitted", "stacks", "engine", "card")},
        "failed": run.failed,
        "seconds": round(time.monotonic() - run.begun),
    }
    figures = _results.write(out / "table.json", raw, lambda given: table(given, out / "scores.npz"))
    for row in figures["rows"]:
        size = f"{row['bytes']} B" if "bytes" in row else ""
        print(f"{row['model']:9} {row['deviation']:34} {row['kind']:11} {row['budget']:5} {size:5} {row['status']:6} "
              f"{row['auc'][row['ours']]:.4f} {row['auc'][row['closest_peer']]:.4f} {row['closest_peer']}")  # fmt: skip


def table(raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The rows, from a results file's raw part and the values of every sequence; how many were left out as others of
    fewer tokens are certain; and what each of our fingerprints finds by itself."""
    experiment = specs.parse(raw["experiment"])
    rows, beyond, fingerprints = [], 0, []
    if not experiment.deviating:
        return {"rows": rows, "beyond": beyond, "fingerprints": fingerprints, "honest": {}}
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    for model in raw["fitted"]:
        honest = [f"{model}/{one.name}" for one in experiment.honest]
        for provider in experiment.deviating:
            about = {"model": model, "simulated": provider.simulated}
            name = f"{model}/{provider.name}"
            pair = [tables.lots(arrays, names, "tokens") for names in (honest, [name])]
            if pair[0] is not None and pair[1] is not None:
                kept, more = _token_rows(experiment, provider, pair[0], pair[1])
                rows += [{**about, **row} for row in kept]
                beyond += more
            pair = [tables.lots(arrays, names, "activations") for names in (honest, [name])]
            if pair[0] is not None and pair[1] is not None and provider.changes_forward_pass:
                kept = _activation_rows(experiment, provider.name, pair[0], pair[1])
                rows += [{**about, **row} for row in kept]
                fingerprints.append({**about, **_fingerprints(experiment, provider.name, pair[0], pair[1])})
    return {"rows": rows, "beyond": beyond, "fingerprints": fingerprints, "honest": _honest(experiment, raw, arrays)}


def _token_rows(
    experiment: specs.Experiment, provider: specs.Provider, honest: tables.Floats, theirs: tables.Floats
) -> tuple[list[dict[str, Any]], int]:
    """For so many tokens, of which some can differ; and how many rows are left out as one of fewer is certain."""
    found = []
    for budget in (budget for budget in experiment.budgets if budget >= provider.begins):
        pair = [tables.batches(part, experiment.edges, budget) for part in (honest, theirs)]
        if pair[0] is None or pair[1] is None:
            raise ValueError(f"{experiment.name}: budget {budget}: neither an edge nor a multiple of the last one")
        found.append(tables.row(provider.name, "tokens", budget, scores.TOKEN_DETECTORS, pair[0], pair[1]))
    return tables.ladder([row for row in found if row is not None])


def _activation_rows(
    experiment: specs.Experiment, deviation: str, honest: tables.Floats, theirs: tables.Floats
) -> list[dict[str, Any]]:
    """For so many tokens and so many bytes; bytes may be spent on all the tokens, or on fewer of them."""
    names, own = scores.activation_detectors(experiment), len(experiment.fingerprints)
    tokens, costs_NC = experiment.activation_budgets, scores.activation_bytes(experiment)
    areas_NC = np.array([
        [tables.auc(honest[:, n, c], theirs[:, n, c]) for c in range(len(names))] for n in range(len(tokens))
    ])  # fmt: skip

    def judge(place: int, limit: int) -> dict[str, Any] | None:
        affordable = np.argwhere(costs_NC[: place + 1] <= scores.PROOF_BYTES[limit])
        ranked = sorted(affordable, key=lambda item: -areas_NC[tuple(item)])
        best = [next(item for item in ranked if item[1] < own), *[item for item in ranked if item[1] >= own][:PEERS]]
        labels = [f"{names[c]}, {tokens[n]} tokens" for n, c in best]
        at, column = np.transpose(best)
        row = tables.row(deviation, "activations", tokens[place], labels, honest[:, at, column], theirs[:, at, column])
        if row is None:
            return None
        return {**row, "auc": {name: row["auc"][name] for name in (row["ours"], row["closest_peer"])}}

    return tables.grid(tokens, scores.PROOF_BYTES, judge)


def _fingerprints(
    experiment: specs.Experiment, deviation: str, honest: tables.Floats, theirs: tables.Floats
) -> dict[str, Any]:
    """AUC of each of our fingerprints, in the order of their names, at each number of tokens."""
    names = scores.activation_detectors(experiment)[: len(experiment.fingerprints)]
    return {
        "deviation": deviation,
        "names": names,
        "auc": {
            str(budget): [round(tables.auc(honest[:, n, c], theirs[:, n, c]), 6) for c in range(len(names))]
            for n, budget in enumerate(experiment.activation_budgets)
        },
    }


def together(experiment: specs.Experiment, arrays: Mapping[str, Any], models: Sequence[str]) -> list[dict[str, Any]]:
    """Tokens and the first fingerprint by themselves, and as one likelihood ratio (the sum of their logarithms): AUC on
    the first tokens of the same sequences, at each length that both are known at."""
    lengths = [length for length in experiment.activation_budgets if length in experiment.edges]

    def columns(names: Sequence[str], length: int) -> tables.Floats:
        edge, place = experiment.edges.index(length), experiment.activation_budgets.index(length)
        found = []
        for name in (name for name in names if f"{name}/activations" in arrays):
            own = arrays[f"{name}/activations"][:, place, 0].astype(np.float64)
            tokens = arrays[f"{name}/tokens"][: len(own), edge, 0].astype(np.float64)
            found.append(np.column_stack([tokens, own, tokens + own]))
        return np.concatenate(found)

    rows = []
    for model, provider in product(models, experiment.deviating):
        name = f"{model}/{provider.name}"
        if provider.changes_forward_pass and f"{name}/activations" in arrays:
            for length in lengths:
                pair = [columns(names, length) for names in ([f"{model}/{o.name}" for o in experiment.honest], [name])]
                auc = [round(tables.auc(pair[0][:, c], pair[1][:, c]), 6) for c in range(3)]
                rows.append({"model": model, "deviation": provider.name, "tokens": length, "auc": auc})
    return rows


def _honest(experiment: specs.Experiment, raw: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    """How honest providers compare with each other: exact match at each, by model."""
    place = scores.TOKEN_DETECTORS.index("match_rate")
    return {
        model: {
            one.name: 1.0 - float(arrays[f"{model}/{one.name}/tokens"][:, -1, place].mean()) / experiment.tokens
            for one in experiment.honest
            if f"{model}/{one.name}/tokens" in arrays
        }
        for model in raw["fitted"]
    }


def serve(run: Run, model: str, folder: Path) -> None:
    """Traces of every provider."""
    prompts = folder / "prompts.json"
    if not prompts.exists():
        _needed(run, model, "prompts", str(prompts))
    _each(run, "serve", ".jsonl.gz", model, folder, run.wanted)
    if not any((folder / f"{one.file}.jsonl.gz").exists() for one in run.experiment.honest):
        raise Failed(f"{model}: no honest provider could be served")


def judge(run: Run, model: str, folder: Path) -> None:
    """Every detector's value of every judged sequence."""
    if not (folder / "fitted.json").exists():
        _needed(run, model, "fit", str(folder))
    _each(
        run, "score", ".scores.npz", model, folder, [p for p in run.wanted if (folder / f"{p.file}.jsonl.gz").exists()]
    )


def _each(run: Run, verb: str, leaves: str, model: str, folder: Path, providers: Sequence[specs.Provider]) -> None:
    """One step for every provider that lacks the file which it leaves, several providers in each process."""
    missing = [one for one in providers if not (folder / f"{one.file}{leaves}").exists()]
    if verb == "serve":
        groups = specs.groups(missing, run.args.together)
    else:  # each process loads the reference once
        most = max(1, -(-len(missing) // run.args.judges))
        groups = [missing[first : first + most] for first in range(0, len(missing), most)]
    with ThreadPoolExecutor(max(1, len(groups))) as pool:
        names = [[one.name for one in group] for group in groups]
        jobs = [pool.submit(_worker, run, verb, model, str(folder), *part) for part in names]
        for group, part, job in zip(groups, names, jobs, strict=True):
            seconds, output = job.result()
            run.say(f"{model}: {'; '.join(part)}: {verb} took {seconds:.0f} s")
            for one in group:
                if not (folder / f"{one.file}{leaves}").exists():
                    honest = " (honest)" if one.honest else ""
                    _fail(run, model, one.name, f"{verb}: {model}: {one.name}{honest}\n{output}")


def _fail(run: Run, model: str, name: str, what: str) -> None:
    """Note what failed, or stop where none may fail."""
    if not run.args.keep_going:
        raise Failed(what)
    run.say(f"FAILED {what}")
    run.failed.setdefault(model, {})[name] = what.partition(":")[0]


def _needed(run: Run, model: str, verb: str, out: str) -> None:
    """A step without which nothing else can be done."""
    seconds, output = _worker(run, verb, model, out)
    if output:
        raise Failed(f"{verb}: {model}\n{output}")
    run.say(f"{model}: {verb} took {seconds:.0f} s")


def _worker(run: Run, verb: str, *rest: str) -> tuple[float, str]:
    """Run one step in a process of its own; the seconds it took, and the end of its output if it failed."""
    script = "judge.py" if verb in ("fit", "score") else "worker.py"
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path}
    with run.slots[script]:
        begun, left = time.monotonic(), run.left(SERVING if script == "worker.py" else 1.0)
        if left is not None and left <= 0:
            return 0.0, "not started: it is too late"
        words = [sys.executable, str(HERE / script), verb, str(run.args.experiment), *rest]
        with tempfile.TemporaryFile() as log:  # a pipe would be waited for as long as a child of the process has it
            try:
                found = subprocess.run(
                    words, check=False, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=left
                )
                ended = f"exit status {found.returncode}" if found.returncode else ""
            except subprocess.TimeoutExpired:
                ended = "ended: it is too late"
            log.seek(0)
            output = log.read().decode(errors="replace")[-4000:]
        return time.monotonic() - begun, f"{ended}\n{output}" if ended else ""


if __name__ == "__main__":
    sys.exit(main())
