"""vLLM on a GPU: verification beside bare prefill, decoding with fingerprints, and honest and other providers judged.

usage: vllm_h200.py --models DIR --prompts FILE --out DIR [--parts speed peer tb24m]   run on a GPU machine
       vllm_h200.py --raw FILE...    write benchmarks/results/vllm_h200.json from what came back
       vllm_h200.py --check          recompute its figures

Batches of `--decode` that come back replace those of the same size. OMP_NUM_THREADS=1 keeps torch's own threads on the
host from disturbing the launches of a decoding engine: without it times at batch 256 lie apart by a sixth.

Every engine runs in a process of its own (`_vllm_workers`). Bare prefill is the same engine with the same inputs and
one output token; both are timed in turn. `--models` holds tb24m; the model of the shape of Llama 3.1 8B is made there,
with random weights. `--prompts` is JSON: {"prompts": [[ids], ...]}.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import _results
from _vllm_engine import ratio

RESULT = _results.RESULTS / "vllm_h200.json"
WORKER = Path(__file__).with_name("_vllm_workers.py")
DECODE = ("1:64:8", "64:64:8", "256:64:24")
"""Batch, tokens and pairs: the larger the batch, the more the host's own time scatters."""
DECODED = ("b1", "b64", "b256")
DOC = Path(__file__).resolve().parents[1] / "docs" / "vllm-reference.md"
MARKS = ("<!-- vllm: written by benchmarks/vllm_h200.py --write-docs -->\n", "<!-- /vllm -->")
EMITTED: dict[str, list[str]] = {
    "v1": ["--runner", "v1"],
    "v2": ["--runner", "v2"],
    "v1-eager": ["--runner", "v1", "--eager"],
    "v2-eager": ["--runner", "v2", "--eager"],
    "int4": ["--weights", "int4"],
    "fp8": ["--weights", "fp8"],
    "kv_fp8": ["--weights", "kv_fp8"],
}
FIRST_TOKENS = 8
ALPHA = 0.01


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is published, from the raw data alone."""
    found: dict[str, Any] = {}
    if "speed" in raw:
        found |= _speed_figures(raw["speed"], raw.get("compare"))
    if "decode" in raw:
        found |= _decode_figures(raw["decode"])
    if "peer" in raw:
        found["peer_over_prefill"] = ratio(raw["peer"]["bare_s"], raw["peer"]["peer_s"])[0]
        found["peer_tokens_per_s"] = raw["peer"]["tokens"] / float(np.median(raw["peer"]["peer_s"]))
    if "tb24m" in raw:
        found |= _judged_figures(raw["tb24m"])
    return found


def _speed_figures(speed: Mapping[str, Any], compared: Mapping[str, Any] | None) -> dict[str, Any]:
    cases = ("paper", "unfiltered")
    ratios = {name: ratio(speed[f"{name}_bare_s"], speed[f"{name}_s"]) for name in cases}
    found: dict[str, Any] = {
        "verify_over_prefill": {name: ratio for name, (ratio, _) in ratios.items()},
        "verify_over_prefill_95": {name: interval for name, (_, interval) in ratios.items()},
        "prefill_tokens_per_s": speed["tokens"] / float(np.median(speed["paper_bare_s"] + speed["unfiltered_bare_s"])),
        "verify_tokens_per_s": {name: speed["tokens"] / float(np.median(speed[f"{name}_s"])) for name in cases},
        "verify_extra_memory_bytes": speed["memory"],
        "sequences": speed["sequences"],
        "exact_match_8b": speed["match"],
    }
    if compared is not None:
        for name in cases:
            mine, other = speed["compared"][name], compared[name]
            differ = np.abs(np.array(mine["logprob"]) - np.array(other["logprob"]))
            found.setdefault("logprob_difference_from_transformers", {})[name] = float(differ.mean())
            same = np.mean(np.array(mine["match"]) == np.array(other["match"]))
            found.setdefault("same_matches_as_transformers", {})[name] = float(same)
    return found


def _decode_figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    ratios = {name: ratio(item["off_s"], item["on_s"]) for name, item in raw.items()}
    return {
        "decode_with_fingerprints": {name: ratio for name, (ratio, _) in ratios.items()},
        "decode_with_fingerprints_95": {name: interval for name, (_, interval) in ratios.items()},
        "decode_tokens_per_s": {name: item["tokens"] / float(np.median(item["off_s"])) for name, item in raw.items()},
    }


def _judged_figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    scores = {name: np.array(values) for name, values in raw["scores"].items()}
    honest = {name: values for name, values in scores.items() if name.startswith("v")}
    pooled = np.concatenate([values[::2] for values in honest.values()])
    edge = float(np.sort(pooled)[-int(ALPHA * (len(pooled) + 1))])  # p <= alpha from here on, by ranks
    return {
        "exact_match": {name: raw["matched"][name] / raw["tokens"][name] for name in sorted(honest)},
        "exact_match_deviating": {
            name: raw["matched"][name] / raw["tokens"][name] for name in sorted(scores.keys() - honest.keys())
        },
        "fingerprints_honest_rejected": {
            name: float(np.mean(values[1::2] > edge)) for name, values in sorted(honest.items())
        },
        "fingerprints_power_8_tokens": {
            name: float(np.mean(scores[name] > edge)) for name in sorted(scores.keys() - honest.keys())
        },
        "alpha": ALPHA,
    }


def table(found: Mapping[str, Any]) -> str:
    """The table of docs/vllm-reference.md."""

    def cell(name: str, case: str) -> str:
        low, high = found[f"{name}_95"][case]
        return f"{found[name][case]:.3f} ({low:.3f} to {high:.3f})"

    rows = [
        "| what | paper setting | unfiltered |",
        "|---|---|---|",
        "| replayed and scored, over bare prefill (95 %) | "
        f"{cell('verify_over_prefill', 'paper')} | {cell('verify_over_prefill', 'unfiltered')} |",
        f"| token-difr 0.1.2 on the same traces | {found['peer_over_prefill']:.3f} | not offered |",
    ]
    decode = ", ".join(f"{cell('decode_with_fingerprints', name)} at batch {name[1:]}" for name in DECODED)
    honest = ", ".join(f"{value:.4f} ({name})" for name, value in found["exact_match"].items())
    power = ", ".join(f"{value:.2f} ({name})" for name, value in found["fingerprints_power_8_tokens"].items())
    rejected = max(found["fingerprints_honest_rejected"].values())
    return "\n".join([
        "", *rows, "",
        f"Bare prefill: {found['prefill_tokens_per_s']:,.0f} tokens/s, {found['sequences']} sequences. Beyond it the "
        "device holds "
        f"{max(found['verify_extra_memory_bytes'].values()) / 2**30:.2f} GiB more at most.", "",
        f"A provider's decoding with fingerprints (k = 8) over decoding without: {decode}.", "",
        f"Tokens of tb24m that match, served on the GPU and verified by this reference: {honest}. Of its fingerprints "
        f"(16 coordinates, 4 bytes a token), honest sequences that 8 tokens reject at {found['alpha']}: {rejected:.3f} "
        f"of any provider's at most; power of 8 tokens of one sequence: {power}.", "",
    ])  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Run the parts asked for, one engine after the other; each leaves its raw results in a file of its own."""
    args.out.mkdir(parents=True, exist_ok=True)
    work = args.scratch
    work.mkdir(parents=True, exist_ok=True)
    shape = ["--sequences", str(args.sequences), "--pairs", str(args.pairs)]
    model = work / "8b"
    if "speed" in args.parts:
        _worker("model", "--model", model)
        found = _worker(
            "speed", "--model", model, "--traces", work, *shape, "--decode", *args.decode, "--runner", args.runner
        )
        decode = found.pop("decode", {})
        _save(args.out / "speed.json", found)
        if decode:
            _save(args.out / "decode.json", decode)
        _save(args.out / "compare.json", _worker("compare", "--model", model, "--traces", work))
    if "peer" in args.parts:
        _save(
            args.out / "peer.json",
            _worker("peer", "--model", model, "--traces", work, "--sequences", "64", "--pairs", "5"),
        )
    if "tb24m" in args.parts:
        _tb24m(args, work)


