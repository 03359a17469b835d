"""Token-DiFR on a CPU: exact matches of honest traces, what noise and scores cost beside the forward pass, and memory.

usage: token_difr_cpu.py --models DIR --traces DIR    measure, and write benchmarks/results/token_difr_cpu.json
       token_difr_cpu.py --check                      recompute the figures from the raw data of that file

The forward pass that costs are compared with is the barest one: the model's own call without a cache, asked for the
logits of the claimed positions only. Forward pass and replay alternate, so that what else the machine does hits both.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import _results
from veridifr.rng import compiled

RESULTS = _results.RESULTS / "token_difr_cpu.json"
HONEST = {
    "tb24m": [f"{stack}.{setting}" for stack in ("v1", "v2") for setting in ("greedy", "hot", "paper", "plain")],
    "tb7m": ["v1_tb7m.greedy", "v1_tb7m.paper"],
}
TIMED = {"paper": ("v1.paper", "v2.paper"), "unfiltered": ("v1.plain", "v2.plain")}
MEMORY = ("tb24m, paper", "tb24m, unfiltered")
LARGE_VOCAB = 128_256
BOUNDED, WIDEST = "vllm-v1-cuda-exp32", "vllm-v2-e"


def main() -> int:
    """Exit status: 1 if figures do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path)
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=12, help="timed sequences per file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--matched", type=int, default=120, help="sequences per file whose tokens are matched")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="the others are kept as they are"
    )
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    compiled.enable()  # as the commands do
    if args.check:
        wrong = _results.check(args.out, figures)
        print("\n".join(wrong) or "token_difr_cpu: figures follow from the raw results")
        return 1 if wrong else 0
    if not (args.models and args.traces):
        parser.error("--models and --traces are needed, or --check")
    if args.worker:
        _worker(args)
        return 0
    raw = dict(_results.read(args.out)["raw"]) if args.out.exists() else {}
    for part in args.parts:
        raw[part] = PARTS[part](args)
        print(part, "done", flush=True)
    print(_results.write(args.out, raw, figures))
    return 0


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is published, from the raw data alone."""
    found: dict[str, Any] = {}
    if "matches" in raw:
        found["exact_match"] = {name: item["matched"] / item["tokens"] for name, item in raw["matches"].items()}
    if "times" in raw:
        cases = {case: [_added(raw["times"][name]) for name in names] for case, names in TIMED.items()}
        worst = {case: max(items, key=lambda item: item["added"]) for case, items in cases.items()}
        found["noise_and_scores_over_forward"] = {case: item["added"] for case, item in worst.items()}
        found["noise_and_scores_over_forward_95"] = {case: item["interval"] for case, item in worst.items()}
        found["noise_and_scores_over_default_forward"] = {case: item["added_default"] for case, item in worst.items()}
    if "memory" in raw:
        ratios = {name: item["replay"] / item["forward"] for name, item in raw["memory"].items()}
        found["peak_memory_over_forward"] = ratios
    if "hashes" in raw:
        found["hashes_per_token_128256"] = max(
            item["hashes"] / item["tokens"] for item in raw["hashes"]["by_contract"].values()
        )
    return found


def _added(times: Mapping[str, Any]) -> dict[str, Any]:
    """What replay adds, over the forward pass: medians of rounds, then of sequences; seconds in, shares out.

    The interval is the 95 % bootstrap interval over sequences.
    """
    bare, default, replay = (np.array(times[key]) for key in ("forward_SR", "default_SR", "replay_SR"))
    added_S = np.median((replay - bare) / bare, axis=1)
    rng = np.random.default_rng(0)
    drawn = np.median(added_S[rng.integers(0, len(added_S), size=(2000, len(added_S)))], axis=1)
    return {
        "added": float(np.median(added_S)),
        "interval": [float(value) for value in np.quantile(drawn, [0.025, 0.975])],
        "added_default": float(np.median((replay - bare) / default)),
    }


def _traces(folder: Path, name: str, count: int) -> list[Any]:
    from veridifr.traces import read_traces

    return list(itertools.islice(read_traces(folder / f"{name}.jsonl"), count))


def _reference(args: argparse.Namespace, model: str) -> Any:
    from veridifr.references import ReferenceSettings, load

    return load(f"hf:{args.models / model}", ReferenceSettings(dtype="float32", threads=args.threads))


def _scored(trace: Any, evidence: Any, contract: str | None = None) -> Any:
    from veridifr.contracts.registry import CONTRACTS, infer
    from veridifr.scores import Hypothesis
    from veridifr.scoring import score

    chosen = CONTRACTS[contract] if contract else infer(trace.engine, trace.sampling, evidence.vocab_size).contract
    return score(trace, evidence, Hypothesis(contract=chosen, sampling=trace.sampling, seed=trace.sampling.seed))


def measure_matches(args: argparse.Namespace) -> dict[str, Any]:
    """Tokens re-derived exactly, out of all tokens of each honest file."""
    found = {}
    for model, names in HONEST.items():
        reference = _reference(args, model)
        for name in names:
            traces = _traces(args.traces, name, args.matched)
            by_id = {trace.id: trace for trace in traces}
            scores = [_scored(by_id[item.trace_id], item) for item in reference.evidence(traces)]
            found[name] = {
                "sequences": len(scores),
                "tokens": sum(len(item.match_T) for item in scores),
                "matched": sum(int(item.match_T.sum()) for item in scores),
                "by_status": np.bincount(np.concatenate([item.status_T for item in scores]), minlength=4).tolist(),
            }
            print(name, found[name], flush=True)
    return found


def measure_times(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds per sequence and round: the bare forward pass, transformers' default one, replay and its parts."""
    import torch

    reference = _reference(args, "tb24m")
    found = {}
    for name in itertools.chain.from_iterable(TIMED.values()):
        rows: dict[str, list[list[float]]] = {key: [] for key in ("forward_SR", "default_SR", "replay_SR", "score_SR")}
        for trace in _traces(args.traces, name, args.sequences):
            ids = np.concatenate([trace.prompt_token_ids, trace.output_token_ids[:-1]]).astype(np.int64)
            input_ids = torch.from_numpy(ids)[None]
            rounds = [_round(reference, trace, input_ids) for _ in range(args.rounds + 1)][1:]
            for key, values in zip(rows, zip(*rounds, strict=True), strict=True):
                rows[key].append([round(value, 6) for value in values])
        found[name] = rows
        print(name, _added(rows), flush=True)
    return found


