"""Whether an engine's own sampler draws the noise of its contract: seeds known, logits flat, tokens compared.

On flat logits the token is the argmax of the noise alone. The engine's own sampler is run on the model's vocabulary
size, since that decides how a GPU lays its noise out.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np

from veridifr.contracts.base import Stream
from veridifr.contracts.registry import get
from veridifr.errors import UnsupportedError, require
from veridifr.vllm.inspection import Engine

SEEDS = (42, 7, 2**31 - 1, 123456789)
STEPS = 3
POSITIONS = (0, 5, 1023)
TOLERANCE = 0.05
"""Gumbel noise that a GPU's fast logarithm may differ by where it is largest. Another noise would be off by units."""


def check_sampler(engine: Engine, runner: Any) -> None:
    """Raise `UnsupportedError` unless the engine's sampler draws what its contract says."""
    test = _drawn_by_position if engine.record.runner == "v2" else _drawn_by_step
    for seed, prompt_length, step, token in test(engine, runner):
        stream = Stream(seed=seed, prompt_length=prompt_length, vocab_size=engine.vocab_size, engine=engine.record)
        ids = np.arange(engine.vocab_size, dtype=np.int64)
        noise = get(str(engine.record.sampler)).gumbel(stream, np.array([step]), np.zeros_like(ids), ids)
        best = int(noise.argmax())
        if not 0 <= token < engine.vocab_size or noise[best] - noise[token] > TOLERANCE:
            raise UnsupportedError(
                "engine.sampler",
                f"self-test of {engine.record.sampler}: seed {seed}, step {step}: the engine drew {token}, "
                f"the contract draws {best}",
            )


def _drawn_by_step(engine: Engine, runner: Any) -> list[tuple[int, int, int, int]]:
    """(seed, prompt length, step, token) of the V1 runner's sampler, with a generator for each row."""
    torch = require("torch", "hf")
    generators = {row: torch.Generator(device=runner.device).manual_seed(seed) for row, seed in enumerate(SEEDS)}
    drawn = []
    for step in range(STEPS):
        logits = torch.zeros((len(SEEDS), engine.vocab_size), dtype=torch.float32, device=runner.device)
        with torch.inference_mode():
            tokens = runner.sampler.topk_topp_sampler(logits, generators, None, None)[0]
        drawn += [(seed, 1, step, int(token)) for seed, token in zip(SEEDS, tokens.tolist(), strict=True)]
    return drawn


def _drawn_by_position(engine: Engine, runner: Any) -> list[tuple[int, int, int, int]]:
    """(seed, prompt length, step, token) of the V2 runner's kernel, which knows positions only."""
    torch = require("torch", "hf")
    sample = require("vllm.v1.worker.gpu.sample.gumbel", "vllm").gumbel_sample
    cases = [(seed, position) for seed in (*SEEDS, -9, 2**62 + 3) for position in POSITIONS]
    rows = len(cases)
    fields: dict[str, Any] = {
        "logits": torch.zeros((rows, engine.vocab_size), dtype=torch.float32, device=runner.device),
        "expanded_idx_mapping": torch.arange(rows, dtype=torch.int32, device=runner.device),
        "temperature": torch.ones(rows, dtype=torch.float32, device=runner.device),
        "seed": torch.tensor([seed for seed, _ in cases], dtype=torch.int64, device=runner.device),
        "pos": torch.tensor([position for _, position in cases], dtype=torch.int64, device=runner.device),
        "apply_temperature": False,
        "use_fp64": False,
    }
    if "is_drafting" in inspect.signature(sample).parameters:  # from 0.29
        fields["is_drafting"] = False
    with torch.inference_mode():
        tokens = sample(**fields)
    return [(s, p + 1, 0, int(token)) for (s, p), token in zip(cases, tokens.tolist(), strict=True)]
