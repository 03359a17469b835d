"""Copies of a model with changed weights: rounded, pruned, or with a small change of low rank."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from spec import ROOT

sys.path.insert(0, str(ROOT / "tools"))

RANK, CHANGE = 8, 0.01
"""Rank of the low-rank change, and its Frobenius norm as a share of the weight's."""
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
"""The 16 levels of NormalFloat4 (Dettmers et al., QLoRA, arXiv 2305.14314, appendix E)."""
BLOCK = 64
"""Weights that share a scale in NF4."""


def write(source: Path, target: Path, kind: str) -> Path:
    """The directory of `source` with its weights changed; written to `target`, which is returned."""
    from rounded_weights import KINDS, write_rounded

    if kind in KINDS:
        write_rounded(source, target, kind)
        return target
    from safetensors.torch import load_file, save_file

    target.mkdir(parents=True)
    for file in source.iterdir():
        if file.is_file() and ".safetensors" not in file.name:
            shutil.copyfile(file, target / file.name)
    tensors: dict[str, Any] = {}
    for file in sorted(source.glob("*.safetensors")):
        tensors.update(load_file(str(file)))
    if kind == "pruned":
        tensors = _pruned(tensors, target / "config.json")
    else:
        change = {"low_rank": _low_rank, "nf4": _nf4}[kind]
        for number, name in enumerate(sorted(tensors)):
            if name.endswith("_proj.weight"):
                tensors[name] = change(tensors[name], number)
    save_file({k: v.contiguous() for k, v in tensors.items()}, str(target / "model.safetensors"), {"format": "pt"})
    return target


def _low_rank(weight: Any, number: int) -> Any:
    import torch

    generator = torch.Generator().manual_seed(number)
    rows, columns = weight.shape
    change = torch.randn(rows, RANK, generator=generator) @ torch.randn(RANK, columns, generator=generator)
    size = CHANGE * weight.float().norm() / change.norm()
    return (weight.float() + size * change).to(weight.dtype)


def _nf4(weight: Any, _number: int) -> Any:
    import torch

    blocks = weight.float().reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(1e-12)
    levels = torch.tensor(NF4)
    nearest = levels[torch.bucketize(blocks / scale, (levels[1:] + levels[:-1]) / 2)]
    return (nearest * scale).reshape(weight.shape).to(weight.dtype)


def _pruned(tensors: dict[str, Any], config: Path) -> dict[str, Any]:
    """Without the layer in the middle: a smaller model of the same family."""
    about = json.loads(config.read_text())
    count = about["num_hidden_layers"]
    gone = count // 2
    about["num_hidden_layers"] = count - 1
    about.pop("layer_types", None)
    config.write_text(json.dumps(about, indent=1))
    found = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if "layers" in parts:
            place = parts.index("layers") + 1
            number = int(parts[place])
            if number == gone:
                continue
            parts[place] = str(number - (number > gone))
        found[".".join(parts)] = value
    return found
