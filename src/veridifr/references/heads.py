"""From final hidden states to logits, for a vLLM model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Head = Callable[[torch.Tensor], torch.Tensor]
_PROBE = 16


def head_of(model: Any, vocab_size: int) -> Head:
    """The model's own head; on a GPU with float32 logits where they are shown to be the same but for rounding.

    A bfloat16 logit of 16 is only good to 1/16, which is more than the error of the hidden states.
    """

    def own(hidden_RD: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits: torch.Tensor = model.compute_logits(hidden_RD)
        return logits[:, :vocab_size]

    weight_VD = getattr(getattr(model, "lm_head", None), "weight", None)
    if weight_VD is None or weight_VD.device.type != "cuda" or weight_VD.dtype == torch.float32:
        return own
    weight_VD = weight_VD[:vocab_size]

    def wide(hidden_RD: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return torch.mm(hidden_RD, weight_VD.T, out_dtype=torch.float32)

    generator = torch.Generator(device=weight_VD.device).manual_seed(0)
    probe = torch.randn(
        (_PROBE, weight_VD.shape[1]), device=weight_VD.device, dtype=weight_VD.dtype, generator=generator
    )
    try:
        fits = torch.allclose(wide(probe), own(probe).float(), rtol=0.02, atol=0.02 * float(own(probe).std()))
    except (RuntimeError, TypeError):
        return own
    return wide if fits else own
