"""vLLM on a CPU as the reference: verification beside the same engine's bare prefill, in turn.

usage: vllm_cpu.py --models DIR --traces DIR    measure, and write benchmarks/results/vllm_cpu.json
       vllm_cpu.py --check | --write-docs       recompute its figures; write them into docs/vllm-reference.md

DIR/tb24m is the model, the traces are those of vLLM 0.24 on an H200 (v1 and v2; the paper's setting and unfiltered).
Bare prefill is the same float32 engine with the same inputs, one output token, no prefix caching and the same caps, all
inputs at once; and, for a second figure, as many at a time as the reference gives it. Listing and scores are on the
same two cores as the engine.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import _results
from _vllm_engine import bare, engine, environment, inputs_of, ratio, verified

RESULT = _results.RESULTS / "vllm_cpu.json"
DOC = Path(__file__).resolve().parents[1] / "docs" / "vllm-reference.md"
MARKS = ("<!-- vllm-cpu: written by benchmarks/vllm_cpu.py --write-docs -->\n", "<!-- /vllm-cpu -->")
CASES = {"paper": ("v1.paper", "v2.paper"), "unfiltered": ("v1.plain", "v2.plain")}


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is published, from the raw data alone."""
    ratios = {name: ratio(raw[name]["bare_s"], raw[name]["verify_s"]) for name in CASES}
    matched, tokens = raw["matched"], raw["scored"]
    return {
        "verify_over_prefill": {name: found for name, (found, _) in ratios.items()},
        "verify_over_prefill_95": {name: interval for name, (_, interval) in ratios.items()},
        "time_over_prefill": {name: 1.0 / found for name, (found, _) in ratios.items()},
        "time_over_prefill_in_portions": {
            name: float(np.median(raw[name]["verify_s"]) / np.median(raw[name]["portions_s"])) for name in CASES
        },
        "prefill_tokens_per_s": {name: raw[name]["tokens"] / float(np.median(raw[name]["bare_s"])) for name in CASES},
        "exact_match": {
            runner: sum(matched[f"{runner}.{kind}"] for kind in ("paper", "plain"))
            / sum(tokens[f"{runner}.{kind}"] for kind in ("paper", "plain"))
            for runner in ("v1", "v2")
        },
    }


def table(found: Mapping[str, Any]) -> str:
    """The table of docs/vllm-reference.md."""
    rows = ["| what | paper setting | unfiltered |", "|---|---|---|"]
    times, speeds = found["time_over_prefill"], found["verify_over_prefill_95"]
    cells = [f"{times[case]:.2f} ({1 / speeds[case][1]:.2f} to {1 / speeds[case][0]:.2f})" for case in CASES]
    rows.append(f"| time to replay and score over that of bare prefill (95 %) | {cells[0]} | {cells[1]} |")
    portions = [f"{found['time_over_prefill_in_portions'][case]:.2f}" for case in CASES]
    rows.append(f"| the same, over bare prefill that gets as many tokens at a time | {portions[0]} | {portions[1]} |")
    rows.append(
        "| bare prefill, tokens/s | " + " | ".join(f"{found['prefill_tokens_per_s'][c]:,.0f}" for c in CASES) + " |"
    )
    matched = found["exact_match"]
    return "\n".join([*rows, "", f"Matching tokens: {matched['v1']:.2%} (V1), {matched['v2']:.2%} (V2).", ""])


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of both in turn, and how many tokens matched."""
    from veridifr.rng import compiled

    environment("v1")
    compiled.enable()  # as the commands do: before torch is loaded; kernels are loaded when the engine runs already
    llm = engine(args.models / "tb24m", dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=32)
    from veridifr.references import ReferenceSettings
    from veridifr.references.vllm_engine import CPU_TOKENS, VllmReference
    from veridifr.traces import read_traces

    reference = VllmReference.from_llm(llm, args.models / "tb24m", settings=ReferenceSettings())
    raw: dict[str, Any] = {"matched": {}, "scored": {}}
    for name, files in CASES.items():
        traces = [
            replace(trace, id=f"{file}/{trace.id}")
            for file in files
            for trace in itertools.islice(read_traces(args.traces / f"{file}.jsonl"), args.sequences)
        ]
        inputs = inputs_of(traces)
        portion = CPU_TOKENS // max(len(one["prompt_token_ids"]) for one in inputs)
        times: dict[str, list[float]] = {"bare_s": [], "verify_s": [], "portions_s": []}
        for pair in range(args.pairs + 1):
            plain = bare(llm, inputs)
            taken, scores = verified(reference, traces)
            portions = sum(bare(llm, inputs[start : start + portion]) for start in range(0, len(inputs), portion))
            if pair:
                times["portions_s"].append(portions)
                times["bare_s"].append(plain)
                times["verify_s"].append(taken)
        raw[name] = {"tokens": sum(len(one["prompt_token_ids"]) for one in inputs), **times}
        for file in files:
            own = [found for trace_id, found in scores.items() if trace_id.startswith(file)]
            raw["matched"][file] = int(sum(found.match_T.sum() for found in own))
            raw["scored"][file] = int(sum(found.usable_T.sum() for found in own))
        print(name, np.median(times["verify_s"]) / np.median(times["bare_s"]), flush=True)
    return raw


def main() -> int:
    """Exit status: 1 if figures do not follow from the raw data."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--sequences", type=int, default=8, help="of each file")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    if args.check or args.write_docs:
        wrong = _results.check(RESULT, figures)
        found = figures(_results.read(RESULT)["raw"])
        wrong += _results.documented(DOC, *MARKS, table(found), write=args.write_docs)
        print("\n".join(wrong) or "vllm_cpu: figures follow from the raw results")
        return 1 if wrong else 0
    if not (args.models and args.traces):
        parser.error("--models and --traces are needed, or --check")
    begun = time.monotonic()
    print(_results.write(RESULT, measure(args), figures), f"{time.monotonic() - begun:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
