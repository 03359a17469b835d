"""Providers of one engine in a process of its own: their tokens, and the hidden states behind
the first of them.

    worker.py prompts EXPERIMENT MODEL OUT         the prompts of an experiment, written by the model itself
    worker.py serve EXPERIMENT MODEL OUT NAME ...  the traces of providers that one engine can serve, claimed as the
                                                   experiment claims; one that fails does not stop the next

`serve` leaves NAME.jsonl.gz and, where activations can be compared, NAME.states.npy: bfloat16 bits, uint16 [S, F, D].
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import spec as specs
import weights
from veridifr import EngineRecord, Sampling, Trace, write_traces
from veridifr.fingerprints import FingerprintSpec, fingerprint_of, projection_matrix
from veridifr.fingerprints.encoding import bfloat16_bits
from veridifr.fingerprints.projection import scale
from veridifr.traces.codec import engine_from_dict, engine_to_dict
from veridifr.vllm import EXTENSION, enable

WRITING = {"temperature": 1.0, "top_p": 0.98}
PREPENDED = 12


KV_CACHE_BYTES = 2 * 2**30
"""Of one engine on a GPU, where several share it."""
ROUNDS = 8
"""Tries to write enough prompts that begin differently."""


def main(verb: str, experiment: str, model: str, out: str, *names: str) -> int:
    """See the module's text. Exit status: 1 if a provider failed."""
    found = specs.read(Path(experiment))
    if verb == "prompts":
        _write_prompts(found, found.models[model], Path(out))
        return 0
    providers = [next(one for one in found.providers if one.name == name) for name in names]
    if len({one.process for one in providers}) != 1:
        raise ValueError(f"{', '.join(names)}: one engine cannot serve all of them")
    return _serve(found, model, providers, Path(out))


def seeds_of(experiment: specs.Experiment, provider: specs.Provider, count: int) -> list[int]:
    """The seeds that a provider is asked to use, 31 bits each, no two alike."""
    rng = np.random.default_rng([experiment.seed, *provider.name.encode()])
    return [int(seed) for seed in rng.choice(2**31, count, replace=False)]


def start(model: Path, provider: specs.Provider, prompt: int, tokens: int) -> Any:
    """An engine as `provider` runs it, for prompts of at most `prompt` tokens that so many `tokens` follow."""
    from trace_engine import environment  # of tools/, which `weights` put on the path

    environment(provider.runner or "v1")
    if provider.tensor_parallel > 1:  # each rank is a process
        os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(["0"] * provider.tensor_parallel)
    from vllm import LLM

    return LLM(str(model), **options_of(provider, prompt, tokens, gpu=_on_gpu()))