def _tb24m(args: argparse.Namespace, work: Path) -> None:
    place = work / "emitted"
    place.mkdir(exist_ok=True)

    def emit(name: str) -> dict[str, Any]:
        return _worker(
            "emit", "--model", args.models / "tb24m", "--prompts", args.prompts, "--out", place / f"emit.{name}.jsonl",
            "--sequences", str(args.emitted), "--output", "64",
            "--first", str(list(EMITTED).index(name) * args.emitted), *EMITTED[name],
        )  # fmt: skip

    with ThreadPoolExecutor(args.jobs) as pool:
        about = dict(zip(EMITTED, pool.map(emit, EMITTED), strict=True))
    found = _worker("verify", "--model", args.models / "tb24m", "--traces", place, "--first", str(FIRST_TOKENS))
    _save(args.out / "tb24m.json", found | {"about": about})


def _worker(*words: Any) -> dict[str, Any]:
    """Run one worker and return its result; what it says goes to standard output."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, str(WORKER), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    lines = done.stdout.strip().splitlines()
    print(f"{words[0]}: exit status {done.returncode} after {time.monotonic() - begun:.0f} s", flush=True)
    said = [line for line in lines[:-1] if "tokens/s" in line or line.startswith("decode")]
    print("\n".join(said if done.returncode == 0 else lines[-25:]), flush=True)
    result = next((line for line in reversed(lines) if line.startswith("{")), "{}")  # libraries may speak last
    found: dict[str, Any] = json.loads(result) if done.returncode == 0 else {"failed": lines[-1][:300]}
    return found


def _save(path: Path, found: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(found))


def main() -> int:
    """Exit status: 1 if figures do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/vllm_h200"))
    parser.add_argument("--parts", nargs="+", default=["speed", "peer", "tb24m"])
    parser.add_argument("--runner", default="v1", help="vLLM's model runner of the timed engine")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--emitted", type=int, default=200, help="sequences of each provider of tb24m")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=3, help="providers of tb24m at a time")
    parser.add_argument("--decode", nargs="*", default=list(DECODE))
    parser.add_argument("--raw", nargs="+", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-docs", action="store_true", help="with --check: put the table into the document")
    args = parser.parse_args()
    if args.check:
        wrong = _results.check(RESULT, figures)
        wrong += _results.documented(DOC, *MARKS, table(_results.read(RESULT)["figures"]), write=args.write_docs)
        print("\n".join(wrong) or "vllm_h200: figures follow from the raw results")
        return 1 if wrong else 0
    if args.raw:
        raw = dict(_results.read(RESULT)["raw"]) if RESULT.exists() else {}
        found = {path.stem: json.loads(path.read_text()) for path in args.raw}
        if "decode" in found:
            found["decode"] = raw.get("decode", {}) | found["decode"]
        raw |= found
        print(json.dumps(_results.write(RESULT, raw, figures), indent=1))
        return 0
    run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
