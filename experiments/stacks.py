"""How honest stacks differ: tokens of each honest provider, verified with each reference.

The table gives the share of matching tokens, the mean margin and the effective logit noise: the one number, in logits,
that says by how much two stacks disagree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import scores
import spec as specs
from veridifr.fitting import fit_statistic
from veridifr.rng import compiled

HERE = Path(__file__).resolve().parent


def run(model: str, folder: Path, reference: str, seconds: float | None = None) -> None:
    """Replay with one reference, named as in an experiment's `stacks`, in a process of its own, which may take
    `seconds`."""
    out = _file(folder, reference)
    if not out.exists():
        words = [str(HERE / "stacks.py"), str(folder / "experiment.toml"), model, reference, str(out)]
        subprocess.run([sys.executable, *words], check=True, timeout=seconds)


def table(experiment: specs.Experiment, folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    """By honest provider and reference: `exact_match`, `mean_margin` and `sigma`, both in logits."""
    parts = {name: json.loads(_file(folder, name).read_text()) for name in experiment.stacks}
    names = [one.name for one in experiment.honest if all(one.name in part for part in parts.values())]
    return {name: {reference: parts[reference][name] for reference in experiment.stacks} for name in names}


def _file(folder: Path, reference: str) -> Path:
    return folder / f"stacks.{reference.replace(' ', '_')}.json"


def main(file: str, model: str, name: str, out: str) -> None:
    """One reference, in a process of its own."""
    compiled.enable()
    experiment = specs.read(Path(file))
    path = experiment.models[model]
    reference = scores.reference_of(path, *name.split())
    found: dict[str, Any] = {}
    for provider in experiment.honest:
        if not (Path(out).parent / f"{provider.file}.jsonl.gz").exists():
            continue  # it failed, which the run reports
        traces, _ = scores.read_provider(Path(out).parent, provider)
        traces = traces[experiment.fit :][: experiment.stack_sequences]
        items = [item.scores for item in scores.replay(reference, 0, traces, None)]
        usable = [item.usable_T for item in items]
        pairs = list(zip(items, usable, strict=True))
        found[provider.name] = {
            "exact_match": round(float(np.concatenate([item.match_T[use] for item, use in pairs]).mean()), 6),
            "mean_margin": round(float(np.concatenate([item.margin_T[use] for item, use in pairs]).mean()), 8),
            "sigma": round(fit_statistic(items).sigma, 6),
            "tokens": int(sum(use.sum() for use in usable)),
        }
    Path(out).write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
