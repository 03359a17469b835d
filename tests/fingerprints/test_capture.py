"""Capture on a transformers model: what generate and forward leave is what the model's own hidden states give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from veridifr.errors import FingerprintError
from veridifr.fingerprints import FingerprintSpec, from_bytes, project, to_bytes, tolerance
from veridifr.fingerprints.capture import Capture
from veridifr.fingerprints.projector import Projector

PROMPTS = ([0, 486, 756, 90, 17], [0, 1200, 33], [5])
TOKENS = 6


@pytest.fixture(scope="module")
def model(tb7m: Path) -> Any:
    torch.set_num_threads(1)
    return AutoModelForCausalLM.from_pretrained(tb7m, dtype=torch.float32, local_files_only=True).eval()


def spec_of(model: Any, **fields: Any) -> FingerprintSpec:
    size = model.config.hidden_size
    return FingerprintSpec(**{"seed": 9, "hidden_size": size, "k": 8, "encoding": "float32", **fields})


def generated(model: Any, captured: Capture) -> list[list[int]]:
    """Greedy continuations of left-padded prompts, under a capture."""
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[2] * (width - len(p)) + p for p in PROMPTS])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    with captured, torch.inference_mode():
        out = model.generate(
            ids, attention_mask=mask, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False, pad_token_id=2
        )
    return [row[width:].tolist() for row in out]


def direct(model: Any, prompt: list[int], output: list[int], spec: FingerprintSpec) -> list[Any]:
    """The same, one sequence at a time, from the model's own list of hidden states."""
    with torch.inference_mode():
        base = model.base_model(input_ids=torch.tensor([prompt + output[:-1]]), output_hidden_states=True)
    found = []
    for tap in spec.taps:
        # hidden_states[0] is the embedding; the last entry comes after the final norm
        states = base.last_hidden_state if tap == "final" else base.hidden_states[int(tap.split(".")[1]) + 1]
        picked = states[0, len(prompt) - 1 :][:: spec.every]
        found.append(project(picked.numpy(), spec.seed, spec.k))
    return found


@pytest.mark.parametrize("every", [1, 2, 4])
def test_generate_in_a_left_padded_batch(model: Any, every: int) -> None:
    spec = spec_of(model, taps=("layer.1", "final", "layer.4"), every=every)
    captured = Capture(model, spec, starts=[max(map(len, PROMPTS)) - 1] * len(PROMPTS))
    outputs = generated(model, captured)
    for row, (prompt, output) in enumerate(zip(PROMPTS, outputs, strict=True)):
        for got, wanted in zip(captured.values(row, TOKENS), direct(model, prompt, output, spec), strict=True):
            assert got.shape == (spec.entries(TOKENS), 8)
            assert np.allclose(got, wanted, atol=2e-4)


@pytest.mark.parametrize("every", [1, 3])
def test_forward_in_a_right_padded_batch(model: Any, every: int) -> None:
    spec = spec_of(model, taps=("final", "layer.0"), every=every)
    outputs = [[7, 8, 9, 10], [11, 12], [13, 14, 15, 16, 17]]
    rows = [p + o[:-1] for p, o in zip(PROMPTS, outputs, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    captured = Capture(model, spec, starts=[len(p) - 1 for p in PROMPTS], counts=[len(o) for o in outputs])
    with captured, torch.inference_mode():
        model(input_ids=ids)
    for row, (prompt, output) in enumerate(zip(PROMPTS, outputs, strict=True)):
        for got, wanted in zip(captured.values(row, len(output)), direct(model, prompt, output, spec), strict=True):
            assert np.allclose(got, wanted, atol=2e-4)


def test_an_early_end_is_cut_and_a_late_one_is_an_error(model: Any) -> None:
    spec = spec_of(model)
    captured = Capture(model, spec, starts=[4, 4, 4])
    generated(model, captured)
    assert captured.values(1, 3)[0].tolist() == captured.values(1, TOKENS)[0][:3].tolist()
    with pytest.raises(FingerprintError, match="tap final, row 0: 6 of 7 entries"):
        captured.values(0, TOKENS + 1)
    found = captured.fingerprint(2, TOKENS)
    assert from_bytes(to_bytes(found), spec, TOKENS) == found


def test_hooks_are_gone_afterwards(model: Any) -> None:
    captured = Capture(model, spec_of(model), starts=[0], counts=[1])
    with captured, torch.inference_mode():
        model(input_ids=torch.tensor([[1]]))
    before = captured.values(0, 1)[0].tolist()
    with torch.inference_mode():
        model(input_ids=torch.tensor([[5]]))
    assert captured.values(0, 1)[0].tolist() == before
    with pytest.raises(ZeroDivisionError), Capture(model, spec_of(model), starts=[0]):
        _ = 1 / 0
    assert not model.base_model._forward_hooks


def test_what_cannot_be_captured_is_refused(model: Any) -> None:
    with pytest.raises(FingerprintError, match=r"spec\.hidden_size: got 512, the model's is 256"):
        Capture(model, spec_of(model, hidden_size=512), starts=[0])
    with pytest.raises(FingerprintError, match=r"layer\.6, the model has 6"):
        Capture(model, spec_of(model, taps=("layer.6",)), starts=[0])
    with pytest.raises(FingerprintError, match="counts: got 2"):
        Capture(model, spec_of(model), starts=[0], counts=[1, 2])
    with (
        pytest.raises(FingerprintError, match="batch: got 2 rows, expected 1"),
        Capture(model, spec_of(model), starts=[0]),
    ):
        model(input_ids=torch.tensor([[1], [2]]))
    captured = Capture(model, spec_of(model), starts=[0], counts=[1])
    with pytest.raises(FingerprintError, match="tokens: got 2, row 0 was captured for 1"):
        captured.values(0, 2)


def test_generation_without_a_cache_is_refused(model: Any) -> None:
    captured = Capture(model, spec_of(model), starts=[2])
    with pytest.raises(FingerprintError, match="without a key-value cache"), captured:
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, use_cache=False, do_sample=False, pad_token_id=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_device_and_numpy_agree_within_the_tolerance(dtype: Any) -> None:
    spec = FingerprintSpec(seed=4, hidden_size=2880, k=64, encoding="float32")
    hidden = (torch.randn(200, 2880, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    got = Projector(spec, "cpu").project(hidden).numpy()
    wanted = project(hidden.double().numpy(), 4, 64)
    bound = tolerance(2880) * np.linalg.norm(hidden.double().numpy(), axis=1, keepdims=True)
    assert (np.abs(got - wanted) <= bound).all()
    with pytest.raises(FingerprintError, match=r"hidden: got shape \(2, 3\)"):
        Projector(spec, "cpu").project(torch.zeros(2, 3))
