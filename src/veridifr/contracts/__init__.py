"""Sampler contracts: how each engine turns a seed and logits into a token. See docs/contracts.md."""

from veridifr.contracts.base import Contract, Stream
from veridifr.contracts.describe import noise_values, table
from veridifr.contracts.registry import CONTRACTS, REFUSED, Inference, get, infer

__all__ = ["CONTRACTS", "REFUSED", "Contract", "Inference", "Stream", "get", "infer", "noise_values", "table"]
