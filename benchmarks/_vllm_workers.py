"""One engine in a process of its own: what benchmarks/vllm_h200.py measures with it, printed as its last line."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

PAPER = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
PLAIN = {"temperature": 1.0}
COMPARED = 64
SCORERS = 8


def environment(runner: str) -> None:
    """What has to be set before vLLM is imported."""
    os.environ.update(
        VLLM_USE_V2_MODEL_RUNNER="1" if runner == "v2" else "0",
        VLLM_USE_FLASHINFER_SAMPLER="0",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
    )
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


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


def write_model(folder: Path, layers: int, hidden: int, vocab: int) -> None:
    """A randomly initialised model of the shape of Llama 3.1 8B (or a smaller one), with a tokenizer of its size."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=hidden * 7 // 2, num_hidden_layers=layers,
        num_attention_heads=hidden // 128, num_key_value_heads=max(1, hidden // 512), max_position_embeddings=8192,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    words = {f"t{number}": number for number in range(vocab)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="t0"))).save_pretrained(folder)


def speed(args: argparse.Namespace) -> dict[str, Any]:
    """Bare prefill and verification in turn, then decoding with and without fingerprints."""
    import torch

    from veridifr.references import ReferenceSettings
    from veridifr.references.vllm_engine import VllmReference

    begun = time.monotonic()
    llm = engine(args.model, max_model_len=args.prompt + args.output + 16, max_num_seqs=256)
    started = time.monotonic() - begun
    rng = np.random.default_rng(0)
    vocab = int(llm.llm_engine.vllm_config.model_config.get_vocab_size())
    prompts = rng.integers(2, vocab, size=(args.sequences, args.prompt)).tolist()
    seeds = rng.integers(1, 2**31, size=args.sequences).tolist()
    traces = {}
    for name, sampling in (("paper", PAPER), ("unfiltered", PLAIN)):
        with provider(llm) as capture:
            traces[name] = capture.traces(generated(llm, prompts, sampling, args.output, seeds))
    reference = VllmReference(llm, None, "vllm:benchmark", "0" * 64, ReferenceSettings())
    tokens = args.sequences * (args.prompt + args.output - 1)
    raw: dict[str, Any] = {"start_s": started, "tokens": tokens, "bare_s": [], "memory": {}}
    inputs = {name: _inputs(found) for name, found in traces.items()}
    scored: dict[str, Any] = {}
    for pair in range(args.pairs + 1):
        for name in traces:
            bare = _bare(llm, inputs[name])
            low = _peak(reset=True)
            taken, scored[name] = _verified(reference, traces[name])
            raw["memory"][name] = max(raw["memory"].get(name, 0), _peak() - low)
            if pair:
                raw.setdefault(f"{name}_bare_s", []).append(bare)
                raw.setdefault(f"{name}_s", []).append(taken)
                print(f"{name}: bare {tokens / bare:.0f}, verify {tokens / taken:.0f} tokens/s", flush=True)
    del raw["bare_s"]
    raw["match"] = {name: float(np.mean([s.match_T.mean() for s in found.values()])) for name, found in scored.items()}
    raw["statuses"] = {
        name: np.bincount(np.concatenate([s.status_T for s in found.values()]), minlength=4).tolist()
        for name, found in scored.items()
    }
    kept = {name: _kept(found[traces[name][0].id]) for name, found in scored.items()}
    raw["compared"] = kept
    if args.traces is not None:
        from veridifr.traces import write_traces

        for name, found in traces.items():
            write_traces(args.traces / f"{name}.jsonl", found[: args.sequences])
    raw["decode"] = _decode(llm, args, vocab)
    raw["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return raw


def _inputs(traces: list[Any]) -> list[dict[str, list[int]]]:
    return [
        {"prompt_token_ids": np.concatenate([t.prompt_token_ids, t.output_token_ids[:-1]]).tolist()} for t in traces
    ]


def _bare(llm: Any, inputs: list[dict[str, list[int]]]) -> float:
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    begun = time.perf_counter()
    llm.generate(inputs, params, use_tqdm=False)
    return time.perf_counter() - begun


def _verified(reference: Any, traces: list[Any]) -> tuple[float, dict[str, Any]]:
    """Seconds until every trace has its scores, and these."""
    from veridifr.contracts.registry import infer
    from veridifr.scores import Hypothesis
    from veridifr.scoring import score

    by_id = {trace.id: trace for trace in traces}

    def one(evidence: Any) -> Any:
        trace = by_id[evidence.trace_id]
        contract = infer(trace.engine, trace.sampling, evidence.vocab_size).contract
        return score(trace, evidence, Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed))

    begun = time.perf_counter()
    with ThreadPoolExecutor(SCORERS) as pool:
        found = {evidence.trace_id: pool.submit(one, evidence) for evidence in reference.evidence(traces)}
        scores = {name: future.result() for name, future in found.items()}
    return time.perf_counter() - begun, scores


