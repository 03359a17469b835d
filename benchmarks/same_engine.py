"""Whether replaying in the engine that served tells deviations apart any better than a float32 replay does.

usage: same_engine.py collect --model DIR --out DIR [--limit N] [--jobs N]   replay in vLLM (H200, vLLM 0.24)
       same_engine.py measure --from DIR                                     figures from the scores
       same_engine.py --check | --write-docs

`collect` is that of decisions.py on the first sequences of each set, with vLLM in bfloat16 without CUDA graphs as the
reference: as the sequences were served. Float32 scores of the same sequences are those of results/decisions.npz.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import _results
from _decision_pauc import EDGES, HONEST, STATISTICS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
from trace_pools import write_arrays

from tables import auc

RESULTS = _results.RESULTS / "same_engine.json"
SCORES, FLOAT32 = _results.RESULTS / "same_engine.npz", _results.RESULTS / "decisions.npz"
DOCS = _results.RESULTS.parents[1] / "docs" / "vllm-reference.md"
START, END = "<!-- same engine: written by benchmarks/same_engine.py --write-docs -->\n", "<!-- /same engine -->"
DEVIATIONS = {
    "int4": "int4 weights (simulated)",
    "fp8": "fp8 weights and activations",
    "held.int8": "int8 weights and activations",
    "kv_fp8": "fp8 key-value cache",
    "held.temp0.95": "temperature 0.95",
    "temp1.1": "temperature 1.1",
    "top_p0.85": "top-p 0.85",
}
TOKENS, COMPARED = (30, 100, 300), ("likelihood", "match_rate")
"""Of the edges and the statistics of decisions.npz those that are compared."""
LIMIT = 160


def main() -> int:
    """Exit status: 1 if figures do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", nargs="?", choices=("collect", "measure"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=int, default=LIMIT, help="sequences of each set, at most")
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    if args.check or args.write_docs:
        wrong = _results.documented(DOCS, START, END, table(_results.read(RESULTS)["figures"]), write=args.write_docs)
        wrong += _results.check(RESULTS, figures) if args.check else []
        print("\n".join(wrong) or "same_engine: figures follow from the scores")
        return int(bool(wrong))
    if args.verb == "collect":
        return _collect(args)
    if args.verb != "measure":
        parser.error("collect, measure, --check or --write-docs is needed")
    with np.load(args.source / "decisions.npz", allow_pickle=False) as file:
        arrays = {f"{name}/fit": file[f"{name}/fit"] for name in (*HONEST, *DEVIATIONS)}
        arrays |= {f"{name}/scores": _chosen(file[f"{name}/scores"]) for name in (*HONEST, *DEVIATIONS)}
    write_arrays(SCORES, arrays)
    fitted = json.loads((args.source / "decisions.json").read_text())["fitted"]
    raw = {"fitted": fitted, "fitted_float32": _results.read(_results.RESULTS / "decisions.json")["raw"]["fitted"]}
    raw |= {"sha256": {path.name: _results.digest(path) for path in (SCORES, FLOAT32)}}
    print(json.dumps(_results.write(RESULTS, raw, figures), indent=1))
    return 0


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """By reference: honest logit noise, matching tokens, and AUC by deviation and tokens, on the same sequences."""
    for path in (SCORES, FLOAT32):
        _results.unchanged(path, raw["sha256"][path.name])
    found: dict[str, Any] = {}
    for reference, path, fitted in (("vllm", SCORES, "fitted"), ("float32", FLOAT32, "fitted_float32")):
        values = {name: _judged(path, name) for name in (*HONEST, *DEVIATIONS)}
        honest = np.concatenate([values[name] for name in HONEST])
        found[reference] = {
            "sigma": raw[fitted]["sigma"],
            "exact_match": 1.0 - float(honest[:, -1, 1].mean()) / TOKENS[-1],
            "sequences": [len(honest), min(len(values[name]) for name in DEVIATIONS)],
            "auc": {
                name: {str(t): auc(honest[:, place, 0], values[name][:, place, 0]) for place, t in enumerate(TOKENS)}
                for name in DEVIATIONS
            },
        }
    return found


def table(found: Mapping[str, Any]) -> str:
    """What docs/vllm-reference.md shows."""
    vllm, other = found["vllm"], found["float32"]
    lines = ["| AUC in float32 / in the engine that served | " + " | ".join(f"{t} tokens" for t in TOKENS) + " |"]
    lines.append("|---" * (len(TOKENS) + 1) + "|")
    for name, label in DEVIATIONS.items():
        cells = [f"{other['auc'][name][str(t)]:.3f} / {vllm['auc'][name][str(t)]:.3f}" for t in TOKENS]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", (
        f"Honest logit noise {other['sigma']:.4f} and {vllm['sigma']:.4f} logits, matching tokens "
        f"{other['exact_match']:.2%} and {vllm['exact_match']:.2%}; {vllm['sequences'][0]} honest sequences (V1 and V2 "
        f"runner) and at least {vllm['sequences'][1]} of each deviation."
    )]  # fmt: skip
    return "\n".join(lines) + "\n"


def _chosen(scores_SED: npt.NDArray[np.float16]) -> npt.NDArray[np.float16]:
    """Of all edges and statistics those that are compared, [S, 3, 2]."""
    edges, columns = [EDGES.index(tokens) for tokens in TOKENS], [STATISTICS.index(name) for name in COMPARED]
    return scores_SED[:, edges][:, :, columns]


def _judged(path: Path, name: str) -> npt.NDArray[np.float64]:
    """Scores [S, 3, 2] of the sequences that nothing was fitted on, of those which both files have."""
    with np.load(path, allow_pickle=False) as file, np.load(SCORES, allow_pickle=False) as both:
        fit = both[f"{name}/fit"]
        scores, also = file[f"{name}/scores"][: len(fit)], file[f"{name}/fit"][: len(fit)]
    if not np.array_equal(fit, also):
        raise SystemExit(f"{name}: the two files do not hold the same sequences")
    return np.asarray((scores if path == SCORES else _chosen(scores))[~fit], dtype=np.float64)


def _collect(args: argparse.Namespace) -> int:
    from _vllm_engine import engine, environment

    environment("v1")
    llm = engine(args.model, enforce_eager=True)  # before anything that loads numba, which vLLM cannot start beside
    from _decision_scores import collect_into
    from veridifr.references.vllm_engine import VllmReference

    collect_into(args.out, VllmReference.from_llm(llm, args.model), args.jobs, args.limit)
    return 0


if __name__ == "__main__":
    sys.exit(main())