def options_of(provider: specs.Provider, prompt: int, tokens: int, *, gpu: bool) -> dict[str, Any]:
    """What vLLM is started with; `ValueError` for what needs a GPU where there is none."""
    if not gpu and (provider.weights in ("fp8_per_tensor", "int4_packed") or provider.kv_cache != "auto"):
        raise ValueError(f"{provider.name}: fp8 weights (per tensor), packed int4 and an fp8 KV cache need a GPU")
    options: dict[str, Any] = {
        "dtype": provider.dtype,
        "kv_cache_dtype": provider.kv_cache,
        "enforce_eager": not provider.compiled,
        "skip_tokenizer_init": True,
        "enable_prefix_caching": provider.prefix_caching,
        "max_model_len": 16 * -(-(prompt + tokens) // 16),
        "max_num_seqs": provider.max_num_seqs,
        # no prompt is prefilled in chunks: vLLM on a CPU fails on a seeded one, and noise may shift on a GPU
        "max_num_batched_tokens": provider.chunk or max(16384, provider.max_num_seqs * prompt),
    }
    if provider.inside is None:
        options["worker_extension_cls"] = EXTENSION
    else:  # what is changed depends on the output so far, so no step may begin before the last one ends
        options |= {"logits_processors": ["inside:Inside"], "async_scheduling": False}
    if provider.attention is not None:
        options["attention_backend"] = provider.attention
    if provider.weights in specs.ONLINE:
        options["quantization"] = specs.ONLINE[provider.weights]
    if provider.tensor_parallel > 1:
        options |= {"tensor_parallel_size": provider.tensor_parallel, "distributed_executor_backend": "mp"}
    if gpu:  # several engines may share the GPU: a fixed cache needs no memory profile, which they would disturb
        options |= {"gpu_memory_utilization": 0.04, "kv_cache_memory_bytes": KV_CACHE_BYTES}
    return options


def _on_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _write_prompts(experiment: specs.Experiment, model: Path, out: Path) -> None:
    """As many different texts as the experiment needs, each begun by the model from its first token alone."""
    begin = int(json.loads((model / "config.json").read_text())["bos_token_id"])
    low, high = experiment.prompt_lengths
    rng = np.random.default_rng(experiment.seed)
    # a GPU's attention kernels take no float32
    dtype, together = ("bfloat16", 512) if _on_gpu() else ("float32", 128)
    llm = start(model, specs.Provider(name="prompts", dtype=dtype, max_num_seqs=together), 1, high)
    with enable(llm, model="m", allow_unverified_version=True) as capture:
        out.with_name("engine.json").write_text(json.dumps(engine_to_dict(capture.engine)) + "\n")
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for tried in range(ROUNDS):
        count = experiment.prompts - len(found)
        if count <= 0:
            break
        count += count // 4 + (8 if tried else 0)
        seeds, lengths = rng.choice(2**31, count, replace=False).tolist(), rng.integers(low, high + 1, count).tolist()
        asked = [{**WRITING, "seed": s, "max_tokens": length - 1} for s, length in zip(seeds, lengths, strict=True)]
        for output in _generate(llm, [[begin]] * count, asked):
            ids = (begin, *output.outputs[0].token_ids)
            if begin not in ids[1:]:
                found.setdefault(ids[:low], ids)  # no two begin alike
    kept = list(found.values())[: experiment.prompts]
    if len(kept) < experiment.prompts:
        raise SystemExit(f"{len(kept)} usable prompts, {experiment.prompts} are needed: take longer ones")
    out.write_text(json.dumps(kept) + "\n")


def _serve(experiment: specs.Experiment, model: str, providers: Sequence[specs.Provider], out: Path) -> int:
    """Serve providers of one engine one after the other; 1 if one of them failed."""
    prompts: list[list[int]] = json.loads((out / "prompts.json").read_text())
    sent = [_sent(prompts, experiment, one) for one in providers]
    first, failed = providers[0], 0
    with tempfile.TemporaryDirectory() as scratch:
        path = experiment.models[first.model or model]
        if first.weights is not None and first.weights not in specs.ONLINE:
            path = weights.write(path, Path(scratch) / "changed", first.weights)
        longest = max(len(ids) for part in sent for ids in part)
        llm = start(path, first, longest, experiment.tokens) if first.engine == "vllm" else None
        for one, part in zip(providers, sent, strict=True):
            seeds = seeds_of(experiment, one, len(part))
            asked = _asked(experiment, one, seeds)
            try:
                if llm is None:
                    import hf_worker

                    ids, record, states = hf_worker.serve(path, one, part, asked), hf_worker.RECORD, None
                else:
                    outputs, record, states = _answers(llm, one, part, asked, experiment)
                    record = record or _record(out / "engine.json", one)
                    ids = [list(output.outputs[0].token_ids) for output in outputs]
                _write(experiment, model, one, out, ids, record, states)
            except Exception:  # noqa: BLE001  (whatever it is, the next provider is still wanted)
                print(f"{one.name}: failed\n{traceback.format_exc()}", flush=True)
                failed = 1
        if llm is not None and first.tensor_parallel > 1:  # ranks that are left to themselves may never end
            llm.llm_engine.engine_core.shutdown()
    return failed


def _sent(prompts: Sequence[list[int]], experiment: specs.Experiment, provider: specs.Provider) -> list[list[int]]:
    """The prompts that a provider really runs."""
    system = prompts[0][:PREPENDED] if provider.prepend else []
    before = (system * provider.prepend)[: provider.prepend]
    sent = [[*before, *ids] for ids in prompts[experiment.slice_of(provider)]]
    return [ids if provider.keep is None else ids[-provider.keep :] for ids in sent]


def _write(
    experiment: specs.Experiment, model: str, provider: specs.Provider, out: Path, ids: Sequence[Sequence[int]],
    record: EngineRecord, states: np.ndarray | None,
) -> None:  # fmt: skip
    """Leave what a provider answered, under the claim of the experiment."""
    own = json.loads((out / "prompts.json").read_text())[experiment.slice_of(provider)]
    seeds = seeds_of(experiment, provider, len(own))
    claimed = [Sampling(**experiment.claim, seed=s, max_tokens=experiment.tokens, ignore_eos=True) for s in seeds]
    traces = [
        Trace(
            id=f"{provider.file}/{n}",
            model=model,
            prompt_token_ids=np.array(own[n], dtype=np.int32),
            output_token_ids=np.array(output, dtype=np.int32),
            sampling=sampling,
            engine=record,
            finish_reason="length",
        )
        for n, (output, sampling) in enumerate(zip(ids, claimed, strict=True))
    ]
    if states is not None:
        with (out / f"{provider.file}.states.partial").open("wb") as file:
            np.save(file, states)
        (out / f"{provider.file}.states.partial").replace(out / f"{provider.file}.states.npy")
    write_traces(out / f"{provider.file}.jsonl.gz", traces)


def _asked(experiment: specs.Experiment, provider: specs.Provider, seeds: Sequence[int]) -> list[dict[str, Any]]:
    shift = {"claimed": 0, "next": 1, "none": None}[provider.seeds]
    inside = {"kind": provider.inside} | {k: getattr(provider, k) for k in ("share", "top_k", "period", "bias")}
    return [
        {
            **experiment.claim,
            **provider.sampling,
            "max_tokens": experiment.tokens,
            "ignore_eos": True,
            "seed": None if shift is None else seed + shift,
            **({"extra_args": {"inside": {**inside, "seed": seed}}} if provider.inside else {}),
        }
        for seed in seeds
    ]


def _answers(
    llm: Any,
    provider: specs.Provider,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[dict[str, Any]],
    experiment: specs.Experiment,
) -> tuple[list[Any], EngineRecord | None, np.ndarray | None]:
    """What the engine answers, its engine record, and bfloat16 bits of hidden states [S, F, D] of the first sequences
    and tokens, or None where they are not needed; no record where nothing can look into the engine."""
    if not provider.sees_activations:
        return _generate(llm, prompts, asked), None, None
    count = experiment.states_of(provider)
    if not count:
        with enable(llm, model="m", allow_unverified_version=True) as capture:
            record = capture.engine
        return _generate(llm, prompts, asked), record, None
    size = int(llm.llm_engine.vllm_config.model_config.get_hidden_size())
    whole = FingerprintSpec(seed=0, hidden_size=size, k=size, encoding="float32")
    rotation = projection_matrix(0, size, size).astype(np.float64) * float(scale(size))
    found = []
    with enable(llm, whole, model="m", allow_unverified_version=True) as capture:
        record = capture.engine
        outputs = _generate(llm, prompts[:count], asked[:count])
        for made in capture.records(outputs):
            if made.trace is None:
                raise RuntimeError(f"{provider.name}: hidden states were not captured: {made.reason}")
            payload = fingerprint_of(made.trace, whole).payloads[0]  # type: ignore[union-attr]  # it was switched on
            projected = np.frombuffer(payload, dtype="<f4").reshape(-1, size)[: experiment.activation_budgets[-1]]
            found.append(bfloat16_bits(projected.astype(np.float64) @ rotation).astype(np.uint16))
    rest = _generate(llm, prompts[count:], asked[count:]) if count < len(prompts) else []
    return [*outputs, *rest], record, np.stack(found)


def _record(path: Path, provider: specs.Provider) -> EngineRecord:
    """The record of an engine that no extension looks into: what the same engine said when it wrote the prompts."""
    record = engine_from_dict(json.loads(path.read_text()))
    return replace(record, dtype=provider.dtype, runner=provider.runner or record.runner)


def _generate(llm: Any, prompts: Sequence[Sequence[int]], asked: Sequence[dict[str, Any]]) -> list[Any]:
    from vllm import SamplingParams

    params = [SamplingParams(detokenize=False, **{"ignore_eos": True, **fields}) for fields in asked]
    found: list[Any] = llm.generate([{"prompt_token_ids": list(ids)} for ids in prompts], params, use_tqdm=False)
    return found


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
