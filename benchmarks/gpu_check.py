"""What only a GPU can show: the noise of transformers' `generate` on CUDA, and the reference itself on CUDA.

usage: gpu_check.py MODEL_DIR OUT_DIR [--device cuda|cpu]   run both, for example on a GPU machine without a network
       gpu_check.py --raw OUT_DIR/gpu_check.raw.json        write benchmarks/results/gpu_check.json from what came back
       gpu_check.py --check                                 recompute its figures

A run leaves OUT_DIR/hf.jsonl (traces of `generate`: batches of 1, 4 and 40, the last one beyond one pass of an H200's
grid at a vocabulary of 8192) and OUT_DIR/gpu_check.raw.json: the share of those tokens that the contract
hf-multinomial re-derives, and the demo's audits with the reference on that device.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import _results
from veridifr import demo
from veridifr.auditing import audit
from veridifr.calibration_io import read_calibration
from veridifr.references import ReferenceSettings, load
from veridifr.scoring import score_claim
from veridifr.trace import EngineRecord, Sampling, Trace
from veridifr.traces import read_traces, write_traces

BATCHES = (1, 4, 40)
TOKENS = 64
SAMPLINGS = ({"temperature": 1.0, "top_k": 50, "top_p": 0.95}, {"temperature": 0.8, "top_k": 0, "top_p": 1.0})


RESULT = _results.RESULTS / "gpu_check.json"


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The lowest share of re-derived tokens, and each demo provider's verdict."""
    return {
        "hf_cuda_match_lowest": min(raw["hf_match"].values()),
        "verdicts_on_gpu": {name: found["verdict"] for name, found in raw["audits"].items()},
    }


def main(arguments: list[str]) -> int:
    """Run, write or check; the exit status is 1 if a check fails."""
    parser = argparse.ArgumentParser(description="transformers' noise and the reference, on a GPU")
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    if given.check:
        wrong = _results.check(RESULT, figures)
        print("\n".join(wrong) or f"{RESULT.name}: figures follow from raw")
        return int(bool(wrong))
    if given.raw is not None:
        print(_results.write(RESULT, json.loads(given.raw.read_text()), figures))
        return 0
    if given.model is None or given.out is None:
        parser.error("MODEL_DIR and OUT_DIR are needed to run")
    _run(given.model, given.out, given.device)
    return 0


def _run(model: Path, out: Path, device: str) -> None:
    out.mkdir(parents=True, exist_ok=True)
    traces = [trace for size in BATCHES for settings in SAMPLINGS for trace in _generate(model, device, size, settings)]
    write_traces(out / "hf.jsonl", traces)
    raw: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if device != "cpu":
        raw["device"] = torch.cuda.get_device_name(0)
    raw["hf_match"] = _matches(traces, device, model)
    raw["audits"] = _audits(device)
    (out / "gpu_check.raw.json").write_text(json.dumps(raw, indent=1) + "\n")
    print(json.dumps(raw, indent=1))


def _generate(model_dir: Path, device: str, size: int, settings: dict[str, float]) -> list[Trace]:
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).to(device).eval()
    prompts = [trace.prompt_token_ids[:60] for trace in read_traces(demo.DATA / "demo" / "v1.jsonl.gz")][:size]
    ids = torch.from_numpy(np.stack(prompts).astype(np.int64)).to(device)
    seed = 1000 + size
    torch.manual_seed(seed)
    output = model.generate(
        ids,
        do_sample=True,
        max_new_tokens=TOKENS,
        min_new_tokens=None,
        eos_token_id=None,
        pad_token_id=2,
        temperature=settings["temperature"],
        top_k=int(settings["top_k"]),
        top_p=settings["top_p"],
    )[:, ids.shape[1] :].cpu()
    traces = []
    for row in range(size):
        sampling = Sampling(**settings, seed=seed, ignore_eos=True, max_tokens=TOKENS)  # type: ignore[arg-type]
        traces.append(
            Trace(
                id=f"hf/{size}/{settings['temperature']}/{row}",
                model=model_dir.name,
                prompt_token_ids=prompts[row],
                output_token_ids=output[row].numpy().astype(np.int32),
                sampling=sampling,
                engine=_record(device, row, size),
                finish_reason="length",
            )
        )
    return traces


def _record(device: str, row: int, size: int) -> EngineRecord:
    grid: dict[str, Any] = {"device": "cpu"}
    if device != "cpu":
        card = torch.cuda.get_device_properties(0)
        grid = {
            "device": torch.cuda.get_device_name(0),
            "multiprocessors": card.multi_processor_count,
            "threads_per_multiprocessor": card.max_threads_per_multi_processor,
        }
    return EngineRecord(
        name="transformers",
        version=transformers.__version__,
        dtype="bfloat16",
        batch_row=row,
        batch_size=size,
        **grid,
    )


def _matches(traces: list[Trace], device: str, model_dir: Path) -> dict[str, float]:
    reference = load(f"hf:{model_dir}", ReferenceSettings(device=device, dtype="float32"))
    by_id = {trace.id: trace for trace in traces}
    found: dict[str, list[float]] = {}
    for evidence in reference.evidence(traces):
        trace = by_id[evidence.trace_id]
        scores = score_claim(trace, evidence)
        found.setdefault(trace.id.rsplit("/", 1)[0], []).append(float(scores.match_T.mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _audits(device: str) -> dict[str, Any]:
    reference = load(f"hf:{demo.model_path()}", ReferenceSettings(device=device, dtype="float32"))
    calibration, _ = read_calibration(demo.DATA / "demo" / "calibration.json")
    found = {}
    for name in demo.EXPECTED:
        start = time.perf_counter()
        finding = audit(list(read_traces(demo.DATA / "demo" / f"{name}.jsonl.gz")), reference, calibration)
        found[name] = {
            "verdict": finding.verdict.value,
            "p_value": finding.p_value,
            "exact_match": finding.exact_match,
            "effective_logit_noise": finding.effective_logit_noise.estimate,
            "diagnosis": finding.diagnosis.code,
            "seconds": round(time.perf_counter() - start, 1),
        }
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