def _kept(scores: Any) -> dict[str, Any]:
    """The first scores of a trace, to be compared with those of another reference."""
    return {
        "gap": [round(float(x), 5) for x in scores.gap_T[:COMPARED]],
        "match": scores.match_T[:COMPARED].astype(int).tolist(),
        "logprob": [round(float(x), 5) for x in scores.logprob_T[:COMPARED]],
    }


def _peak(*, reset: bool = False) -> int:
    """Bytes held at most since the last reset, or, with `reset`, bytes held now."""
    import torch

    if not torch.cuda.is_available():
        return 0
    if reset:
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    return int(torch.cuda.max_memory_allocated())


def _decode(llm: Any, args: argparse.Namespace, vocab: int) -> dict[str, Any]:
    """Seconds of generation with capture off and on, in turn, at several batch sizes."""
    rng = np.random.default_rng(1)
    raw: dict[str, Any] = {}
    for batch, tokens in args.decode:
        prompts = rng.integers(2, vocab, size=(batch, 32)).tolist()
        seeds = rng.integers(1, 2**31, size=batch).tolist()
        times: dict[str, list[float]] = {"off_s": [], "on_s": []}
        for pair in range(args.pairs + 1):
            order = ("off_s", "on_s") if pair % 2 else ("on_s", "off_s")
            for name in order:
                capture = provider(llm, seed=7) if name == "on_s" else None
                begun = time.perf_counter()
                outputs = generated(llm, prompts, PAPER, tokens, seeds)
                taken = time.perf_counter() - begun
                if capture is not None:
                    assert len(capture.traces(outputs)) == batch
                    capture.close()
                if pair:
                    times[name].append(taken)
        raw[f"b{batch}"] = times | {"tokens": batch * tokens}
        print(f"decode {batch}: {np.median(times['off_s']) / np.median(times['on_s']):.4f}", flush=True)
    return raw


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """The scores of the first trace of each file by a transformers reference on the same weights."""
    from veridifr.references import ReferenceSettings, load
    from veridifr.traces import read_traces

    reference = load(f"hf:{args.model}", ReferenceSettings(dtype="bfloat16"))
    raw = {}
    for name in ("paper", "unfiltered"):
        trace = next(iter(read_traces(args.traces / f"{name}.jsonl")))
        _, scores = _verified(reference, [trace])
        raw[name] = _kept(scores[trace.id])
    return raw


def peer(args: argparse.Namespace) -> dict[str, Any]:
    """token-difr as it is installed, on the same traces; its own start of the engine is not counted."""
    import token_difr
    import vllm

    from veridifr.traces import read_traces

    traces = list(read_traces(args.traces / "paper.jsonl"))[: args.sequences]
    tokens = sum(len(t.prompt_token_ids) + len(t.output_token_ids) for t in traces)
    outputs = [
        token_difr.TokenSequence(
            prompt_token_ids=t.prompt_token_ids.tolist(), output_token_ids=t.output_token_ids.tolist()
        )
        for t in traces
    ]
    start, held = vllm.LLM, {}

    def once(**options: Any) -> Any:
        if "llm" not in held:
            held["llm"] = start(**options)
        return held["llm"]

    vllm.LLM = once
    bare_inputs = _inputs(traces)
    settings: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "verbose": False}
    raw: dict[str, Any] = {"tokens": tokens, "peer_s": [], "bare_s": []}
    for pair in range(args.pairs + 1):
        begun = time.perf_counter()
        token_difr.verify_outputs(
            outputs, str(args.model), seed=int(traces[0].sampling.seed or 0), max_model_len=1024,
            vllm_kwargs={"max_num_batched_tokens": 8192, "enable_prefix_caching": False}, **settings,
        )  # fmt: skip
        taken = time.perf_counter() - begun
        bare = _bare(held["llm"], bare_inputs)
        if pair:
            raw["peer_s"].append(taken)
            raw["bare_s"].append(bare)
        print(f"peer {tokens / taken:.0f}, bare {tokens / bare:.0f} tokens/s", flush=True)
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
        llm = engine(model, max_num_batched_tokens=32768, gpu_memory_utilization=0.3, **options)
        prompts = json.loads(args.prompts.read_text())["prompts"][args.first : args.first + args.sequences]
        seeds = np.random.default_rng(args.first).integers(1, 2**31, size=len(prompts)).tolist()
        with provider(llm, spec=_spec(args.model)) as capture:
            outputs = generated(llm, prompts, PAPER, args.output, seeds)
            found = capture.traces(outputs)
    write_traces(args.out, found)
    return {"sequences": len(found), "contract": found[0].engine.sampler, "engine": found[0].engine.version}


