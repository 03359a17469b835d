"""How many tokens a decision takes, and whether its error rate holds: the likelihood score against its peers.

usage: decisions.py collect --model DIR --out DIR [--device cuda] [--jobs N]   replay all pools, score every sequence
       decisions.py measure [--from DIR]                                      figures from the scores
       decisions.py --check                                                   recompute them

`collect` takes minutes on a GPU machine and hours on two cores; it leaves decisions.npz and decisions.json in its
directory, which `measure` copies beside benchmarks/results/decisions.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import _results
from _decision_figures import figures_of

RESULTS = _results.RESULTS / "decisions.json"
SCORES = _results.RESULTS / "decisions.npz"


def main() -> int:
    """Exit status: 1 if figures do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", nargs="?", choices=("collect", "measure"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int, help="at most so many sequences of each set (dry run)")
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.check:
        wrong = _results.check(RESULTS, figures)
        print("\n".join(wrong) or "decisions: figures follow from the scores")
        return int(bool(wrong))
    if args.verb == "collect":
        return _collect(args)
    if args.verb != "measure":
        parser.error("collect, measure or --check is needed")
    if args.source:
        shutil.copyfile(args.source / "decisions.npz", SCORES)
    fitted = json.loads((args.source / "decisions.json").read_text()) if args.source else _results.read(RESULTS)["raw"]
    raw = {**fitted, "scores": SCORES.name, "sha256": _results.digest(SCORES)}
    print(json.dumps(_results.write(RESULTS, raw, figures), indent=1))
    return 0


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is published, from the scores that `raw` names."""
    with np.load(_results.unchanged(_results.RESULTS / raw["scores"], raw["sha256"]), allow_pickle=False) as file:
        return figures_of({name: file[name] for name in file.files})


def _collect(args: argparse.Namespace) -> int:
    from _decision_scores import collect_into
    from veridifr.references import ReferenceSettings, load

    reference = load(f"hf:{args.model}", ReferenceSettings(device=args.device, dtype="float32"))
    collect_into(args.out, reference, args.jobs, args.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
