"""Calibration files: strict JSON, every field checked by name, written whole or not at all."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from veridifr import calibration_io
from veridifr.calibration import Calibration, HonestSequence, Stack
from veridifr.calibration_io import from_dict, read_calibration, to_dict, write_calibration
from veridifr.demo import DATA
from veridifr.errors import CalibrationError
from veridifr.statistic import Alternative, LikelihoodRatio

SEQUENCE = HonestSequence(
    id="a",
    prompt="0123456789abcdef",
    tokens=5,
    exact_match=0.75,
    surprise=(2.5, 2.25),
    scores=(0.5, -1.0),
    simulated=((1.0, 1.5), (2.0, 3.0)),
)
SMALL = Calibration(
    model="m",
    weights="ab" * 32,
    reference_settings={"dtype": "float32", "tail_mass": 1e-6},
    sampling={"temperature": 1.0, "logit_bias": {"3": 1.0}},
    statistic=LikelihoodRatio(sigma=0.03, epsilon=1e-5),
    detect_sigma=0.06,
    effects=(1.5, 2.0),
    edges=(2, 5),
    stacks=(
        Stack(
            name="s",
            contract="vllm-v2-e",
            engine={"name": "vllm"},
            traces_digest=None,
            fit_sequences=1,
            fit=(replace(SEQUENCE, id="f", prompt="f" * 16),),
            sequences=(
                SEQUENCE,
                replace(SEQUENCE, id="b", tokens=4, surprise=(1.5,), scores=(1.0,), simulated=((1.25,), (1.5,))),
            ),
        ),
    ),
    created="2026-01-01T00:00:00+00:00",
)


def paths(value: Any, where: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place of a JSON value below its top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*where, key)
        yield from paths(inner, (*where, key))


def put(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy with `new` at `path`; ... takes the place away."""
    changed = copy.deepcopy(value)
    place = changed
    for key in path[:-1]:
        place = place[key]
    if new is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = new
    return changed


FIELDS = [
    p
    for p in paths(to_dict(SMALL))
    if isinstance(p[-1], str) and not {"sampling", "engine", "reference_settings"} & set(p[:-1])
]


def test_round_trip(tmp_path: Path) -> None:
    write_calibration(tmp_path / "c.json", SMALL)
    found, digest = read_calibration(tmp_path / "c.json")
    assert found == SMALL
    assert digest == hashlib.sha256((tmp_path / "c.json").read_bytes()).hexdigest()
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_the_bundled_calibration_round_trips(tmp_path: Path) -> None:
    bundled, _ = read_calibration(DATA / "demo" / "calibration.json")
    write_calibration(tmp_path / "c.json", bundled)
    assert read_calibration(tmp_path / "c.json")[0] == bundled


def first_format() -> dict[str, Any]:
    """`SMALL` as version 0.1.0 wrote it."""
    value = to_dict(SMALL)
    value["schema"] = "veridifr-calibration/1"
    value["statistic"] = {
        "name": "noise_mixture", "sigma": 0.03, "epsilon": 1e-5, "multiples": [2.0, 4.0, 8.0], "replaced": 0.05,
    }  # fmt: skip
    del value["effects"]
    for stack in value["stacks"]:
        del stack["fit"]
        for sequence in stack["sequences"]:
            del sequence["surprise"]
            sequence["deviating"] = sequence.pop("simulated")[1]
    return value


