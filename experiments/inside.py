"""Deviations inside an engine: logits changed before the engine's own sampler draws. Loaded by vLLM, by its name.

A request says what to do in `SamplingParams.extra_args["inside"]`; the keys are those of `spec.Provider`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

Change = Callable[[list[int], torch.Tensor], torch.Tensor]


class Inside(AdapterLogitsProcessor):
    """One change of the logits for each request that asks for it."""

    def is_argmax_invariant(self) -> bool:
        """Never: that is what it is for."""
        return False

    def new_req_logits_processor(self, params: Any) -> Change | None:
        """The change that a request's settings ask for."""
        asked = (params.extra_args or {}).get("inside")
        return None if asked is None else change_of(asked)


def change_of(asked: dict[str, Any]) -> Change:
    """The change of one request: from the output so far and the logits [V] to the logits that are sampled from."""
    kind, seed = asked["kind"], int(asked["seed"])

    def uniform(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        draw = torch.rand(1, generator=torch.Generator().manual_seed(seed + len(output)))
        return top_alike(logits, asked["top_k"]) if float(draw) < asked["share"] else logits

    def second(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        if len(output) % asked["period"] != asked["period"] - 1:
            return logits
        chosen = torch.full_like(logits, -torch.inf)
        chosen[logits.topk(2).indices[1]] = 0.0
        return chosen

    def watermark(output: list[int], logits: torch.Tensor) -> torch.Tensor:
        key = torch.Generator().manual_seed(15485863 * (output[-1] if output else 0) + 1)
        green = torch.randperm(len(logits), generator=key)[: len(logits) // 2]
        changed = logits.clone()
        changed[green.to(logits.device)] += asked["bias"]
        return changed

    return {"uniform": uniform, "second": second, "watermark": watermark}[kind]


def top_alike(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Logits under which each of the `top_k` likeliest tokens is as likely, and no other can be drawn."""
    found = torch.full_like(logits, -torch.inf)
    found[logits.topk(top_k).indices] = 0.0
    return found
