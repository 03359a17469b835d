"""The part of a calibration file about fingerprints: optional, and as strict as the rest."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_calibration_files import SMALL, paths

from veridifr import calibration_io
from veridifr.calibration import Calibration
from veridifr.calibration_io import from_dict, read_calibration, to_dict, write_calibration
from veridifr.errors import CalibrationError
from veridifr.fingerprint_null import FingerprintNull, NullSequence, NullStack
from veridifr.fingerprints import ErrorScale, FingerprintSpec
from veridifr.fingerprints.score import SHARED_SIZES

SPEC = FingerprintSpec(seed=1, hidden_size=64, k=4, encoding="sign", taps=("layer.0", "final"))
PRINTED = replace(
    SMALL,
    fingerprints=FingerprintNull(
        spec=SPEC,
        scales=(ErrorScale(sigma=0.01, spread=0.1), ErrorScale(sigma=0.5)),
        stacks=(
            NullStack(
                name="s",
                sequences=(
                    NullSequence(id="a", scores=((-1.5, -2.5), (-1.0, -1.5), (-0.5, 0.25))),
                    NullSequence(id="b", scores=((-1.5,), (-1.0,), (-0.5,))),
                ),
            ),
        ),
    ),
)


def test_fingerprints_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "c"
    write_calibration(path, PRINTED)
    assert read_calibration(path)[0] == PRINTED
    assert "fingerprints" not in to_dict(SMALL)


def test_sensitivity_is_said_only_where_it_is_used(tmp_path: Path) -> None:
    assert PRINTED.fingerprints is not None
    sensitive = replace(PRINTED, fingerprints=replace(PRINTED.fingerprints, sensitivity=True))
    assert "sensitivity" not in to_dict(PRINTED)["fingerprints"]
    write_calibration(tmp_path / "c", sensitive)
    assert read_calibration(tmp_path / "c")[0] == sensitive


def simulated() -> Calibration:
    """`PRINTED` with scores of errors twice and four times as large."""
    assert PRINTED.fingerprints is not None
    stack = PRINTED.fingerprints.stacks[0]
    rows = (((0.5, 1.0), (1.5, 2.5)), ((0.5,), (1.5,)))
    sequences = tuple(replace(one, simulated=row) for one, row in zip(stack.sequences, rows, strict=True))
    null = replace(PRINTED.fingerprints, effects=(2.0, 4.0), stacks=(replace(stack, sequences=sequences),))
    return replace(PRINTED, fingerprints=null)


def test_simulated_scores_are_read_again(tmp_path: Path) -> None:
    assert "effects" not in to_dict(PRINTED)["fingerprints"]
    write_calibration(tmp_path / "c", simulated())
    assert read_calibration(tmp_path / "c")[0] == simulated()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(effects=[4.0, 2.0]), r"fingerprints\.effects: expected ascending"),
        (lambda v: v.update(effects=[2.0, 2.0]), r"fingerprints\.effects: expected ascending"),
        (lambda v: v.update(effects=[0.5, 2.0]), r"fingerprints\.effects\[0\]: got 0\.5, expected a number in 1 to"),
        (lambda v: v.update(effects=[2.0]), r"sequences\[0\]\.simulated: expected 1 rows of 2 scores"),
        (lambda v: v.pop("effects"), r"sequences\[0\]\.simulated: not a field"),
        (lambda v: v["stacks"][0]["sequences"][1].pop("simulated"), r"sequences\[1\]\.simulated: missing"),
        (
            lambda v: v["stacks"][0]["sequences"][1]["simulated"][1].append(1.0),
            r"sequences\[1\]\.simulated: expected 2 rows of 1 scores",
        ),
    ],
)
def test_simulated_scores_that_fit_nothing(change: Any, message: str) -> None:
    whole = copy.deepcopy(to_dict(simulated()))
    change(whole["fingerprints"])
    with pytest.raises(CalibrationError, match=message):
        from_dict(whole)


def shared() -> Calibration:
    """`PRINTED` with shares of sizes at its second tap."""
    assert PRINTED.fingerprints is not None
    first, second = PRINTED.fingerprints.scales
    shares = tuple(float(g == 3) for g in range(len(SHARED_SIZES)))
    scales = (first, replace(second, shares=shares, relative=False))
    return replace(PRINTED, fingerprints=replace(PRINTED.fingerprints, scales=scales))


def test_shares_are_said_only_where_they_are_used(tmp_path: Path) -> None:
    assert "shares" not in to_dict(shared())["fingerprints"]["scales"][0]
    write_calibration(tmp_path / "c", shared())
    assert read_calibration(tmp_path / "c")[0] == shared()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shares", [1.0], r"scales\[1\]\.shares: expected 33 shares that sum to 1"),
        ("shares", [0.5] * 33, r"scales\[1\]\.shares: expected 33 shares that sum to 1"),
        ("shares", [2.0, -1.0, *[0.0] * 31], r"scales\[1\]\.shares\[0\]: got 2\.0, expected a number in 0 to 1"),
        ("relative", 1, r"scales\[1\]\.relative: got 1, expected true or false"),
    ],
)
def test_shares_that_mean_nothing(field: str, value: object, message: str) -> None:
    whole = copy.deepcopy(to_dict(shared()))
    whole["fingerprints"]["scales"][1][field] = value
    with pytest.raises(CalibrationError, match=message):
        from_dict(whole)


@pytest.mark.parametrize("value", [False, 1, "yes", []])
def test_what_a_calibration_says_of_sensitivity(value: object) -> None:
    whole = copy.deepcopy(to_dict(PRINTED))
    whole["fingerprints"]["sensitivity"] = value
    with pytest.raises(CalibrationError, match=r"fingerprints\.sensitivity: got"):
        from_dict(whole)


@pytest.mark.parametrize("where", list(paths(to_dict(simulated())["fingerprints"])), ids=str)
@pytest.mark.parametrize("value", ["x", -1, None, [], {}])
def test_every_field_of_fingerprints_is_checked(where: tuple[str | int, ...], value: Any) -> None:
    """Another value is refused as a calibration's fault, or is one that the format allows."""
    whole = copy.deepcopy(to_dict(simulated()))
    inner: Any = whole["fingerprints"]
    for step in where[:-1]:
        inner = inner[step]
    if where:
        inner[where[-1]] = value
    try:
        from_dict(whole)
    except CalibrationError as error:
        assert "fingerprints" in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("spec"), "fingerprints.spec: missing"),
        (lambda v: v.update(more=1), "fingerprints.more: not a field"),
        (lambda v: v["spec"].update(k=0), "fingerprints.spec.k: got 0"),
        (lambda v: v["scales"].pop(), r"fingerprints.scales: got 1, expected one for each of 2 taps"),
        (lambda v: v["stacks"].clear(), "fingerprints.stacks: got 0, expected 1"),
        (lambda v: v["stacks"][0].update(name="t"), r"fingerprints.stacks\[0\]: expected the 2 null sequences of 's'"),
        (lambda v: v["stacks"][0]["sequences"].reverse(), r"sequences\[0\].id: expected 'a'"),
        (lambda v: v["stacks"][0]["sequences"][1]["scores"].pop(), "expected 3 rows of 1 scores"),
        (lambda v: v["stacks"][0]["sequences"][1]["scores"][0].append(1.0), "expected 3 rows of 1 scores"),
    ],
)
def test_wrong_fingerprints_are_named(change: Any, message: str) -> None:
    whole = copy.deepcopy(to_dict(PRINTED))
    change(whole["fingerprints"])
    with pytest.raises(CalibrationError, match=message):
        from_dict(whole)


def test_format_1_knows_no_fingerprints() -> None:
    whole = {**to_dict(PRINTED), "schema": calibration_io.FIRST_SCHEMA}
    with pytest.raises(CalibrationError):
        from_dict(whole)