def _round(reference: Any, trace: Any, input_ids: Any) -> tuple[float, float, float, float]:
    import torch

    tokens = len(trace.output_token_ids)
    with torch.inference_mode():
        start = time.perf_counter()
        reference._model(input_ids=input_ids, use_cache=False, logits_to_keep=tokens)
        bare = time.perf_counter() - start
    start = time.perf_counter()
    (evidence,) = reference.evidence([trace])
    listed = time.perf_counter() - start
    _scored(trace, evidence)
    replay = time.perf_counter() - start
    with torch.inference_mode():
        start = time.perf_counter()
        reference._model(input_ids=input_ids)
        default = time.perf_counter() - start
    return bare, default, replay, replay - listed


def measure_memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak resident bytes of a process that loads the model and runs it, and of one that replays: nothing deducted."""
    found = {}
    for case in MEMORY:
        found[case] = {}
        for what in ("forward", "replay"):
            command = [sys.executable, __file__, "--models", args.models, "--traces", args.traces]
            command += ["--threads", str(args.threads), "--worker", case, what]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[case][what] = int(done.stdout.split()[-1])
        print(case, found[case], flush=True)
    return found


def _worker(args: argparse.Namespace) -> None:
    case, what = args.worker
    size, setting = case.split(", ")
    if size == "tb24m":
        reference = _reference(args, size)
        traces = _traces(args.traces, "v1.paper" if setting == "paper" else "v2.plain", 4)
    else:
        reference = _large_reference(args.threads)
        traces = [_large_trace(8192 if setting == "paper" else 2048, setting)]
    for _ in _forward(reference, traces) if what == "forward" else _replayed(reference, traces):
        pass
    # Not ru_maxrss: a process starts with its parent's, so that a small one could not be told from its parent.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) * 1024)


def _forward(reference: Any, traces: Sequence[Any]) -> Iterator[None]:
    """The forward pass alone, logits in the reference's own chunks of rows."""
    import torch

    rows = max(1, reference._settings.logit_elements // reference.vocab_size)
    for trace in traces:
        with torch.inference_mode():
            first = len(trace.prompt_token_ids) - 1
            hidden_TD = reference._hidden([trace])[0, first : first + len(trace.output_token_ids)]
            for start in range(0, len(hidden_TD), rows):
                reference._head(hidden_TD[start : start + rows]).float()
        yield None


def _replayed(reference: Any, traces: Sequence[Any]) -> Iterator[Any]:
    by_id = {trace.id: trace for trace in traces}
    for evidence in reference.evidence(traces):
        yield _scored(by_id[evidence.trace_id], evidence)


def _large_reference(threads: int) -> Any:
    """Two random layers of width 256 under a vocabulary of 128256, the logits as spread as a trained model's."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from veridifr.references import ReferenceSettings
    from veridifr.references.hf import HfReference

    torch.manual_seed(0)
    torch.set_num_threads(threads)
    config = LlamaConfig(
        vocab_size=LARGE_VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.norm.weight.fill_(6.0 / (0.02 * 16.0))  # a standard deviation of 6 logits
    return HfReference.from_model(model, settings=ReferenceSettings(threads=threads))


def _large_trace(tokens: int, setting: str) -> Any:
    from veridifr.trace import EngineRecord, Sampling, Trace

    rng = np.random.default_rng(0)
    filters = {"top_k": 50, "top_p": 0.95} if setting == "paper" else {}
    return Trace(
        id="large",
        model="random",
        prompt_token_ids=rng.integers(0, LARGE_VOCAB, 150),
        output_token_ids=rng.integers(0, LARGE_VOCAB, tokens),
        sampling=Sampling(seed=1, **filters),
        engine=EngineRecord(name="vllm", version="0.24.0", runner="v2", device="NVIDIA H200"),
    )


def measure_hashes(args: argparse.Namespace) -> dict[str, Any]:
    """Noise values computed for synthetic rows of 128256 logits at temperature 1, unfiltered.

    Each token of tb24m's own distribution is split among 15 or 16 ids, in shares drawn uniformly from the simplex
    (Dirichlet, concentration 1): as peaked as the small model's rows, with a larger vocabulary's tail.
    """
    reference = _reference(args, "tb24m")
    contracts = {name: {"hashes": 0, "tokens": 0, "listed": 0} for name in (BOUNDED, WIDEST)}
    for number, trace in enumerate(_traces(args.traces, "v1.paper", 6)):
        for name, item in contracts.items():
            for key, value in _hashed(reference, trace, name, np.random.default_rng(number)).items():
                item[key] += value
        print(contracts, flush=True)
    return {"synthetic": True, "concentration": 1.0, "temperature": 1.0, "by_contract": contracts}


def _hashed(reference: Any, trace: Any, contract: str, rng: np.random.Generator, tokens: int = 64) -> dict[str, int]:
    import torch

    from veridifr.references.listing import joined, list_candidates
    from veridifr.references.rows import evidence_of
    from veridifr.trace import EngineRecord, Sampling, Trace

    small = reference.vocab_size
    owner_V = np.concatenate([np.arange(small).repeat(LARGE_VOCAB // small), rng.permutation(small)])[:LARGE_VOCAB]
    weights_V = rng.standard_gamma(1.0, size=LARGE_VOCAB)
    spread_V = np.log(weights_V / np.bincount(owner_V, weights_V)[owner_V])
    with torch.inference_mode():
        first = len(trace.prompt_token_ids) - 1
        logits_TV = reference._head(reference._hidden([trace])[0, first : first + tokens]).numpy()
    logits_TV = (logits_TV[:, owner_V] + spread_V).astype(np.float32)
    claimed_T = (logits_TV + rng.gumbel(size=logits_TV.shape)).argmax(axis=1)
    engine = EngineRecord(
        name="vllm", version="0.24.0", device="H200", multiprocessors=132, threads_per_multiprocessor=2048
    )
    large = Trace(
        id=trace.id,
        model="synthetic",
        prompt_token_ids=trace.prompt_token_ids,
        output_token_ids=claimed_T,
        sampling=Sampling(seed=1),
        engine=engine,
    )
    parts = []
    for start in range(0, tokens, 16):
        block = torch.from_numpy(logits_TV[start : start + 16])
        claimed = torch.from_numpy(claimed_T[start : start + 16])
        parts.append(list_candidates(block, block, claimed, large.sampling, tail_mass=1e-6, list_bytes=1024))
    evidence = evidence_of(large, LARGE_VOCAB, joined(parts, tokens))
    return {"hashes": _scored(large, evidence, contract).hashes, "tokens": tokens, "listed": len(evidence.ids_N)}


PARTS = {"matches": measure_matches, "times": measure_times, "memory": measure_memory, "hashes": measure_hashes}

if __name__ == "__main__":
    sys.exit(main())
