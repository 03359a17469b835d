"""A provider on transformers: cached decode in batches, with the sampler of vLLM 0.32 on a CPU, as this package has it.

It stands for another stack's forward pass; its noise is ours, so that its tokens can be replayed like an engine's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import spec as specs
from veridifr import EngineRecord
from veridifr.contracts.base import Stream
from veridifr.contracts.registry import CONTRACTS

CONTRACT = "vllm-cpu-gumbel-splitmix"
RECORD = EngineRecord(
    name="vllm", version="0.32.0", runner="v1", device="cpu", sampler=CONTRACT, fp64_noise=False,
    speculative_decoding=False,
)  # fmt: skip


def serve(
    model: Path, provider: specs.Provider, prompts: Sequence[Sequence[int]], asked: Sequence[dict[str, Any]]
) -> list[list[int]]:
    """Output ids for each prompt; `asked` as for an engine."""
    found = AutoModelForCausalLM.from_pretrained(
        model,
        dtype=getattr(torch, provider.dtype),
        attn_implementation=provider.attention or "sdpa",
        local_files_only=True,
    ).eval()
    found.to("cuda" if torch.cuda.is_available() else "cpu")
    outputs: list[list[int]] = []
    for first in range(0, len(prompts), provider.max_num_seqs):
        part = slice(first, first + provider.max_num_seqs)
        outputs += _batch(found, prompts[part], asked[part])
    return outputs


def _batch(model: Any, prompts: Sequence[Sequence[int]], asked: Sequence[dict[str, Any]]) -> list[list[int]]:
    longest = max(map(len, prompts))
    device = model.device
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    position, cache = (mask.cumsum(1) - 1).clamp_min(0), DynamicCache()
    outputs: list[list[int]] = [[] for _ in prompts]
    with torch.inference_mode():
        for step in range(asked[0]["max_tokens"]):
            found = model(input_ids=ids, attention_mask=mask, position_ids=position, past_key_values=cache)
            rows = found.logits[:, -1].float().cpu().numpy()
            chosen = [_draw(row, len(prompt), step, one) for row, prompt, one in zip(rows, prompts, asked, strict=True)]
            for output, token in zip(outputs, chosen, strict=True):
                output.append(token)
            ids, position = torch.tensor(chosen, device=device)[:, None], position[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return outputs


def _draw(row: np.ndarray, length: int, step: int, asked: dict[str, Any]) -> int:
    """Temperature, top-k, top-p, then the largest of l/T + g."""
    scaled = row.astype(np.float64) / asked["temperature"]
    top_k = min(asked.get("top_k") or len(scaled), len(scaled))
    near = np.flatnonzero(scaled >= -np.partition(-scaled, top_k - 1)[top_k - 1])
    order = near[np.argsort(-scaled[near], kind="stable")][:top_k]
    mass = np.exp(scaled[order] - scaled[order[0]])
    before = np.cumsum(mass) - mass
    kept = np.sort(order[before < (asked.get("top_p") or 1.0) * mass.sum()])
    stream = Stream(seed=asked["seed"], prompt_length=length, vocab_size=len(row), engine=RECORD)
    noise = CONTRACTS[CONTRACT].gumbel(stream, np.array([step]), np.zeros(len(kept), dtype=np.int64), kept)
    return int(kept[np.argmax(scaled[kept] + noise)])
