"""The verifier's and the providers' forward passes of benchmarks/fingerprints.py. Needs torch and transformers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from _fingerprint_emulation import attend, attention, emulate

CONDITIONS = {
    "honest": "bfloat16",
    "honest_eager": "bfloat16, eager attention, batches of 7",
    "honest_one": "bfloat16, one sequence at a time",
    "honest_decode": "bfloat16, token by token with a cache",
    "honest_true": "bfloat16, not emulated",
    "honest_half": "float16",
    "int4": "weights rounded to int4, groups of 128 (simulated)",
    "int8": "weights rounded to int8, per output channel (simulated)",
    "fp8": "weights rounded to float8 e4m3, per tensor (simulated)",
    "kv_fp8": "keys and values rounded to float8 e4m3 (simulated)",
    "low_rank": "a random change of rank 8 and 1 % of each linear weight's Frobenius norm",
    "tb7m": "the smaller model",
}
RANK = 8
CHANGE = 0.01


def hidden(args: argparse.Namespace, name: str, sequences: Sequence[Any], tokens: int) -> Any:
    """Hidden states after the final norm, float32 [sequences, tokens, D], on the device: those that produced the first
    `tokens` output tokens. The verifier is "verifier", and "rounded" its second pass."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    torch.backends.cuda.matmul.allow_tf32 = False
    from veridifr.references.sensitivity import rounded

    model = _model(args, name).base_model
    batch = {"honest_eager": 7, "honest_one": 1, "honest_decode": 64}.get(name, args.batch)
    out = torch.empty((len(sequences), tokens, model.config.hidden_size), device=args.device)
    with torch.inference_mode(), rounded(model) if name == "rounded" else nullcontext():
        for rows in _batches([len(prompt) for prompt, _ in sequences], batch, alike=name == "honest_decode"):
            ids = [[*sequences[i][0], *sequences[i][1][: tokens - 1]] for i in rows]
            padded = torch.zeros((len(ids), max(map(len, ids))), dtype=torch.long)
            for row, sequence in enumerate(ids):
                padded[row, : len(sequence)] = torch.tensor(sequence)
            padded = padded.to(args.device)
            if name == "honest_decode":
                out[rows] = _decoded(model, padded, tokens)
                continue
            states = model(input_ids=padded, use_cache=False).last_hidden_state
            for row, i in enumerate(rows):
                first = len(sequences[i][0]) - 1
                out[i] = states[row, first : first + tokens].float()
    return out


def _batches(lengths: Sequence[int], most: int, *, alike: bool) -> Iterator[list[int]]:
    """Row numbers by length, for little padding; `alike`: of one length, for none."""
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    while order:
        same = sum(lengths[i] == lengths[order[0]] for i in order[:most])
        count = same if alike else most
        yield order[:count]
        order = order[count:]


def _decoded(model: Any, ids: Any, tokens: int) -> Any:
    """States of the last `tokens` columns: the prompt in one piece, each further token by itself."""
    import torch

    width = ids.shape[1] - tokens + 1
    found = model(input_ids=ids[:, :width], use_cache=True)
    states = [found.last_hidden_state[:, -1:]]
    for column in range(width, ids.shape[1]):
        found = model(
            input_ids=ids[:, column : column + 1], past_key_values=found.past_key_values, use_cache=True
        )  # fmt: skip
        states.append(found.last_hidden_state)
    return torch.cat(states, dim=1).float()


def _model(args: argparse.Namespace, name: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    emulated = args.emulate and name not in ("verifier", "rounded", "honest_true")
    found = AutoModelForCausalLM.from_pretrained(
        args.models / ("tb7m" if name == "tb7m" else args.model),
        dtype=torch.bfloat16,
        attn_implementation="eager" if name == "honest_eager" else "sdpa",
        local_files_only=True,
    )
    _change_weights(found, name)
    narrow = torch.float16 if name == "honest_half" else torch.bfloat16
    found = found.to(args.device, torch.float32 if emulated or name in ("verifier", "rounded") else narrow).eval()
    inner = None
    if emulated:
        emulate(found, narrow)
        inner = attention(narrow, eager=name == "honest_eager")
    if name == "kv_fp8":
        inner = _round_cache(inner)
    if inner is not None:
        attend(found, f"fingerprints_{name}", inner)
    return found


def _linear(model: Any) -> list[tuple[str, Any]]:
    from rounded_weights import LINEAR

    return [(n, m) for n, m in model.named_modules() if n.split(".")[-1] in LINEAR]


def _change_weights(model: Any, name: str) -> None:
    import torch
    from rounded_weights import int8_channels, round_groups

    generator = torch.Generator().manual_seed(1)
    for _, layer in _linear(model):
        weight = layer.weight.data
        if name == "int4":
            layer.weight.data = round_groups(weight, 4)
        elif name == "int8":
            levels, scales = int8_channels(weight)
            layer.weight.data = (levels.float() * scales).to(weight.dtype)
        elif name == "fp8":
            layer.weight.data = _fp8(weight, float(weight.float().abs().max()) / 448)
        elif name == "low_rank":
            rows, columns = weight.shape
            change = torch.randn(rows, RANK, generator=generator) @ torch.randn(RANK, columns, generator=generator)
            size = CHANGE * weight.float().norm() / change.norm()
            layer.weight.data = (weight.float() + size * change).to(weight.dtype)


def _fp8(values: Any, scale: float = 1.0) -> Any:
    """Nearest float8 e4m3 multiples of `scale`, in the dtype of `values`; magnitudes above 448 scales are clipped."""
    import torch

    scaled = (values.float() / scale).clamp(-448, 448)
    return (scaled.to(torch.float8_e4m3fn).float() * scale).to(values.dtype)


def _round_cache(inner: Any) -> Any:
    """SDPA or the attention `inner` that reads rounded keys (after the rotary embedding) and values; scale 1, as an
    engine without calibrated scales does."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def rounded(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        return (inner or sdpa_attention_forward)(module, query, _fp8(key), _fp8(value), *rest, **options)

    return rounded
