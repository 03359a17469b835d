"""Workers of benchmarks/vllm_h200.py: token-difr as it is installed, and honest and other providers of one model."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from _vllm_engine import PAPER, bare, engine, generated, inputs_of, provider, started_once


def peer(args: argparse.Namespace) -> dict[str, Any]:
    """token-difr as it is installed, on the same traces; its own start of the engine is not counted."""
    import token_difr

    from veridifr.traces import read_traces

    traces = list(read_traces(args.traces / "paper.jsonl"))[: args.sequences]
    tokens = sum(len(t.prompt_token_ids) + len(t.output_token_ids) for t in traces)
    outputs = [
        token_difr.TokenSequence(
            prompt_token_ids=t.prompt_token_ids.tolist(), output_token_ids=t.output_token_ids.tolist()
        )
        for t in traces
    ]
    held = started_once()
    bare_inputs = inputs_of(traces)
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "verbose": False}
    raw: dict[str, Any] = {"tokens": tokens, "peer_s": [], "bare_s": []}
    for pair in range(args.pairs + 1):
        begun = time.perf_counter()
        token_difr.verify_outputs(
            outputs, str(args.model), seed=int(traces[0].sampling.seed or 0), max_model_len=1024,
            vllm_kwargs={"max_num_batched_tokens": 8192, "enable_prefix_caching": False}, **settings,
        )  # fmt: skip
        taken = time.perf_counter() - begun
        plain = bare(held["llm"], bare_inputs)
        if pair:
            raw["peer_s"].append(taken)
            raw["bare_s"].append(plain)
        print(f"peer {tokens / taken:.0f}, bare {tokens / plain:.0f} tokens/s", flush=True)
    return raw


def emit(args: argparse.Namespace) -> dict[str, Any]:
    """Traces with fingerprints from one provider: honest or not, V1 or V2, eager or with graphs."""
    import tempfile

    from rounded_weights import write_rounded

    from veridifr.traces import write_traces

    options: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 128, "enforce_eager": args.eager}
    with tempfile.TemporaryDirectory() as scratch:
        model = args.model
        if args.weights == "int4":
            model = Path(scratch) / "int4"
            write_rounded(args.model, model, "int4")
        elif args.weights == "fp8":
            options["quantization"] = "fp8"
        elif args.weights == "kv_fp8":
            options["kv_cache_dtype"] = "fp8"
        llm = engine(model, max_num_batched_tokens=32768, **_small(), **options)
        prompts = json.loads(args.prompts.read_text())["prompts"][args.first : args.first + args.sequences]
        seeds = np.random.default_rng(args.first).integers(1, 2**31, size=len(prompts)).tolist()
        with provider(llm, spec=_spec(args.model)) as capture:
            outputs = generated(llm, prompts, PAPER, args.output, seeds)
            found = capture.traces(outputs)
    write_traces(args.out, found)
    return {"sequences": len(found), "contract": found[0].engine.sampler, "engine": found[0].engine.version}


def _small() -> dict[str, Any]:
    """A cache of fixed size: engines that start side by side would disturb each other's memory profiles."""
    import torch

    fixed = {"gpu_memory_utilization": 0.04, "kv_cache_memory_bytes": 4 * 2**30}
    return fixed if torch.cuda.is_available() else {}


def _spec(model: Path) -> Any:
    from veridifr.fingerprints import FingerprintSpec

    size = json.loads((model / "config.json").read_text())["hidden_size"]
    return FingerprintSpec(seed=7, hidden_size=size, k=16, encoding="wrapped2", step_log2=(-4,))


def verify(args: argparse.Namespace) -> dict[str, Any]:
    """Matches and fingerprint scores of the files of `emit`, by the vLLM reference."""
    from veridifr.fingerprint_null import fit_null, measure, prefix_scores
    from veridifr.references import ReferenceSettings
    from veridifr.references.vllm_engine import VllmReference
    from veridifr.scoring import score_claim
    from veridifr.traces import read_traces

    spec = _spec(args.model)
    llm = engine(args.model, max_model_len=512, max_num_seqs=128, enforce_eager=args.eager, **_small())
    reference: Any = VllmReference.from_llm(llm, args.model, settings=ReferenceSettings()).measuring(spec)
    raw: dict[str, Any] = {"tokens": {}, "matched": {}, "scores": {}}
    measured: dict[str, list[Any]] = {}
    for path in sorted(args.traces.glob("emit.*.jsonl")):
        name = path.name.split(".")[1]
        traces = list(read_traces(path))
        by_id = {trace.id: trace for trace in traces}
        found = list(reference.evidence(traces))
        raw["tokens"][name] = sum(len(t.output_token_ids) for t in traces)
        raw["matched"][name] = int(sum(score_claim(by_id[e.trace_id], e).match_T.sum() for e in found))
        measured[name] = [measure(by_id[e.trace_id], e, spec) for e in found]
    honest = [name for name in measured if name.startswith("v")]
    fitted = [one for name in honest for one in measured[name][::2]]
    null = fit_null(spec, (), fitted, ())
    assert null is not None
    (scale,) = null.scales
    raw["sigma"] = scale.sigma
    for name, rows in measured.items():
        kept = rows[1::2] if name in honest else rows
        raw["scores"][name] = [round(float(prefix_scores(one, spec, [scale], [args.first])[0, 0]), 4) for one in kept]
    return raw
