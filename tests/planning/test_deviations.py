"""The planner's named sizes are those that the audit benchmark measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from veridifr.deviations import MULTIPLES, SHOWN_AS, size_of
from veridifr.errors import CalibrationError

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
RESULTS, MODES = FOLDER / "audits_cpu.json", FOLDER / "modes.json"
FINGERPRINTS, PLANS = FOLDER / "fingerprints.json", FOLDER / "fingerprint_plans.json"
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


@pytest.mark.parametrize("name", sorted(SHOWN_AS["fingerprints"]))
def test_sizes_in_hidden_states_are_as_measured(name: str) -> None:
    errors = json.loads(FINGERPRINTS.read_text(encoding="utf-8"))["raw"]["h200"]["error_per_coordinate"]
    found = errors[{"fp8-kv": "kv_fp8"}.get(name, name)] / errors["honest"]
    assert found == pytest.approx(SHOWN_AS["fingerprints"][name], rel=0.02)


def test_plans_for_fingerprints_are_within_a_factor_of_two_of_what_it_took() -> None:
    found = json.loads(PLANS.read_text(encoding="utf-8"))["figures"]["planned_over_measured"]
    assert found["rows"] >= 6
    assert found["least"] >= 0.5 and found["most"] <= 2.0


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


def test_fingerprints_are_asked_about_in_multiples() -> None:
    assert size_of("errors=2.5", 0.03, "fingerprints") == (2.5, None)
    assert size_of("int8", 0.03, "fingerprints")[0] < size_of("fp8", 0.03, "fingerprints")[0]
    for deviation in ("sigma=0.1", "temperature=1.1"):
        with pytest.raises(CalibrationError, match=r"expected errors=X or one of int8, .* for fingerprints"):
            size_of(deviation, 0.03, "fingerprints")
    for deviation in ("errors=0", "errors=", "errors=nan"):
        with pytest.raises(CalibrationError, match="expected errors=X with X above 0, in multiples of the honest"):
            size_of(deviation, 0.03, "fingerprints")
    with pytest.raises(CalibrationError, match="expected sigma=X or one of"):
        size_of("errors=2", 0.03)
