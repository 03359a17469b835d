"""The emulated 16-bit provider of benchmarks/fingerprints.py errs as much as a real one, where a real one errs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from veridifr.demo import model_path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from _fingerprint_emulation import attend, attention, emulate


def load(dtype: torch.dtype, attn: str = "sdpa") -> Any:
    found = AutoModelForCausalLM.from_pretrained(
        model_path(), dtype=torch.bfloat16, attn_implementation=attn, local_files_only=True
    )
    return found.to(dtype).eval()


def states(model: Any) -> torch.Tensor:
    ids = torch.randint(5, 8000, (8, 32), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        found: torch.Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state.float()
    return found


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_errors_are_as_large_as_real_ones(narrow: torch.dtype, attn: str) -> None:
    exact, real = states(load(torch.float32)), states(load(narrow, attn))
    model = load(torch.float32, attn)
    emulate(model, narrow)
    attend(model, f"emulated_{attn}", attention(narrow, eager=attn == "eager"))
    found = states(model)
    size, wanted = float((found - exact).std()), float((real - exact).std())
    assert 0.9 * wanted < size < 1.1 * wanted
    assert float((found - real).std()) < 1.5 * wanted  # not the same errors, which kernels differ in, and no worse ones


def test_values_are_those_of_the_narrow_type() -> None:
    model = load(torch.float32)
    emulate(model, torch.bfloat16)
    found = states(model)
    assert torch.equal(found, found.bfloat16().float())
