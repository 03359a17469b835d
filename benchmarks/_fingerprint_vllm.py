"""vLLM, in its own bfloat16 and with its own scheduler, as an honest stack of benchmarks/fingerprints.py."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


def vllm_stack(
    args: argparse.Namespace, prompts: Sequence[tuple[int, ...]], tokens: int, seed: int, k: int
) -> tuple[list[tuple[tuple[int, ...], tuple[int, ...]]], Any]:
    """What vLLM answers to `prompts` at temperature 1, `tokens` tokens each: prompt and output, and the coordinates
    [prompts, tokens, k] that its provider side captured while it generated."""
    import torch

    from veridifr.fingerprints import FingerprintSpec, fingerprint_of
    from veridifr.vllm import EXTENSION, enable

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import vllm

        shared = {"gpu_memory_utilization": 0.04, "kv_cache_memory_bytes": 4 * 2**30} if args.device != "cpu" else {}
        llm = vllm.LLM(
            str(args.models / args.model), dtype="bfloat16", max_model_len=256, max_num_seqs=64,
            max_num_batched_tokens=8192, enforce_eager=True, skip_tokenizer_init=True, worker_extension_cls=EXTENSION,
            **shared,
        )  # fmt: skip
        width = int(llm.llm_engine.model_config.get_hidden_size())
        spec = FingerprintSpec(seed=seed, hidden_size=width, k=k, encoding="float32")
        sequences, values = [], []
        with enable(llm, model=args.model, spec=spec) as provider:
            for start in range(0, len(prompts), args.batch * 4):
                part = prompts[start : start + args.batch * 4]
                params = [
                    vllm.SamplingParams(detokenize=False, temperature=1.0, seed=i, max_tokens=tokens, ignore_eos=True)
                    for i in range(start, start + len(part))
                ]
                outputs = llm.generate([{"prompt_token_ids": list(ids)} for ids in part], params, use_tqdm=False)
                for prompt, trace in zip(part, provider.traces(outputs), strict=True):
                    sequences.append((prompt, tuple(trace.output_token_ids.tolist())))
                    found = fingerprint_of(trace, spec)
                    if found is None:
                        raise SystemExit(f"{trace.id}: has no fingerprint")
                    values.append(np.frombuffer(found.payloads[0], "<f4").reshape(tokens, k))
    return sequences, torch.tensor(np.stack(values), device=args.device)
