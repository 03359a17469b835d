"""Copies of a model directory with rounded weights. Needs torch and safetensors, imported late.

int3, int4 and fp8 are rounded and written back as bfloat16: any engine runs them, with the error of the rounding alone.
int8 and int4_packed are written for compressed-tensors, so that the engine runs its own kernels: int8 for weights and
activations, int4_packed for weights alone (W4A16; vLLM has none on a CPU without AVX-512).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

GROUP = 128
"""Inputs that share a scale, as in common weight-only formats."""
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of Llama-like models; embeddings and lm_head stay as they are."""
INT8_CONFIG: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
INT4_CONFIG: dict[str, Any] = {
    **INT8_CONFIG,
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {
                "num_bits": 4,
                "type": "int",
                "symmetric": True,
                "strategy": "group",
                "group_size": GROUP,
                "dynamic": False,
            },
        }
    },
}
CONFIGS = {"int8": INT8_CONFIG, "int4_packed": INT4_CONFIG}
KINDS = ("int3", "int4", "int8", "fp8", "int4_packed")


def round_groups(weight: Any, bits: int, group: int = GROUP) -> Any:
    """Symmetric round-to-nearest of a weight [out, in] with one scale per output and `group` inputs; same dtype.

    scale = max |w| / (2^(bits-1) - 1), levels -(2^(bits-1)) to 2^(bits-1) - 1, halves to even.
    """
    top = 2 ** (bits - 1) - 1
    grouped = _grouped(weight, group)
    scale = (grouped.abs().amax(dim=2, keepdim=True) / top).clamp_min(1e-12)
    levels = (grouped / scale).round().clamp(-top - 1, top)
    return (levels * scale).reshape(weight.shape).to(weight.dtype)


def int4_packed(weight: Any, group: int = GROUP) -> dict[str, Any]:
    """A weight [out, in] as compressed-tensors packs symmetric int4 levels: `weight_packed` int32 [out, in / 8], the
    first level, plus 8, in the lowest four bits; `weight_scale` [out, in / group]; `weight_shape`.

    Levels are those of `round_groups`, but that the scale is rounded to the weight's dtype first.
    """
    import torch

    rows, columns = weight.shape
    grouped = _grouped(weight, group)
    scale = (grouped.abs().amax(dim=2, keepdim=True) / 7).clamp_min(1e-12).to(weight.dtype)
    levels = (grouped / scale.to(torch.float32)).round().clamp(-8, 7).to(torch.int32).reshape(rows, columns // 8, 8) + 8
    packed = (levels << (4 * torch.arange(8, dtype=torch.int32))).sum(dim=2, dtype=torch.int32)
    return {
        "weight_packed": packed,
        "weight_scale": scale.reshape(rows, columns // group),
        "weight_shape": torch.tensor([rows, columns], dtype=torch.int64),
    }


def _grouped(weight: Any, group: int) -> Any:
    """A weight [out, in] as float32 [out, in / group, group]; `ValueError` where that leaves a rest."""
    import torch

    rows, columns = weight.shape
    if columns % group:
        raise ValueError(f"a weight has {columns} inputs, which is no multiple of the group of {group}")
    return weight.to(torch.float32).reshape(rows, columns // group, group)


def int8_channels(weight: Any) -> tuple[Any, Any]:
    """Symmetric int8 levels [out, in] of a weight and their scales [out, 1] in float32, one for each output."""
    import torch

    wide = weight.to(torch.float32)
    scale = (wide.abs().amax(dim=1, keepdim=True) / 127).clamp_min(1e-12)
    return (wide / scale).round().clamp(-128, 127).to(torch.int8), scale


def round_fp8(weight: Any) -> Any:
    """A weight [out, in] rounded to float8 e4m3 with one scale for each output; same dtype."""
    import torch

    wide = weight.to(torch.float32)
    scale = (wide.abs().amax(dim=1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max).clamp_min(1e-12)
    return ((wide / scale).to(torch.float8_e4m3fn).to(torch.float32) * scale).to(weight.dtype)


def _is_linear(name: str) -> bool:
    return name.endswith(".weight") and name.split(".")[-2] in LINEAR


def write_rounded(source: Path, target: Path, kind: str) -> int:
    """Write `source` with its linear weights rounded (`kind`: one of `KINDS`); the number of layers."""
    from safetensors.torch import load_file, save_file

    if kind not in KINDS:
        raise ValueError(f"weights: got {kind}, expected one of {', '.join(KINDS)}")
    target.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Any] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(str(file)))
    linear = [name for name in tensors if _is_linear(name)]
    if not linear:
        raise ValueError(f"{source}: no linear layer with a known name ({', '.join(LINEAR)})")
    for name in linear:
        if kind == "int8":
            tensors[name], tensors[f"{name}_scale"] = int8_channels(tensors[name])
        elif kind == "int4_packed":
            layer = name.removesuffix("weight")
            tensors.update({layer + part: value for part, value in int4_packed(tensors.pop(name)).items()})
        elif kind == "fp8":
            tensors[name] = round_fp8(tensors[name])
        else:
            tensors[name] = round_groups(tensors[name], int(kind[3:]))
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(target / "model.safetensors"), {"format": "pt"})
    for file in source.iterdir():
        if file.is_file() and ".safetensors" not in file.name:
            shutil.copyfile(file, target / file.name)
    if kind in CONFIGS:
        config = json.loads((source / "config.json").read_text())
        config["quantization_config"] = CONFIGS[kind]
        (target / "config.json").write_text(json.dumps(config, indent=1))
    return len(linear)
