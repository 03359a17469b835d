"""The planner's named sizes are those that the audit benchmark measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veridifr.deviations import MULTIPLES

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "audits_cpu.json"
CASES = {
    "int4": "int4 weights",
    "int8": "int8 weights (held out)",
    "fp8": "fp8 weights",
    "fp8-kv": "fp8 key-value cache",
    "temperature=1.1": "temperature 1.1",
    "temperature=1.02": "temperature 1.02",
}


@pytest.mark.parametrize("name", sorted(MULTIPLES))
def test_sizes_are_as_measured(name: str) -> None:
    """Within a quarter: one audit of 40 sequences measures a size about as well."""
    raw = json.loads(RESULTS.read_text(encoding="utf-8"))["raw"]
    (found,) = [row["logit_noise"] for row in raw["audits"] if row["case"] == CASES[name]]
    assert found / raw["statistic"]["sigma"] == pytest.approx(MULTIPLES[name], rel=0.25)
