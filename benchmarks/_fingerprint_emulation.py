"""A 16-bit provider emulated in float32, for CPUs without 16-bit arithmetic: benchmarks/fingerprints.py runs it there.

Products are float32 sums, as 16-bit kernels accumulate them; every result that a 16-bit run would store is rounded to
the narrow type: of linear layers, norms (twice), activations, the gated product, rotary embeddings, attention, and both
residual sums. Llama models of transformers alone, without padding on the left.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any


def emulate(model: Any, narrow: Any) -> None:
    """Have `model`, whose weights are float32 with values of the type `narrow`, round as a run in `narrow` does.

    Its attention stays as it is; see `attention`.
    """
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm"):
            module.forward = partial(_norm, module, narrow)
        elif kind.endswith("DecoderLayer"):
            module.register_forward_hook(partial(_output, narrow))
            module.post_attention_layernorm.register_forward_pre_hook(partial(_in_place, narrow))
            module.mlp.down_proj.register_forward_pre_hook(partial(_in_place, narrow))
        elif not any(True for _ in module.children()):
            module.register_forward_hook(partial(_output, narrow))


def attend(model: Any, name: str, inner: Callable[..., Any]) -> None:
    """Have `inner` be the attention of `model`, called as transformers calls one; the mask is None, for causal."""
    from transformers import AttentionInterface

    AttentionInterface.register(name, inner)
    model.set_attn_implementation(name)


def attention(narrow: Any, *, eager: bool) -> Callable[..., Any]:
    """SDPA or eager attention with its results rounded; without a cache, or for one new token."""

    def sdpa(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        parts = (_rounded(query, narrow), _rounded(key, narrow), value)
        found, weights = sdpa_attention_forward(module, *parts, *rest, **options)
        return _rounded(found, narrow), weights

    def plain(_module: Any, query: Any, key: Any, value: Any, *_rest: Any, **options: Any) -> Any:
        import torch

        groups, count = query.shape[1] // key.shape[1], query.shape[2]
        query, key = _rounded(query, narrow), _rounded(key, narrow).repeat_interleave(groups, dim=1)
        scores = _rounded(_rounded(query @ key.transpose(2, 3), narrow) * options["scaling"], narrow)
        later = torch.ones(count, key.shape[2], dtype=torch.bool).triu(1 + key.shape[2] - count)
        shares = _rounded(scores.masked_fill(later, float("-inf")).softmax(-1), narrow)
        found = shares @ value.repeat_interleave(groups, dim=1)
        return _rounded(found, narrow).transpose(1, 2).contiguous(), None

    return plain if eager else sdpa


def _rounded(values: Any, narrow: Any) -> Any:
    return values.to(narrow).float()


def _output(narrow: Any, *call: Any) -> Any:
    output = call[-1]
    if isinstance(output, tuple):
        return tuple(_rounded(part, narrow) for part in output)
    return _rounded(output, narrow)


def _in_place(narrow: Any, _module: Any, given: tuple[Any, ...]) -> None:
    """The tensor itself is rounded: the residual sum is the same one."""
    given[0].copy_(_rounded(given[0], narrow))


def _norm(module: Any, narrow: Any, values: Any) -> Any:
    scaled = values * (values.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return _rounded(module.weight * _rounded(scaled, narrow), narrow)