def test_the_first_format_is_read() -> None:
    """What it did not hold is unknown; its statistic becomes the same one in the new terms."""
    found = from_dict(first_format())
    assert found.effects == (2.0,)
    assert found.detect_place == 0
    noise = [Alternative(kind="noise", size=size, weight=0.25) for size in (2.0, 4.0, 8.0)]
    assert found.statistic == LikelihoodRatio(
        sigma=0.03,
        epsilon=1e-5,
        spread=0.0,
        alternatives=(*noise, Alternative(kind="replaced", size=0.05, weight=0.25)),
    )
    (stack,) = found.stacks
    assert (stack.fit_sequences, stack.fit) == (1, ())
    assert [s.simulated for s in stack.sequences] == [((2.0, 3.0),), ((1.5,),)]
    assert [s.surprise for s in stack.sequences] == [(), ()]
    assert from_dict(to_dict(found)) == found
    assert to_dict(found)["schema"] == "veridifr-calibration/2"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("effects",), [2.0], r"calibration\.effects: not a field of this format"),
        (("statistic", "spread"), 0.2, r"statistic\.spread: not a field of this format"),
        (("statistic", "multiples"), [], r"statistic\.multiples: got none"),
        (("statistic", "name"), "likelihood_ratio", r"statistic\.name: .* expected 'noise_mixture'"),
        (("stacks", 0, "fit"), [], r"stacks\[0\]\.fit: not a field of this format"),
        (("stacks", 0, "sequences", 0, "deviating"), [1.0], r"deviating: got 1 values, expected 2"),
    ],
)
def test_the_first_format_is_as_strict(path: tuple[str | int, ...], value: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        from_dict(put(first_format(), path, value))


def test_shares_are_said_only_where_they_are_used(tmp_path: Path) -> None:
    assert isinstance(SMALL.statistic, LikelihoodRatio)
    shares = (0.75, 0.25, *[0.0] * 8)
    shared = replace(SMALL, statistic=replace(SMALL.statistic, shares=shares))
    assert "shares" not in to_dict(SMALL)["statistic"]
    write_calibration(tmp_path / "c", shared)
    assert read_calibration(tmp_path / "c")[0] == shared


def test_scores_are_read_at_the_precision_of_audited_ones() -> None:
    found = from_dict(put(to_dict(SMALL), ("stacks", 0, "sequences", 0, "scores"), [0.12345, -1e-9]))
    assert found.stacks[0].sequences[0].scores == (0.123, 0.0)


@pytest.mark.parametrize("path", FIELDS, ids=lambda p: ".".join(map(str, p)))
def test_a_missing_field_is_named(tmp_path: Path, path: tuple[str | int, ...]) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(put(to_dict(SMALL), path, ...)))
    with pytest.raises(CalibrationError, match=rf"c\.json: .*\b{path[-1]}: missing"):
        read_calibration(file)


@pytest.mark.parametrize("wrong", [True, None, [[]], {"x": 1}, "x" * 5000, -1.5, 1e300], ids=lambda w: repr(w)[:8])
@pytest.mark.parametrize("path", FIELDS, ids=lambda p: ".".join(map(str, p)))
def test_a_mistyped_field_is_named(path: tuple[str | int, ...], wrong: Any) -> None:
    free = path[-1] in ("reference_settings", "sampling", "engine") and isinstance(wrong, dict)
    if free or (path[-1] == "traces_digest" and wrong is None):
        assert from_dict(put(to_dict(SMALL), path, wrong)) != SMALL or wrong is None
        return
    if path[-1] == "size" and wrong == -1.5:
        wrong = "no number"  # a cut may lie that much less deep
    with pytest.raises(CalibrationError, match=rf"\b{path[-1]}\b"):
        from_dict(put(to_dict(SMALL), path, wrong))


