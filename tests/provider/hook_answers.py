"""A recorder to hook up, and what its answers hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from fake_engine_parts import HIDDEN, K, hidden_of

from veridifr.fingerprints import FingerprintSpec, project
from veridifr.vllm.options import CaptureOptions
from veridifr.vllm.recorder import Recorder

SPEC = FingerprintSpec(seed=5, hidden_size=HIDDEN, k=K, encoding="float32")


def recorder(*, draws_seeds: bool = False, now: Any = None, **options: Any) -> Recorder:
    return Recorder(
        SPEC,
        CaptureOptions(**options),
        torch.device("cpu"),
        most_rows=8,
        draws_seeds=draws_seeds,
        random_suffix=True,
        **({} if now is None else {"now": now}),
    )


def take(found: Recorder, name: str, tokens: int, child: int | None = None, *, remove: bool = True) -> dict[str, Any]:
    return found.take([[name, child, tokens]], remove=remove)[0]


def tokens_of(answer: dict[str, Any]) -> list[int]:
    assert answer["status"] == "ok", answer
    return np.frombuffer(answer["tokens"], "<i4").tolist()


def check_values(answer: dict[str, Any], number: int, counts: list[int]) -> None:
    """The projections are those of the hidden states of request `number`, outputs `counts`."""
    values = np.frombuffer(answer["values"], "<f4").reshape(-1, K)
    expected = project(hidden_of([(number, count) for count in counts]).numpy(), SPEC.seed, K)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)