def _spec(model: Path) -> Any:
    from veridifr.fingerprints import FingerprintSpec

    size = json.loads((model / "config.json").read_text())["hidden_size"]
    return FingerprintSpec(seed=7, hidden_size=size, k=16, encoding="wrapped2", step_log2=(-4,))


def verify(args: argparse.Namespace) -> dict[str, Any]:
    """Matches and fingerprint scores of the files of `emit`, by the vLLM reference."""
    from veridifr.fingerprint_null import measure, prefix_scores
    from veridifr.fingerprints import fit_scale
    from veridifr.fingerprints.encoding import Intervals
    from veridifr.references import ReferenceSettings
    from veridifr.references.vllm_engine import VllmReference
    from veridifr.traces import read_traces

    spec = _spec(args.model)
    llm = engine(args.model, max_model_len=512, max_num_seqs=128, gpu_memory_utilization=0.3)
    reference: Any = VllmReference.from_llm(llm, args.model, settings=ReferenceSettings()).measuring(spec)
    raw: dict[str, Any] = {"tokens": {}, "matched": {}, "scores": {}}
    measured: dict[str, list[Any]] = {}
    for path in sorted(args.traces.glob("emit.*.jsonl")):
        name = path.name.split(".")[1]
        traces = list(read_traces(path))
        by_id = {trace.id: trace for trace in traces}
        found = list(reference.evidence(traces))
        raw["tokens"][name] = sum(len(t.output_token_ids) for t in traces)
        raw["matched"][name] = int(sum(_score_one(by_id[e.trace_id], e).match_T.sum() for e in found))
        measured[name] = [measure(by_id[e.trace_id], e, spec) for e in found]
    honest = [name for name in measured if name.startswith("v")]
    fitted = [one for name in honest for one in measured[name][::2]]
    intervals = Intervals(
        low_FK=np.concatenate([one.claimed_A[0].low_FK for one in fitted]),
        high_FK=np.concatenate([one.claimed_A[0].high_FK for one in fitted]),
        period_K=fitted[0].claimed_A[0].period_K,
    )
    scale = fit_scale(intervals, np.concatenate([one.own_AFK[0] for one in fitted]))
    raw["sigma"] = scale.sigma
    for name, rows in measured.items():
        kept = rows[1::2] if name in honest else rows
        raw["scores"][name] = [round(float(prefix_scores(one, spec, [scale], [args.first])[0, 0]), 4) for one in kept]
    return raw


def _score_one(trace: Any, evidence: Any) -> Any:
    from veridifr.contracts.registry import infer
    from veridifr.scores import Hypothesis
    from veridifr.scoring import score

    contract = infer(trace.engine, trace.sampling, evidence.vocab_size).contract
    return score(trace, evidence, Hypothesis(contract=contract, sampling=trace.sampling, seed=trace.sampling.seed))


WORKERS = {"speed": speed, "compare": compare, "peer": peer, "emit": emit, "verify": verify}


def main() -> None:
    """Run one worker. Its result is the last line printed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("worker", choices=(*WORKERS, "model"))
    parser.add_argument("--runner", default="v1")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--output", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--shape", type=int, nargs=3, default=(32, 4096, 128256))
    parser.add_argument("--decode", type=lambda t: tuple(map(int, t.split(":"))), nargs="*", default=())
    args = parser.parse_args()
    environment(args.runner)
    if args.worker == "model":
        write_model(args.model, *args.shape)
        print(json.dumps({}))
        return
    print(json.dumps(WORKERS[args.worker](args)))


if __name__ == "__main__":
    main()
