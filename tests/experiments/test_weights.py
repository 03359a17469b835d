"""Changed copies of a model: each changes what it says, by as much as it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import weights


@pytest.fixture(scope="module")
def original(tb7m: Path) -> dict[str, Any]:
    return dict(load_file(str(tb7m / "model.safetensors")))


def changed(tb7m: Path, folder: Path, kind: str) -> dict[str, Any]:
    return dict(load_file(str(weights.write(tb7m, folder / kind, kind) / "model.safetensors")))


def test_low_rank(tb7m: Path, tmp_path: Path, original: dict[str, Any]) -> None:
    found = changed(tb7m, tmp_path, "low_rank")
    name = "model.layers.1.mlp.up_proj.weight"
    before, apart = original[name].float(), (found[name].float() - original[name].float())
    assert float(apart.norm() / before.norm()) == pytest.approx(weights.CHANGE, rel=0.15)  # rounded to bfloat16
    share = torch.linalg.svdvals(apart)[: weights.RANK].square().sum() / apart.square().sum()
    assert 0.8 < float(share) <= 1.0001  # the rest is that rounding
    assert torch.equal(found["model.embed_tokens.weight"], original["model.embed_tokens.weight"])


def test_nf4(tb7m: Path, tmp_path: Path, original: dict[str, Any]) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    found = changed(tb7m, tmp_path, "nf4")[name].float().reshape(-1, weights.BLOCK)
    wanted = original[name].float().reshape(-1, weights.BLOCK)
    scale = wanted.abs().amax(dim=1, keepdim=True)
    levels = torch.tensor(weights.NF4)
    nearest = levels[(wanted[:, :, None] / scale[:, :, None] - levels).abs().argmin(dim=2)] * scale
    assert torch.allclose(found, nearest.bfloat16().float(), atol=1e-3)
    assert not torch.allclose(found, wanted, atol=1e-3)


def test_pruned(tb7m: Path, tmp_path: Path, original: dict[str, Any]) -> None:
    found = changed(tb7m, tmp_path, "pruned")
    count = json.loads((tb7m / "config.json").read_text())["num_hidden_layers"]
    last = "model.layers.{}.mlp.up_proj.weight"
    assert torch.equal(found[last.format(count - 2)], original[last.format(count - 1)])
    assert last.format(count - 1) not in found
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned", local_files_only=True)
    assert model.config.num_hidden_layers == len(model.model.layers) == count - 1
