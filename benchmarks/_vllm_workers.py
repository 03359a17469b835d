"""One engine in a process of its own: what benchmarks/vllm_h200.py measures with it, printed as its last line."""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from _vllm_engine import PAPER, PLAIN, bare, engine, environment, generated, inputs_of, provider, verified
from _vllm_judged import emit, peer, verify

COMPARED = 64


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
    from veridifr.rng import compiled

    compiled.enable()  # as the command `veridifr audit` does
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
    raw: dict[str, Any] = {"start_s": started, "tokens": tokens, "sequences": args.sequences, "memory": {}}
    inputs = {name: inputs_of(found) for name, found in traces.items()}
    scored: dict[str, Any] = {}
    for pair in range(args.pairs + 1):
        for name in traces:
            plain = bare(llm, inputs[name])
            low = _peak(reset=True)
            taken, scored[name] = verified(reference, traces[name])
            raw["memory"][name] = max(raw["memory"].get(name, 0), _peak() - low)
            if pair:
                raw.setdefault(f"{name}_bare_s", []).append(plain)
                raw.setdefault(f"{name}_s", []).append(taken)
                print(f"{name}: bare {tokens / plain:.0f}, verify {tokens / taken:.0f} tokens/s", flush=True)
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
            write_traces(args.traces / f"{name}.jsonl", found)
    raw["decode"] = _decode(llm, args, vocab)
    raw["device"] = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    return raw


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
    import torch

    rng = np.random.default_rng(1)
    raw: dict[str, Any] = {}
    for batch, tokens, pairs in args.decode:
        prompts = rng.integers(2, vocab, size=(batch, 32)).tolist()
        seeds = rng.integers(1, 2**31, size=batch).tolist()
        times: dict[str, list[float]] = {"off_s": [], "on_s": []}
        for pair in range(pairs + 1):
            order = ("off_s", "on_s") if pair % 2 else ("on_s", "off_s")
            for name in order:
                capture = provider(llm, seed=7) if name == "on_s" else None
                gc.collect()
                gc.disable()  # as timeit does: collections fall where they will
                begun = time.perf_counter()
                outputs = generated(llm, prompts, PAPER, tokens, seeds)
                taken = time.perf_counter() - begun
                gc.enable()
                if capture is not None:
                    assert len(capture.traces(outputs)) == batch
                    capture.close()
                if pair:
                    times[name].append(taken)
        raw[f"b{batch}"] = times | {"tokens": batch * tokens, "threads": torch.get_num_threads()}
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
        _, scores = verified(reference, [trace])
        raw[name] = _kept(scores[trace.id])
    return raw


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
