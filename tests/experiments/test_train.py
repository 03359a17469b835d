"""The trainer, at a size that takes seconds: what it leaves is read by transformers, rounded, and replayed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import corpus
import scores
import train
import weights

SECONDS = 2.0


def said(_text: str) -> None:
    """Nothing."""


@pytest.fixture(scope="module")
def data() -> corpus.Corpus:
    return corpus.prepare(400, 400_000, 10.0, said)


@pytest.fixture(scope="module")
def moe(data: corpus.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "tinymoe"
    train.train("tinymoe", train.SHAPES["tinymoe"], data, SECONDS, out, said)
    return out


def test_a_corpus_is_files_between_their_marks(data: corpus.Corpus) -> None:
    assert np.array_equal(data.begins, np.flatnonzero(data.train == corpus.BEGIN))
    assert (data.train[data.begins[1:] - 1] == corpus.END).all()
    assert data.train[-1] == data.held[-1] == corpus.END
    text = data.tokenizer.decode(data.train[1 : data.begins[1] - 1].tolist())
    assert not text.startswith(("#", "\n"))
    assert data.tokenizer.encode(text).ids == data.train[1 : data.begins[1] - 1].tolist()


def test_windows_are_of_the_text(data: corpus.Corpus) -> None:
    ids, begins = torch.from_numpy(data.train), torch.from_numpy(data.begins)
    found = train.draw(ids, begins, 200, 16).numpy()
    wanted = {tuple(row) for row in np.lib.stride_tricks.sliding_window_view(data.train, 17)}
    assert all(tuple(row) in wanted for row in found)
    assert 0.1 < (found[:, 0] == corpus.BEGIN).mean() < 0.5


def test_rotary_frequencies_stay_exact(data: corpus.Corpus) -> None:
    shape = train.SHAPES["tinydense"]
    model = train.Trainer(train.build(shape, data.vocabulary), shape, "cpu", torch.bfloat16).model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_both_ways_to_compute_experts_agree(data: corpus.Corpus) -> None:
    shape = train.SHAPES["tinymoe"]
    trainer = train.Trainer(train.build(shape, data.vocabulary), shape, "cpu")
    windows = torch.from_numpy(data.train[:66].astype(np.int64)).reshape(2, 33)
    assert train.choose_experts(trainer, windows) == "grouped_mm"
    assert all(one.grad is None for one in trainer.weights)


@pytest.mark.parametrize("name", ["tinydense", "tinymoe"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_lower_the_loss(data: corpus.Corpus, name: str, dtype: torch.dtype) -> None:
    shape = train.SHAPES[name]
    trainer = train.Trainer(train.build(shape, data.vocabulary), shape, "cpu", dtype)
    windows = train.draw(torch.from_numpy(data.train), torch.from_numpy(data.begins), 4, 32)
    losses = [trainer.step(windows, 3e-3) for _ in range(12)]
    assert losses[-1] < losses[0] - 0.5
    assert all(torch.equal(m.to(dtype), w) for m, w in zip(trainer.masters, trainer.weights, strict=True))
    assert all(m.dtype == torch.float32 for m in trainer.masters)


def test_what_is_left(moe: Path, data: corpus.Corpus) -> None:
    card = json.loads((moe / "card.json").read_text())
    assert card["steps"] > 0
    assert card["held_out_loss"] < np.log(data.vocabulary) + 0.5
    config = json.loads((moe / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (corpus.BEGIN, corpus.END)
    assert config["dtype"] == "bfloat16"
    assert AutoTokenizer.from_pretrained(moe).decode([corpus.BEGIN]) == corpus.SPECIAL[0]


def test_a_mixture_of_experts_is_replayed_with_each_expert_by_itself(moe: Path) -> None:
    reference: Any = scores.reference_of(moe)
    model = AutoModelForCausalLM.from_pretrained(moe, dtype=torch.float32, local_files_only=True)
    ids = torch.arange(3, 30)[None]
    with torch.inference_mode():
        wanted, found = model(ids).logits, reference._model(ids).logits
    assert torch.allclose(found, wanted, atol=1e-4)


def test_experts_are_rounded_and_routers_are_not(moe: Path, tmp_path: Path) -> None:
    before = dict(load_file(str(moe / "model.safetensors")))
    after = dict(load_file(str(weights.write(moe, tmp_path / "int4", "int4") / "model.safetensors")))
    assert before.keys() == after.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    linear = {name for name in before if name.endswith("_proj.weight")}
    assert changed == linear
    assert any(".mlp.experts.3.down_proj." in name for name in changed)
    assert "model.layers.0.mlp.gate.weight" not in changed
    AutoModelForCausalLM.from_pretrained(tmp_path / "int4", local_files_only=True)


def test_int8_keeps_routers_out(moe: Path, tmp_path: Path) -> None:
    after = load_file(str(weights.write(moe, tmp_path / "int8", "int8") / "model.safetensors"))
    assert after["model.layers.0.mlp.experts.0.up_proj.weight"].dtype == torch.int8
    assert after["model.layers.0.mlp.gate.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["dense100m", "moe350m"])
def test_sizes(name: str) -> None:
    with torch.device("meta"):
        model = train.build(train.SHAPES[name], 32_768)
    millions = sum(one.numel() for one in model.parameters()) / 1e6
    assert {"dense100m": 90, "moe350m": 320}[name] < millions < {"dense100m": 115, "moe350m": 380}[name]
