"""Tokens for the cells of the mode table that the H200's pools lack: temperature 0, and no filters.

    PYTHONPATH=tools python benchmarks/_mode_traces.py --models DIR --out DIR

DIR/tb24m and DIR/tb7m are the models. A provider is the model on a CPU (transformers) with the output of every layer
and the logits rounded to bfloat16, which is simulated as many CPUs have no fast bfloat16, and a sampler of our own.
Prompts are those of the H200 pools that have no other use here; traces claim what an honest provider of tb24m would.
int4 and fp8 are rounded weights (tools/rounded_weights.py), fp8 KV keys and values rounded as they enter the cache.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rounded_weights import LINEAR, round_fp8, round_groups
from trace_pools import SeedSource, load_set
from transformers import AutoModelForCausalLM, DynamicCache

from _audit_cases import POOLS
from veridifr.contracts.base import Stream
from veridifr.contracts.registry import CONTRACTS
from veridifr.trace import EngineRecord, Sampling, Trace
from veridifr.traces import write_traces

TOKENS = 300
HONEST, DEVIATING = 200, 68
"""Sequences of an honest set, and of another: a little over 20,000 tokens."""
BATCH = 68
PENALTY = 1.05
"""The bug: a repetition penalty that nobody asked for."""
CLAIMS: dict[str, dict[str, Any]] = {
    "paper": {"temperature": 1.0, "top_k": 50, "top_p": 0.95},
    "plain": {"temperature": 1.0},
    "greedy": {"temperature": 0.0},
}
V2 = EngineRecord(
    name="vllm", version="0.24.0", runner="v2", device="NVIDIA H200", multiprocessors=132,
    threads_per_multiprocessor=2048, dtype="bfloat16",
)  # fmt: skip
UNKNOWN = EngineRecord(name="unknown")


@dataclass(frozen=True, kw_only=True)
class Provider:
    """What makes one set: the claim's name, and what is done otherwise."""

    name: str
    claim: str
    model: str = "tb24m"
    weights: str | None = None
    cache: str | None = None
    penalty: float | None = None
    sampling: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Sequences in all."""
        return HONEST if self.name.endswith("honest") and self.claim != "paper" else DEVIATING


def providers() -> Iterator[Provider]:
    """Every set."""
    for claim in CLAIMS:
        yield Provider(name=f"{claim}.honest", claim=claim)
        yield Provider(name=f"{claim}.bug", claim=claim, penalty=PENALTY)
    for claim, heat in (("plain", 1.1), ("greedy", 0.3)):
        yield Provider(name=f"{claim}.int4", claim=claim, weights="int4")
        yield Provider(name=f"{claim}.fp8", claim=claim, weights="fp8")
        yield Provider(name=f"{claim}.kv_fp8", claim=claim, cache="fp8")
        yield Provider(name=f"{claim}.temperature", claim=claim, sampling={"temperature": heat})
        yield Provider(name=f"{claim}.tb7m", claim=claim, model="tb7m")
    yield Provider(name="plain.top_p", claim="plain", sampling={"top_p": 0.95})


def main() -> int:
    """Write every set that is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    prompts = load_set(POOLS, "honest.v1").prompts
    first = 600  # earlier prompts belong to sets that are audited themselves
    for provider in providers():
        path = args.out / f"{provider.name}.jsonl.gz"
        own = [list(prompts[first + i]) for i in range(provider.count)]
        first = first + provider.count if first + 2 * HONEST < len(prompts) else 600
        if not path.exists():
            write_traces(path, list(_made(provider, own, args.models)))
            print(provider.name, provider.count, flush=True)
    return 0


def _made(provider: Provider, prompts: list[list[int]], models: Path) -> Iterator[Trace]:
    model = _model(provider, models)
    seeds = SeedSource(sum(map(ord, provider.name))).take(len(prompts))
    claim = {**CLAIMS[provider.claim], "max_tokens": TOKENS, "ignore_eos": True}
    for start in range(0, len(prompts), BATCH):
        part, own = prompts[start : start + BATCH], seeds[start : start + BATCH]
        choose = _sampler(provider, own, [len(ids) for ids in part])
        for i, output in enumerate(_generate(model, part, choose, provider)):
            yield Trace(
                id=f"{provider.name}/{start + i}",
                model="tb24m",
                prompt_token_ids=np.array(part[i]),
                output_token_ids=np.array(output),
                sampling=Sampling(**claim, seed=own[i]),
                engine=V2 if provider.claim == "paper" else UNKNOWN,
                finish_reason="length",
            )


