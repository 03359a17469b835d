"""How far rounding moves a model's hidden states: a second run in which each module's output is rounded to bfloat16.

Tokens differ in it several times over, and every honest 16-bit run moves most where this one does, so it tells a small
deviation from honest noise at a token where honest noise is large: benchmarks/fingerprints.py has the curves with it
and without. The modules' outputs stay in float32, so any device will do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

KIND = "bfloat16"
"""What it is called in a reference's settings."""


@contextmanager
def rounded(model: Any) -> Iterator[None]:
    """While it lasts, the outputs of all modules of `model` that have no modules inside are rounded."""
    leaves = [module for module in model.modules() if next(module.children(), None) is None]
    handles = [module.register_forward_hook(_round) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _round(_module: Any, _inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_rounded(value) for value in output)
    return _rounded(output)


def _rounded(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.to(torch.bfloat16).to(value.dtype)
    return value
