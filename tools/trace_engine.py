"""One vLLM engine in this process: writes prompts and generates the sequences of one condition.

Written for vLLM 0.24 on a GPU; also runs on vLLM 0.32 on a CPU. vLLM and torch are imported late, after the environment
that chooses the model runner is set. One process holds one engine.
"""

from __future__ import annotations

import json
import math
import os
import re
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rounded_weights import write_rounded
from trace_pools import PromptSet, SeedSource, TraceSet, acceptable

ROUNDED = ("int3", "int4", "int8")
ONLINE = ("fp8", "fp8_per_channel")
WEIGHTS = ("bf16", *ONLINE, *ROUNDED)
KV_CACHE_BYTES = 4 * 2**30
PROMPT_SAMPLING = {"temperature": 1.0, "top_p": 0.98}
MAX_ROUNDS = 8


@dataclass(frozen=True)
class Condition:
    """What a provider does (`model`, `weights`, `kv_cache`, `used`) and what it claims (`claimed_model`, `claimed`).

    `model` is a directory, `runner` v1 or v2, `weights` one of `WEIGHTS`, `kv_cache` auto or fp8; `claimed` and `used`
    are sampling settings without seed, length and stops. The set takes prompts `first` to `first + count - 1`.
    """

    name: str
    model: Path
    claimed_model: str
    runner: str
    claimed: dict[str, Any]
    used: dict[str, Any]
    first: int
    count: int
    weights: str = "bf16"
    kv_cache: str = "auto"

    def truth(self) -> dict[str, Any]:
        """What is really done, for the record that no trace carries."""
        return {
            "model": self.model.name,
            "runner": self.runner,
            "weights": self.weights,
            "kv_cache": self.kv_cache,
            "sampling": self.used,
        }


def environment(runner: str) -> None:
    """Set what vLLM reads when it is imported: the model runner (v1 or v2), and everything in this process."""
    os.environ.update(
        VLLM_USE_V2_MODEL_RUNNER="1" if runner == "v2" else "0",
        VLLM_USE_FLASHINFER_SAMPLER="0",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
    )
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def _on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


class Engine:
    """A running vLLM engine with what it says of itself.

    `record` is the engine record of the traces; `seen` is what was found inside (dtypes of the weights and the cache).
    """

    def __init__(self, condition: Condition, *, longest: int, max_tokens: int, max_num_seqs: int) -> None:
        """Start the engine for prompts of up to `longest` tokens; `RuntimeError` where it runs something else."""
        environment(condition.runner)
        gpu = _on_gpu()
        if not gpu and (condition.weights == "fp8" or condition.kv_cache != "auto"):
            raise RuntimeError("fp8 weights (per tensor) and an fp8 KV cache need a GPU; fp8_per_channel runs on a CPU")
        from vllm import LLM

        options: dict[str, Any] = {}
        if gpu:  # several engines may share the GPU: a fixed cache needs no memory profile, which they would disturb
            options.update(gpu_memory_utilization=0.04, kv_cache_memory_bytes=KV_CACHE_BYTES)
        if condition.weights in ONLINE:
            options["quantization"] = condition.weights
        with tempfile.TemporaryDirectory(prefix="rounded-") as scratch:
            model = condition.model
            if condition.weights in ROUNDED:
                model = Path(scratch) / condition.model.name
                write_rounded(condition.model, model, condition.weights)
            self.llm = LLM(
                model=str(model),
                skip_tokenizer_init=True,
                dtype="bfloat16",
                kv_cache_dtype=condition.kv_cache,
                max_model_len=16 * math.ceil((longest + max_tokens) / 16),
                max_num_seqs=max_num_seqs,
                # no prompt is prefilled in chunks: vLLM on a CPU fails on a seeded one, and noise may shift on a GPU
                max_num_batched_tokens=max(2048, max_num_seqs * longest),
                enforce_eager=True,
                **options,
            )
        self.record, self.seen = self._inspect(gpu)
        self._check(condition)

    def _inspect(self, gpu: bool) -> tuple[dict[str, Any], dict[str, Any]]:
        import torch
        import vllm

        engine = self.llm.llm_engine
        runner = engine.model_executor.driver_worker.worker.model_runner
        module = type(runner).__module__  # vllm.v1.worker.gpu.model_runner is V2, vllm.v1.worker.gpu_model_runner V1
        config = engine.vllm_config
        record: dict[str, Any] = {
            "name": "vllm",
            "version": vllm.__version__,
            "runner": "v2" if re.search(r"\.worker\.(gpu|cpu)\.", module) else "v1",
            "device": "cpu",
            "dtype": str(config.model_config.dtype).removeprefix("torch."),
        }
        if gpu:
            card = torch.cuda.get_device_properties(0)
            record["device"] = card.name
            record["multiprocessors"] = card.multi_processor_count
            record["threads_per_multiprocessor"] = card.max_threads_per_multi_processor
        weights = {str(p.dtype).removeprefix("torch.") for n, p in runner.get_model().named_parameters() if "proj" in n}
        seen = {
            "runner_class": f"{module}.{type(runner).__name__}",
            "linear_dtypes": sorted(weights),
            "quantization": config.model_config.quantization,
            "kv_cache_dtype": str(config.cache_config.cache_dtype),
            "torch": torch.__version__,
        }
        return record, seen

    def _check(self, condition: Condition) -> None:
        """A set must not carry a wrong label: what was asked for must be what runs."""
        if self.record["runner"] != condition.runner:
            raise RuntimeError(f"runner {condition.runner} was asked for, the engine runs {self.record['runner']}")
        quantized = self.seen["quantization"]
        if (condition.weights in (*ONLINE, "int8")) != (quantized is not None):
            raise RuntimeError(f"weights {condition.weights} were asked for, the engine's quantization is {quantized}")
        if (condition.kv_cache == "auto") != (not self.seen["kv_cache_dtype"].startswith("fp8")):
            raise RuntimeError(
                f"KV cache {condition.kv_cache} was asked for, the engine's is {self.seen['kv_cache_dtype']}"
            )

    def generate(
        self, prompts: Sequence[Sequence[int]], settings: Sequence[dict[str, Any]]
    ) -> list[tuple[tuple[int, ...], str | None]]:
        """Output ids and finish reason for each prompt, under its own sampling settings."""
        from vllm import SamplingParams

        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        params = [SamplingParams(**setting, ignore_eos=True, detokenize=False) for setting in settings]
        results = self.llm.generate(requests, params, use_tqdm=False)
        if len(results) != len(prompts):
            raise RuntimeError(f"{len(results)} results for {len(prompts)} prompts")
        for index, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
            if list(result.prompt_token_ids) != list(prompt):
                raise RuntimeError(f"result {index} belongs to another prompt")
        return [(tuple(map(int, r.outputs[0].token_ids)), r.outputs[0].finish_reason) for r in results]