@pytest.mark.parametrize("path", [(), ("statistic",), ("stacks", 0), ("stacks", 0, "sequences", 1)], ids=str)
def test_an_unknown_key_is_refused(path: tuple[str | int, ...]) -> None:
    with pytest.raises(CalibrationError, match=r"\.unheard_of: not a field of this format"):
        from_dict(put(to_dict(SMALL), (*path, "unheard_of"), 1))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("schema",),
            "veridifr-calibration/3",
            "schema: got 'veridifr-calibration/3', expected 'veridifr-calibration/2' or 'veridifr-calibration/1'",
        ),
        (("statistic", "name"), "other", r"statistic\.name: got 'other'"),
        (("statistic", "alternatives"), [], r"statistic\.alternatives: got none of larger noise"),
        (
            ("statistic", "alternatives", 0, "kind"),
            "luck",
            r"alternatives\[0\]\.kind: got 'luck', expected one of noise",
        ),
        (
            ("statistic", "alternatives", 0, "size"),
            0,
            r"alternatives\[0\]\.size: got 0, expected a number in 0\.001 to",
        ),
        (("statistic", "spread"), -0.1, r"statistic\.spread: got -0\.1, expected a number"),
        (("statistic", "shares"), [0.5, 0.5], r"statistic\.shares: expected 10 shares that sum to 1"),
        (("statistic", "shares"), [0.2] * 10, r"statistic\.shares: expected 10 shares that sum to 1"),
        (("statistic", "shares"), [1.5, -0.5, *[0.0] * 8], r"statistic\.shares\[0\]: got 1\.5, expected a number"),
        (("effects",), [2.0, 1.5], "effects: expected ascending"),
        (("effects",), [], "effects: expected ascending"),
        (("effects",), [1.5, 2.1], "effects: the declared deviation detect_sigma is none of them"),
        (("stacks", 0, "fit_sequences"), 2, r"stacks\[0\]\.fit: got 1 sequences, fit_sequences says 2"),
        (("stacks", 0, "fit", 0, "prompt"), SEQUENCE.prompt, r"stacks\[0\]\.fit: a prompt is also one of the null"),
        (("stacks", 0, "sequences", 0, "simulated"), [[1.0, 2.0]], r"simulated: got 1 rows, expected 2"),
        (("stacks", 0, "sequences", 0, "simulated", 1), [1.0], r"simulated: got 1 values, expected 2"),
        (("stacks", 0, "sequences", 0, "surprise"), [1.0], r"surprise: got 1 values, expected 2"),
        (("statistic", "sigma"), 0, r"statistic\.sigma: got 0, expected a number"),
        (("edges",), [5, 2], "edges: expected ascending"),
        (("edges",), [2, 2], "edges: expected ascending"),
        (("edges",), [], "edges: expected ascending"),
        (("edges",), [0, 5], "edges: expected ascending"),
        (("stacks",), [], "stacks: got none"),
        (("stacks", 0, "sequences"), [], r"stacks\[0\]\.sequences: got none"),
        (("stacks", 0, "sequences", 0, "scores"), [1.0], r"sequences\[0\]\.scores: got 1 values, expected 2"),
        (("stacks", 0, "sequences", 1, "tokens"), 5, r"sequences\[1\]\.scores: got 1 values, expected 2"),
        (("stacks", 0, "sequences", 0, "exact_match"), 1.5, r"exact_match: got 1\.5, expected a number in 0 to 1"),
        (("detect_sigma",), float("nan"), r"detect_sigma: got nan, expected a number"),
    ],
)
def test_values_that_mean_nothing(path: tuple[str | int, ...], value: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        from_dict(put(to_dict(SMALL), path, value))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"schema": NaN}',
        b'{"schema":"x","schema":"y"}',
        b"[" * 100_000,
        b"1" * 9000,
    ],
    ids=range(9),
)
def test_files_that_are_no_calibration(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "c.json"
    file.write_bytes(data)
    with pytest.raises(CalibrationError, match=r"c\.json: "):
        read_calibration(file)


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match=r"none\.json: cannot read it: No such file"):
        read_calibration(tmp_path / "none.json")
    with pytest.raises(CalibrationError, match="cannot read it: Is a directory"):
        read_calibration(tmp_path)
    write_calibration(tmp_path / "c.json", SMALL)
    monkeypatch.setattr(calibration_io, "MAX_BYTES", 100)
    with pytest.raises(CalibrationError, match="over 100 bytes"):
        read_calibration(tmp_path / "c.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(path=st.sampled_from(list(paths(to_dict(SMALL)))), new=JSON)
def test_any_change_is_read_or_refused(path: tuple[str | int, ...], new: Any) -> None:
    """Whatever stands in a field: a calibration that can be written and read again, or a `CalibrationError`."""
    try:
        found = from_dict(put(to_dict(SMALL), path, new))
    except CalibrationError as error:
        assert str(error)
        return
    assert from_dict(to_dict(found)) == found or new != new


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_any_damaged_file_is_read_or_refused(tmp_path: Path, place: int, byte: int) -> None:
    data = bytearray(json.dumps(to_dict(SMALL)).encode())
    data[place % len(data)] = byte
    (tmp_path / "c.json").write_bytes(data)
    try:
        read_calibration(tmp_path / "c.json")
    except CalibrationError as error:
        assert str(error).startswith(str(tmp_path / "c.json"))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.json"
    write_calibration(file, SMALL)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(calibration_io.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_calibration(file, replace(SMALL, model="other"))
    assert read_calibration(file)[0] == SMALL
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]
