"""One provider in a process of its own: its tokens, and the hidden states behind the first of them.

    worker.py prompts EXPERIMENT MODEL OUT     the prompts of an experiment, written by the model itself
    worker.py serve EXPERIMENT MODEL OUT NAME  the traces of provider NAME, claimed as the experiment claims

`serve` leaves NAME.jsonl.gz and, where activations can be compared, NAME.states.npy: bfloat16 bits, uint16 [S, F, D].
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
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


def main(verb: str, experiment: str, model: str, out: str, name: str = "") -> None:
    """See the module's text."""
    found = specs.read(Path(experiment))
    if verb == "prompts":
        _write_prompts(found, found.models[model], Path(out))
    else:
        provider = next(one for one in found.providers if one.name == name)
        _serve(found, model, provider, Path(out))


def seeds_of(experiment: specs.Experiment, provider: specs.Provider, count: int) -> list[int]:
    """The seeds that a provider is asked to use, 31 bits each, no two alike."""
    rng = np.random.default_rng([experiment.seed, *provider.name.encode()])
    return [int(seed) for seed in rng.choice(2**31, count, replace=False)]


def start(model: Path, provider: specs.Provider, longest: int) -> Any:
    """An engine as `provider` runs it."""
    from trace_engine import environment  # of tools/, which `weights` put on the path

    environment(provider.runner or "v1")
    if provider.tensor_parallel > 1:  # each rank is a process
        os.environ.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(["0"] * provider.tensor_parallel)
    from vllm import LLM

    options: dict[str, Any] = {"worker_extension_cls": EXTENSION}
    if provider.inside is not None:
        options = {"logits_processors": ["inside:Inside"]}
    if provider.weights == "fp8_per_channel":
        options["quantization"] = provider.weights
    if provider.tensor_parallel > 1:
        options.update(tensor_parallel_size=provider.tensor_parallel, distributed_executor_backend="mp")
    return LLM(
        str(model),
        dtype=provider.dtype,
        kv_cache_dtype=provider.kv_cache,
        enforce_eager=not provider.compiled,
        skip_tokenizer_init=True,
        enable_prefix_caching=provider.prefix_caching,
        max_model_len=16 * -(-longest // 16),
        max_num_seqs=provider.max_num_seqs,
        max_num_batched_tokens=provider.chunk or 16384,
        **options,
    )


def _write_prompts(experiment: specs.Experiment, model: Path, out: Path) -> None:
    """As many different texts as the experiment needs, each begun by the model from its first token alone."""
    begin = int(json.loads((model / "config.json").read_text())["bos_token_id"])
    low, high = experiment.prompt_lengths
    count = experiment.prompts + experiment.prompts // 4
    rng = np.random.default_rng(experiment.seed)
    llm = start(model, specs.Provider(name="prompts", dtype="float32", max_num_seqs=128), high + 1)
    seeds, lengths = rng.choice(2**31, count, replace=False).tolist(), rng.integers(low, high + 1, count).tolist()
    asked = [{**WRITING, "seed": s, "max_tokens": length - 1} for s, length in zip(seeds, lengths, strict=True)]
    with enable(llm, model="m") as capture:
        out.with_name("engine.json").write_text(json.dumps(engine_to_dict(capture.engine)) + "\n")
    found: dict[tuple[int, ...], tuple[int, ...]] = {}
    for output in _generate(llm, [[begin]] * count, asked):
        ids = (begin, *output.outputs[0].token_ids)
        found.setdefault(ids[:low], ids)  # no two begin alike
    kept = [ids for ids in found.values() if begin not in ids[1:]][: experiment.prompts]
    if len(kept) < experiment.prompts:
        raise SystemExit(f"{len(kept)} usable prompts, {experiment.prompts} are needed: take longer ones")
    out.write_text(json.dumps(kept) + "\n")


def _serve(experiment: specs.Experiment, model: str, provider: specs.Provider, out: Path) -> None:
    prompts: list[list[int]] = json.loads((out / "prompts.json").read_text())
    own = prompts[experiment.slice_of(provider)]
    system = prompts[0][:PREPENDED] if provider.prepend else []
    sent = [[*(system * provider.prepend)[: provider.prepend], *ids] for ids in own]
    sent = [ids if provider.keep is None else ids[-provider.keep :] for ids in sent]
    seeds = seeds_of(experiment, provider, len(own))
    longest = max(map(len, sent)) + experiment.tokens
    with tempfile.TemporaryDirectory() as scratch:
        path = experiment.models[provider.model or model]
        if provider.weights is not None and provider.weights != "fp8_per_channel":
            path = weights.write(path, Path(scratch) / "changed", provider.weights)
        asked = _asked(experiment, provider, seeds)
        if provider.engine == "hf":
            import hf_worker

            ids, record, states = hf_worker.serve(path, provider, sent, asked), hf_worker.RECORD, None
        else:
            outputs, record, states = _answers(start(path, provider, longest), provider, sent, asked)
            record = record or _record(out / "engine.json", provider)
            ids = [list(output.outputs[0].token_ids) for output in outputs]
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
        kept = np.stack([rows[: experiment.activation_budgets[-1]] for rows in states])
        with (out / f"{provider.file}.states.partial").open("wb") as file:
            np.save(file, kept)
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
    llm: Any, provider: specs.Provider, prompts: Sequence[Sequence[int]], asked: Sequence[dict[str, Any]]
) -> tuple[list[Any], EngineRecord | None, list[np.ndarray] | None]:
    """What the engine answers, its engine record, and bfloat16 bits of the hidden states of each answer's tokens; no
    record and no states where nothing can look into the engine."""
    if not provider.sees_activations:
        return _generate(llm, prompts, asked), None, None
    size = int(llm.llm_engine.vllm_config.model_config.get_hidden_size())
    whole = FingerprintSpec(seed=0, hidden_size=size, k=size, encoding="float32")
    rotation = projection_matrix(0, size, size).astype(np.float64) * float(scale(size))
    with enable(llm, whole, model="m") as capture:
        outputs = _generate(llm, prompts, asked)
        found = []
        for made in capture.records(outputs):
            if made.trace is None:  # a seed of the engine's own: its tokens are kept, its activations are not needed
                return outputs, capture.engine, None
            payload = fingerprint_of(made.trace, whole).payloads[0]  # type: ignore[union-attr]  # it was switched on
            projected = np.frombuffer(payload, dtype="<f4").reshape(-1, size)
            found.append(bfloat16_bits(projected.astype(np.float64) @ rotation).astype(np.uint16))
    return outputs, capture.engine, found


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
    main(*sys.argv[1:])