def choose(
    candidates: Sequence[Sequence[int]], special: Sequence[int], shortest: int, openings: set[tuple[int, ...]]
) -> list[int]:
    """Indices of the candidates to keep as prompts; `openings` grows by their first `shortest` tokens.

    Left out: those with a special token inside (another file begins there), and those that open as one before did.
    """
    kept = []
    for index, ids in enumerate(candidates):
        opening = tuple(ids[:shortest])
        if acceptable(ids, special) and opening not in openings:
            openings.add(opening)
            kept.append(index)
    return kept


def write_prompts(
    model: Path, runner: str, *, count: int, start: int, shortest: int, longest: int, max_num_seqs: int
) -> PromptSet:
    """`count` prompts of `shortest` to `longest` tokens that the model writes itself from its first token.

    Temperature 1, top-p 0.98, one seed each. No two prompts share their first `shortest` tokens.
    """
    config = json.loads((model / "config.json").read_text())
    begin = int(config["bos_token_id"])
    special = [
        int(config[key]) for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None
    ]
    condition = Condition("prompts", model, model.name, runner, PROMPT_SAMPLING, PROMPT_SAMPLING, 0, count)
    engine = Engine(condition, longest=1, max_tokens=longest, max_num_seqs=max_num_seqs)
    source, lengths = SeedSource(start), np.random.default_rng([start, 1])
    openings: set[tuple[int, ...]] = set()
    prompts: list[tuple[int, ...]] = []
    written: list[int] = []
    for _ in range(MAX_ROUNDS):
        if len(prompts) >= count:
            break
        seeds = source.take(math.ceil(1.15 * (count - len(prompts))) + 8)
        wanted = lengths.integers(shortest, longest + 1, len(seeds)).tolist()
        settings = [
            {**PROMPT_SAMPLING, "seed": seed, "max_tokens": length - 1}
            for seed, length in zip(seeds, wanted, strict=True)
        ]
        found = [(begin, *ids) for ids, _ in engine.generate([[begin]] * len(seeds), settings)]
        kept = choose(found, special, shortest, openings)
        prompts += [found[index] for index in kept]
        written += [seeds[index] for index in kept]
    if len(prompts) < count:
        raise RuntimeError(f"{len(prompts)} usable prompts after {MAX_ROUNDS} rounds, {count} were asked for")
    meta = {
        "model": model.name,
        "engine": engine.record,
        "sampling": PROMPT_SAMPLING,
        "start": start,
        "lengths": [shortest, longest],
    }
    return PromptSet(tuple(prompts[:count]), tuple(written[:count]), tuple(source.take(count)), meta)


def run_condition(condition: Condition, prompts: PromptSet, *, max_tokens: int, max_num_seqs: int) -> TraceSet:
    """Generate one condition's sequences, all of `max_tokens` tokens (end-of-sequence is ignored)."""
    part = prompts.part(condition.first, condition.count)
    longest = max(map(len, part.prompts))
    begun = time.monotonic()
    engine = Engine(condition, longest=longest, max_tokens=max_tokens, max_num_seqs=max_num_seqs)
    ready = time.monotonic()
    settings = [{**condition.used, "seed": seed, "max_tokens": max_tokens} for seed in part.seeds]
    results = engine.generate(part.prompts, settings)
    wrong = sum(reason != "length" or len(ids) != max_tokens for ids, reason in results)
    if wrong:
        raise RuntimeError(f"{wrong} of {len(results)} outputs do not have the {max_tokens} tokens asked for")
    meta = {
        "model": condition.claimed_model,
        "sampling": {**condition.claimed, "max_tokens": max_tokens, "ignore_eos": True},
        "engine": engine.record,
        "finish_reason": "length",
        "truth": {**condition.truth(), "seen": engine.seen},
        "seconds": {"start": round(ready - begun, 1), "generate": round(time.monotonic() - ready, 1)},
    }
    numbers = tuple(range(condition.first, condition.first + condition.count))
    return TraceSet(part.prompts, tuple(ids for ids, _ in results), part.seeds, numbers, meta)
