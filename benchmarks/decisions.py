"""How many tokens a decision takes, and whether its error rate holds: the likelihood score against its peers.

usage: decisions.py collect --model DIR --out DIR [--device cuda] [--jobs N]   replay all pools, score every sequence
       decisions.py collect ... --setting unfiltered --pools FILE ...         the same under other sampling settings
       decisions.py collect ... --setting usual --only fp8 ...                beside a score that was told the deviation
       decisions.py measure [--from DIR]                                      figures from the scores
       decisions.py --check                                                   recompute them

`collect` takes minutes on a GPU machine and hours on two cores; it leaves decisions.npz and decisions.json in its
directory (with a setting decisions_SETTING.npz and .json), of which `measure` copies those that are there to
benchmarks/results. Sequences under other settings are made by tools/gpu_traces.py (`plan unfiltered`, `plan hot`).
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
from _decision_figures import figures_of, setting_figures, told_figures

RESULTS = _results.RESULTS / "decisions.json"
SETTINGS = ("usual", "unfiltered", "hot")


def main() -> int:
    """Exit status: 1 if figures do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", nargs="?", choices=("collect", "measure"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--limit", type=int, help="at most so many sequences of each set (dry run)")
    parser.add_argument("--setting", choices=SETTINGS)
    parser.add_argument("--pools", type=Path, nargs="+", default=[], help="files of the setting's sequences")
    parser.add_argument("--only", action="append", default=[], metavar="SET", help="beside honest ones only this set")
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
    raw = _results.read(RESULTS)["raw"]
    raw.setdefault("settings", {})
    for name in ("decisions", *(f"decisions_{setting}" for setting in SETTINGS)):
        scores, setting = _results.RESULTS / f"{name}.npz", name.partition("_")[2]
        if args.source and (args.source / scores.name).exists():
            shutil.copyfile(args.source / scores.name, scores)
            about = json.loads((args.source / f"{name}.json").read_text())
        elif scores.exists():
            about = raw["settings"][setting] if setting else {key: raw[key] for key in ("fitted", "made_at")}
        else:
            continue
        about |= {"scores": scores.name, "sha256": _results.digest(scores)}
        if setting:
            raw["settings"][setting] = about
        else:
            raw |= about
    print(json.dumps(_results.write(RESULTS, raw, figures), indent=1))
    return 0


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is published, from the scores that `raw` names."""
    others = {name: _arrays(about) for name, about in raw["settings"].items()}
    told = told_figures(others.pop("usual"))
    return figures_of(_arrays(raw)) | told | {"settings": {n: setting_figures(arrays) for n, arrays in others.items()}}


def _arrays(about: Mapping[str, Any]) -> dict[str, Any]:
    with np.load(_results.unchanged(_results.RESULTS / about["scores"], about["sha256"]), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _collect(args: argparse.Namespace) -> int:
    import _decision_settings as settings
    from _decision_scores import POOLS, collect_into
    from veridifr.references import ReferenceSettings, load

    if args.setting:
        source = settings.Source(args.model, args.device, tuple(args.pools or POOLS))
        settings.collect(source, args.out, args.setting, args.jobs, args.limit, args.only)
    else:
        reference = load(f"hf:{args.model}", ReferenceSettings(device=args.device, dtype="float32"))
        collect_into(args.out, reference, args.jobs, args.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
