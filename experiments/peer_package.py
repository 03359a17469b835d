"""The installed `token-difr` package, as it is, on sequences that an experiment has judged already.

    python experiments/peer_package.py run EXPERIMENT MODEL --work DIR --results DIR   needs a GPU, vLLM and the package
    python experiments/peer_package.py figures RESULTS                                 recompute token_difr.json

The package takes one seed for all sequences, so it is called once for each; its engine is started once. `run` leaves
every token's margin and whether it matched (token_difr.npz, token_difr.json beside the experiment's results). The
figures compare its mean margin, clipped as in the paper, and its match rate with the same statistics of this package's
own replay, and with our score, on the same sequences.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import scores
import spec as specs
import tables
from veridifr import Trace, read_traces
from veridifr.named_statistics import PERCENTILE

sys.path.insert(0, str(specs.ROOT / "benchmarks"))
sys.path.insert(0, str(specs.ROOT / "tools"))
from trace_pools import write_arrays

import _results
from _vllm_engine import started_once

NAME = "token_difr"


def main() -> int:
    """Exit status: 1 if the figures of a results file do not follow from it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", choices=("run", "figures"))
    parser.add_argument("place", type=Path)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--sequences", type=int, default=150, help="of each provider")
    parser.add_argument("--providers", nargs="+", help="names; without, all that were served")
    args = parser.parse_args()
    if args.verb == "figures":
        wrong = _results.check(args.place / f"{NAME}.json", lambda raw: figures(raw, args.place))
        print("\n".join(wrong) or "token_difr: figures follow from the measured values")
        return 1 if wrong else 0
    experiment, out = specs.read(args.place), args.results
    if not (out / "scores.npz").exists():  # found out now, not after the GPU has worked
        parser.error(f"--results {out}: expected the experiment's scores.npz there")
    arrays = run(experiment, args.model, args.work / args.model, args.providers, args.sequences)
    path, about = out / f"{NAME}.npz", out / f"{NAME}.json"
    write_arrays(path, others(path, args.model) | arrays)
    honest = [one.name for one in experiment.honest if one.engine == "vllm" and one.runner != "v2"]
    raw = {"package": f"token-difr {version('token-difr')}", "honest": honest, "sequences": args.sequences}
    print(json.dumps(_results.write(about, raw, lambda given: figures(given, out)), indent=1))
    return 0


def others(path: Path, model: str) -> dict[str, npt.NDArray[Any]]:
    """What is measured of other models already: of this one nothing stays, as it may be of other sequences."""
    if not path.exists():
        return {}
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files if not key.startswith(f"{model}/")}


def run(
    experiment: specs.Experiment, model: str, folder: Path, names: list[str] | None, count: int
) -> dict[str, npt.NDArray[Any]]:
    """By model, provider and kind: `margins` float16[S, T] in logits, infinite where the token has no chance, and
    `match` bool[S, T], as the package says."""
    import token_difr

    started_once()
    claim = experiment.claim
    found = {}
    for provider in experiment.providers:
        path = folder / f"{provider.file}.jsonl.gz"
        if (names and provider.name not in names) or not path.exists():
            continue
        first = experiment.fit if provider.honest else 0
        items = []
        for trace in list(read_traces(path))[first : first + count]:
            items += token_difr.verify_outputs(
                [_sequence(token_difr, trace)], str(experiment.models[model]), seed=int(trace.sampling.seed or 0),
                temperature=claim["temperature"], top_k=claim["top_k"], top_p=claim["top_p"], verbose=False,
                max_model_len=512, vllm_kwargs={"enable_prefix_caching": False},
            )  # fmt: skip
        key = f"{model}/{provider.name}"
        found[f"{key}/margins"] = np.array([[token.margin for token in item] for item in items], dtype=np.float16)
        found[f"{key}/match"] = np.array([[token.exact_match for token in item] for item in items])
        print(key, len(items), found[f"{key}/match"].mean(), flush=True)
    return found


def _sequence(package: Any, trace: Trace) -> Any:
    return package.TokenSequence(
        prompt_token_ids=trace.prompt_token_ids.tolist(), output_token_ids=trace.output_token_ids.tolist()
    )


def figures(raw: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """By model: AUC at full length of the package's two statistics, of the same statistics as we compute them and of
    our score, for each provider against the honest ones whose noise the package knows (V1), and what matched."""
    with np.load(out / f"{NAME}.npz", allow_pickle=False) as file:
        theirs = {key: file[key] for key in file.files}
    with np.load(out / "scores.npz", allow_pickle=False) as file:
        ours = {key: file[key] for key in file.files if key.endswith("/tokens")}
    models = sorted({key.split("/")[0] for key in theirs})
    return {model: _of_model(model, raw, theirs, ours) for model in models}


def _of_model(model: str, raw: Mapping[str, Any], theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    names = [key.split("/")[1] for key in theirs if key.startswith(f"{model}/") and key.endswith("/match")]
    honest = [name for name in raw["honest"] if name in names]
    margins = np.concatenate([theirs[f"{model}/{name}/margins"] for name in honest]).astype(np.float64)
    clip = float(np.quantile(margins[np.isfinite(margins)], PERCENTILE))

    def values(name: str) -> npt.NDArray[np.float64]:
        key, count = f"{model}/{name}", len(theirs[f"{model}/{name}/match"])
        own = ours[f"{key}/tokens"][:count, -1].astype(np.float64)
        clipped = np.minimum(theirs[f"{key}/margins"].astype(np.float64), clip).sum(axis=1)
        places = [scores.TOKEN_DETECTORS.index(d) for d in ("mean_clipped_margin", "match_rate", "likelihood")]
        return np.column_stack([clipped, (~theirs[f"{key}/match"]).sum(axis=1), own[:, places]])

    null = np.concatenate([values(name) for name in honest])
    columns = ("package_margin", "package_match", "mean_clipped_margin", "match_rate", "likelihood")
    return {
        "clip": clip,
        "exact_match": {name: float(theirs[f"{model}/{name}/match"].mean()) for name in names},
        "auc": {
            name: {c: tables.auc(null[:, n], values(name)[:, n]) for n, c in enumerate(columns)}
            for name in names
            if name not in honest
        },
    }


if __name__ == "__main__":
    sys.exit(main())