def _model(provider: Provider, models: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(models / provider.model, dtype=torch.float32, local_files_only=True)
    for layer in model.base_model.layers:
        layer.register_forward_hook(lambda _module, _given, out: _rounded(out))
    rounding: dict[str, Callable[[Any], Any]] = {"int4": lambda weight: round_groups(weight, 4), "fp8": round_fp8}
    if provider.weights is not None:
        with torch.no_grad():
            for name, module in model.named_modules():
                if name.split(".")[-1] in LINEAR:
                    module.weight.copy_(rounding[provider.weights](module.weight))
    return model.eval()


def _rounded(output: Any) -> Any:
    if isinstance(output, tuple):
        return (_rounded(output[0]), *output[1:])
    return output.to(torch.bfloat16).to(torch.float32)


class _RoundedCache(DynamicCache):
    """Keys and values as float8 e4m3, of scale 1 as engines have it by default."""

    def update(self, key_states: Any, value_states: Any, *rest: Any, **named: Any) -> Any:
        rounded = [x.to(torch.float8_e4m3fn).to(x.dtype) for x in (key_states, value_states)]
        return super().update(*rounded, *rest, **named)


def _generate(model: Any, prompts: list[list[int]], choose: Any, provider: Provider) -> list[list[int]]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    cache = _RoundedCache() if provider.cache else DynamicCache()
    seen = torch.zeros(len(prompts), model.config.vocab_size, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        seen[row, prompt] = True
    outputs: list[list[int]] = [[] for _ in prompts]
    position = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.inference_mode():
        for step in range(TOKENS):
            found = model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache)
            logits = _rounded(found.logits[:, -1])
            if provider.penalty is not None:
                changed = torch.where(logits > 0, logits / provider.penalty, logits * provider.penalty)
                logits = torch.where(seen, changed, logits)
            chosen = choose(logits, step)
            for row, token in enumerate(chosen.tolist()):
                outputs[row].append(token)
            seen[torch.arange(len(prompts)), chosen] = True
            ids, position = chosen[:, None], position[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return outputs


def _sampler(provider: Provider, seeds: list[int], lengths: list[int]) -> Callable[[Any, int], Any]:
    """Filters in vLLM's order, then the largest of l/T + g: g of the contract vllm-v2-e where V2 is claimed, else of
    torch, whose noise nobody claims to know."""
    done = {**CLAIMS[provider.claim], **provider.sampling}
    heat, generator = done["temperature"], torch.Generator().manual_seed(seeds[0])
    contract = CONTRACTS["vllm-v2-e"]

    def choose(logits: Any, step: int) -> Any:
        if heat == 0.0:
            return logits.argmax(1)
        logits = _filtered(logits / heat, done.get("top_k"), done.get("top_p"))
        if provider.claim != "paper":
            uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
            return (logits - (-uniform.log()).log()).argmax(1)
        chosen = []
        for row, seed, length in zip(logits.numpy(), seeds, lengths, strict=True):
            kept = np.flatnonzero(row > -np.inf)
            stream = Stream(seed=seed, prompt_length=length, vocab_size=len(row), engine=V2)
            noise = contract.gumbel(stream, np.array([step]), np.zeros(len(kept), dtype=np.int64), kept)
            chosen.append(int(kept[np.argmax(row[kept] + noise)]))
        return torch.tensor(chosen)

    return choose


def _filtered(logits: Any, top_k: int | None, top_p: float | None) -> Any:
    if top_k is not None:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=1).values[:, -1:], -torch.inf)
    if top_p is not None:
        ranked, order = logits.sort(dim=1)
        drop = ranked.softmax(1).cumsum(1) <= 1.0 - top_p
        drop[:, -1] = False
        logits = logits.masked_fill(drop.scatter(1, order, drop), -torch.inf)
    return logits


if __name__ == "__main__":
    sys.exit(main())
