"""The planner's named sizes are those that the audit benchmark measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veridifr.deviations import MULTIPLES, SHOWN_AS, Shown, size_of
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


@pytest.mark.parametrize(("shown", "column"), [("edge", "unknown sampler, filters"), ("near ties", "greedy")])
@pytest.mark.parametrize("name", ["int4", "fp8", "fp8-kv"])
def test_sizes_without_known_noise_are_as_measured(shown: Shown, column: str, name: str) -> None:
    """Within a quarter, as above."""
    raw = json.loads(MODES.read_text(encoding="utf-8"))["raw"]["columns"][column]
    found = raw["rows"][CASES[name]]["logit_noise"] / raw["sigma"]
    assert SHOWN_AS[shown][name] == pytest.approx(found, rel=0.25)


def test_a_change_of_the_temperature_has_no_size_at_temperature_zero() -> None:
    with pytest.raises(CalibrationError, match=r"got 'temperature=1\.1', expected .* fp8, int4 at temperature 0"):
        size_of("temperature=1.1", 0.03, "near ties")
    assert size_of("int4", 0.03, "near ties")[0] < size_of("int4", 0.03, "edge")[0]
