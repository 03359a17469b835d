"""A vLLM engine as the GPU benchmark starts it, and what all of its workers do with one."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
from trace_engine import environment as environment

PAPER = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
PLAIN = {"temperature": 1.0}


def engine(model: Path, **options: Any) -> Any:
    """An engine as a provider starts it; options go to vLLM."""
    import torch
    import vllm

    from veridifr.vllm.options import EXTENSION

    usual: dict[str, Any] = {
        "dtype": "bfloat16",
        "skip_tokenizer_init": True,
        "enable_prefix_caching": False,
        "worker_extension_cls": EXTENSION,
        "max_num_batched_tokens": 8192,
    }
    if torch.cuda.is_available():
        usual["gpu_memory_utilization"] = 0.85
    return vllm.LLM(model=str(model), **(usual | options))


def started_once() -> dict[str, Any]:
    """Have `vllm.LLM` start an engine once and give it back ever after, to callers that start one each time; it lies
    under "llm" once it is started."""
    import vllm

    start, held = vllm.LLM, {}

    def once(**options: Any) -> Any:
        if "llm" not in held:
            held["llm"] = start(**options)
        return held["llm"]

    vllm.LLM = once
    return held


def provider(llm: Any, seed: int | None = None, spec: Any = None) -> Any:
    """Capture switched on."""
    from veridifr.vllm import enable

    return enable(llm, spec, fingerprint_seed=seed, allow_unverified_version=True)


def generated(llm: Any, prompts: list[list[int]], sampling: dict[str, Any], tokens: int, seeds: list[int]) -> Any:
    """The outputs of one batch."""
    from vllm import SamplingParams

    params = [
        SamplingParams(**sampling, seed=seed, max_tokens=tokens, ignore_eos=True, detokenize=False) for seed in seeds
    ]
    return llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)


def inputs_of(traces: list[Any]) -> list[dict[str, list[int]]]:
    """Prompt and output of each trace as one prompt, but for the last token: nothing is drawn from its state."""
    return [
        {"prompt_token_ids": np.concatenate([t.prompt_token_ids, t.output_token_ids[:-1]]).tolist()} for t in traces
    ]


def bare(llm: Any, inputs: list[dict[str, list[int]]]) -> float:
    """Seconds that the engine takes to prefill the inputs."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    begun = time.perf_counter()
    llm.generate(inputs, params, use_tqdm=False)
    return time.perf_counter() - begun


def verified(reference: Any, traces: list[Any]) -> tuple[float, dict[str, Any]]:
    """Seconds until every trace has its scores, and these."""
    from veridifr.scoring import score_claim

    by_id = {trace.id: trace for trace in traces}
    begun = time.perf_counter()
    scores = dict(reference.map(traces, lambda one: (one.trace_id, score_claim(by_id[one.trace_id], one))))
    return time.perf_counter() - begun, scores


def ratio(before: Sequence[float], after: Sequence[float]) -> tuple[float, list[float]]:
    """Speed after over speed before, from times in turn: ratio of medians, and its 95 % bootstrap interval."""
    bare, taken = np.array(before), np.array(after)
    drawn = np.random.default_rng(0).integers(0, len(bare), size=(4000, len(bare)))
    ratios = np.median(bare[drawn], axis=1) / np.median(taken[drawn], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(bare) / np.median(taken)), [float(low), float(high)]
