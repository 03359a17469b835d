"""The planner's named sizes are those that the audit benchmark measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veridifr.deviations import MULTIPLES, size_of
from veridifr.errors import CalibrationError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
RESULTS, MODES = FOLDER / "audits_cpu.json", FOLDER / "modes.json"
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


def test_plans_are_within_a_factor_of_two_of_what_it_took() -> None:
    """In every mode, for sequences of every length that was measured (docs/modes.md)."""
    found = json.loads(MODES.read_text(encoding="utf-8"))["figures"]["planned_over_measured"]
    assert set(found) >= {"seeded", "greedy", "unknown sampler, filters"}
    for mode, ratios in found.items():
        assert ratios["lengths"] >= 3, mode
        assert ratios["least"] >= 0.5 and ratios["most"] <= 2.0, mode


def test_a_change_of_the_temperature_has_no_size_at_temperature_zero() -> None:
    with pytest.raises(CalibrationError, match=r"got 'temperature=1\.1', expected .* fp8-kv, int4 at temperature 0"):
        size_of("temperature=1.1", 0.03, "near ties")
    assert size_of("int4", 0.03, "near ties")[0] < size_of("int4", 0.03, "edge")[0]
