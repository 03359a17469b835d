"""The verifier's and the providers' forward passes of benchmarks/fingerprints.py. Needs torch and transformers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONDITIONS = {
    "honest": "bfloat16",
    "honest_eager": "bfloat16, eager attention, batches of 7",
    "honest_one": "bfloat16, one sequence at a time",
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
    `tokens` output tokens."""
    import torch

    sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
    torch.backends.cuda.matmul.allow_tf32 = False
    model = _model(args, name)
    batch = {"honest_eager": 7, "honest_one": 1}.get(name, args.batch)
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i][0]))  # little padding
    out = None
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            ids = [[*sequences[i][0], *sequences[i][1][: tokens - 1]] for i in rows]
            padded = torch.zeros((len(ids), max(map(len, ids))), dtype=torch.long)
            for row, sequence in enumerate(ids):
                padded[row, : len(sequence)] = torch.tensor(sequence)
            states = model.base_model(input_ids=padded.to(args.device), use_cache=False).last_hidden_state
            if out is None:
                out = torch.empty((len(sequences), tokens, states.shape[2]), device=args.device)
            for row, i in enumerate(rows):
                first = len(sequences[i][0]) - 1
                out[i] = states[row, first : first + tokens].float()
    return out


def _model(args: argparse.Namespace, name: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    wide = name == "verifier" or args.emulate
    found = AutoModelForCausalLM.from_pretrained(
        args.models / ("tb7m" if name == "tb7m" else "tb24m"),
        dtype=torch.bfloat16,
        attn_implementation="eager" if name == "honest_eager" else "sdpa",
        local_files_only=True,
    )
    _change_weights(found, name)
    narrow = torch.float16 if name == "honest_half" else torch.bfloat16
    found = found.to(args.device, torch.float32 if wide else narrow).eval()
    if name != "verifier" and args.emulate:
        _emulate(found)
    if name == "kv_fp8":
        _round_cache(found)
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


def _round_cache(model: Any) -> None:
    """Round what attention reads: keys after the rotary embedding, values; scale 1, as an engine without calibrated
    scales does. Works on Llama's attention, by wrapping each layer's own attention call."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def rounded(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        return sdpa_attention_forward(module, query, _fp8(key), _fp8(value), *rest, **options)

    AttentionInterface.register("sdpa_fp8_cache", rounded)
    model.set_attn_implementation("sdpa_fp8_cache")


def _emulate(model: Any) -> None:
    """Round every module's output to bfloat16 while computing in float32: about the error of a bfloat16 run."""

    def rounded(*call: Any) -> Any:
        output = call[-1]
        return output.bfloat16().float() if hasattr(output, "bfloat16") else None

    for module in model.modules():
        if not any(True for _ in module.children()) or type(module).__name__.endswith("DecoderLayer"):
            module.register_forward_hook(rounded)
