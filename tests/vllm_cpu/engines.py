"""Engines of vLLM on the CPU that stay alive until the test session ends."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

_started: list[Any] = []
"""vLLM tears down the process groups of *every* engine of a process when one is collected: none may be, while another
still runs."""


def start(model: Path, **options: Any) -> tuple[Any, Any]:
    """The module ``vllm`` and an ``LLM`` of `model`: eager, without a tokenizer; no prompt is prefilled in parts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of what vLLM imports
        import vllm

        plain = {"dtype": "bfloat16", "max_model_len": 256, "max_num_seqs": 64, "max_num_batched_tokens": 8192}
        llm = vllm.LLM(str(model), enforce_eager=True, skip_tokenizer_init=True, **{**plain, **options})
    _started.append(llm)
    return vllm, llm
