from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from report_examples import divergent, no_evidence, one_of_each, results, sequential, undecided

from veridifr.errors import InputError
from veridifr.finding import Finding, FingerprintSummary, LogitNoise, Verdict
from veridifr.report import from_json, read_json, schema, to_html, to_json, to_text, write_json

EACH = [pytest.param(finding, id=finding.verdict.value) for finding in one_of_each()]

ISSUE_NAMES = {
    *("schema", "verdict", "alpha", "p_value", "test", "sequences", "sequences_unsupported", "tokens_scored"),
    *("tokens_by_status", "exact_match", "mean_margin", "effective_logit_noise", "diagnosis", "provenance"),
}


def valid(value: object) -> bool:
    return Draft202012Validator(schema()).is_valid(value)


def test_the_examples_are_one_of_each_verdict() -> None:
    assert [finding.verdict for finding in one_of_each()] == list(Verdict)


def test_the_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("finding", EACH)
def test_every_verdict_fits_the_schema(finding: Finding) -> None:
    value = json.loads(json.dumps(to_json(finding), allow_nan=False))
    Draft202012Validator(schema()).validate(value)
    assert value.keys() >= ISSUE_NAMES
    assert value["schema"] == "veridifr-finding/1"
    assert list(value["effective_logit_noise"]) == ["estimate", "honest", "interval"]
    assert value["diagnosis"].keys() >= {"code", "contract", "parameter", "estimate", "interval", "alternatives"}


@pytest.mark.parametrize("finding", EACH)
def test_what_is_written_is_read_again(finding: Finding, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    write_json(path, finding)
    assert read_json(path) == finding
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_known_values() -> None:
    value = to_json(undecided())
    assert value["coverage"] == 0.6
    assert value["provenance"]["traces"][0]["file"] == "demo/few.jsonl"
    assert value["results"][-1]["score"] is None
    assert to_json(no_evidence())["p_value"] is None


def test_numpy_scalars_are_plain_numbers() -> None:
    finding = divergent(sequences=np.int64(40), exact_match=np.float32(0.5), tokens_by_status={"scored": np.int32(3)})
    value = to_json(finding)
    assert [type(value[name]) for name in ("sequences", "exact_match")] == [int, float]
    assert json.dumps(value["tokens_by_status"]) == '{"scored": 3}'


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_and_leave_the_old_file(bad: float, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(ValueError, match=r"finding\.effective_logit_noise\.estimate"):
        write_json(path, divergent(effective_logit_noise=LogitNoise(estimate=bad, honest=None, interval=None)))
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_a_failed_replacement_leaves_no_part_behind(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    target.mkdir()
    with pytest.raises(OSError, match=r"out\.json"):
        write_json(target, divergent())
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_the_schema_can_fail() -> None:
    good = to_json(divergent())
    assert valid(good)
    for change in (
        {"verdict": "guilty"},
        {"p_value": None},  # divergent without a p-value
        {"alpha": 0},
        {"surprise": 1},
        {"exact_match": 1.5},
        {"sequences": -1},
        {"provenance": {}},
        {"diagnosis": {**good["diagnosis"], "code": "witchcraft"}},
    ):
        assert not valid({**good, **change}), change
    assert not valid({key: item for key, item in good.items() if key != "coverage"})


Change = Callable[[dict[str, Any]], object]

REFUSED: list[tuple[Change, str]] = [
    (lambda v: v.pop("alpha"), "missing field 'alpha'"),
    (lambda v: v.update(surprise=1), "unknown field 'surprise'"),
    (lambda v: v.update(schema="veridifr-finding/2"), "expected 'veridifr-finding/1'"),
    (lambda v: v.update(verdict="guilty"), r"finding\.verdict: got 'guilty', expected one of consistent"),
    (lambda v: v.update(verdict=["divergent"]), r"finding\.verdict"),
    (lambda v: v.update(alpha=True), r"finding\.alpha: got True, expected a finite number"),
    (lambda v: v.update(alpha=0), r"finding\.alpha: got 0.0, expected above 0"),
    (lambda v: v.update(p_value=1.01), r"finding\.p_value: got 1.01, expected 0 to 1"),
    (lambda v: v.update(sequences=40.0), r"finding\.sequences: got 40.0, expected an integer"),
    (lambda v: v.update(sequences=-1), r"finding\.sequences: got -1, expected 0 or more"),
    (lambda v: v.update(sequences=10**30), r"finding\.sequences: got 1000+, expected an integer of 64 bits"),
    (lambda v: v.update(reason=7), r"finding\.reason: got 7, expected a string"),
    (lambda v: v.update(assumptions="none"), r"finding\.assumptions: got 'none', expected a list"),
    (lambda v: v.update(test=[]), r"finding\.test: got \[\], expected an object"),
    (lambda v: v.update(coverage=0.5), r"finding\.coverage: does not follow"),
    (lambda v: v.pop("coverage"), r"finding\.coverage"),
    (lambda v: v.update(provenance=None), r"finding\.provenance: missing"),
    (lambda v: v["provenance"].pop("traces"), r"provenance\.traces: missing"),
    (lambda v: v["provenance"]["traces"].append("x"), r"provenance\.traces\[1\]: expected an object with file"),
    (lambda v: v["provenance"]["settings"].update(dtype=[]), r"provenance\.settings\.'dtype': got \[\]"),
    (lambda v: v["effective_logit_noise"].update(interval=[1, 2, 3]), r"interval: got 3 entries, expected 2"),
    (lambda v: v["effective_logit_noise"].update(interval=[2, 1]), r"interval: got \[2.0, 1.0\], expected the lower"),
    (lambda v: v["effective_logit_noise"].update(honest=-1), r"honest: got -1.0, expected 0 or more"),
    (lambda v: v["diagnosis"].update(code="witchcraft"), r"diagnosis\.code: got 'witchcraft'"),
    (lambda v: v["results"][3].update(score="high"), r"results\[3\]\.score: got 'high', expected a finite number"),
    (lambda v: v["worst_tokens"][0].update(step=1.5), r"worst_tokens\[0\]\.step"),
    (lambda v: v["honest_scores"].update(x=[None]), r"honest_scores\.'x'\[0\]: got None"),
    (lambda v: v["tokens_by_status"].update(scored=-2), r"tokens_by_status\.scored: got -2"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_malformed_findings_are_refused_by_field(change: Change, message: str, tmp_path: Path) -> None:
    value = to_json(divergent())
    change(value)
    path = tmp_path / "out.json"
    path.write_text(json.dumps(value))
    with pytest.raises(InputError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith("out.json: finding")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"^out\.json:1: not JSON"),
        (b'{"schema": 1,\n}', r"^out\.json:2: not JSON"),
        (b"[]", "got list, expected an object"),
        (b"{}", "got 'None', expected 'veridifr-finding/1'"),
        (b"\xff\xfe", "not JSON of the expected shape"),
        (b'{"alpha": NaN}', "NaN is not JSON"),
        (b'{"alpha": 1, "alpha": 2}', "field 'alpha' occurs twice"),
        (b"[" * 100_000, "not JSON of the expected shape"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON of the expected shape"),
    ],
)
def test_what_is_no_json_object_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_json(path)


def test_infinity_spelt_as_a_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text(json.dumps(to_json(divergent())).replace('"mean_margin": 0.0327', '"mean_margin": 1e999', 1))
    with pytest.raises(InputError, match=r"mean_margin: got inf, expected a finite number"):
        read_json(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.json: cannot be read"):
        read_json(tmp_path / "gone.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(to_json(divergent()))), JSON)
def test_any_value_in_any_field_is_read_or_refused(name: str, value: Any) -> None:
    plain = {**to_json(divergent(results=results("x", (0.1,), 0.9))), name: value}
    try:
        finding = from_json(plain)
    except InputError:
        return
    assert to_json(finding) == plain


@given(st.text(st.characters()), st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300))
def test_texts_and_numbers_survive(text: str, value: float) -> None:
    worst = tuple(replace(note, before=text, claimed=text) for note in divergent().worst_tokens)
    finding = divergent(reason=text, mean_margin=value, worst_tokens=worst)
    assert from_json(json.loads(json.dumps(to_json(finding)))) == finding


def test_findings_written_before_sequential_audits_are_read() -> None:
    """The key came later; where it is absent, the number of sequences was fixed."""
    value = to_json(divergent())
    assert value["test"].pop("sequential") is None
    assert valid(value)
    assert from_json(value) == divergent()


@pytest.mark.parametrize(
    ("field", "value"), [("status", "lost"), ("n", -1), ("e_value", -0.5), ("floor", -1.0), ("seed", -1)]
)
def test_a_sequential_end_that_means_nothing_is_refused(field: str, value: object) -> None:
    good = sequential()
    assert from_json(to_json(good)) == good
    changed = to_json(good)
    changed["test"]["sequential"][field] = value
    with pytest.raises(InputError, match=rf"test\.sequential\.{field}: got"):
        from_json(changed)
    assert not valid(changed)


def test_a_sequential_end_is_told() -> None:
    told = "rejected after 7 of 40 sequences, e-value 100, order from seed 3"
    assert told in " ".join(to_text(sequential()).split())
    assert told.capitalize() in to_html([sequential()])


PRINTS = FingerprintSummary(
    spec="ab" * 32,
    p_value=0.0001,
    tokens_p_value=0.4,
    sequences=39,
    missing=1,
    speaks="fingerprints",
    tap="layer.4",
    reasons={"x-1": "fingerprint: missing"},
)


def test_fingerprints_are_told_and_read_again() -> None:
    good = divergent(fingerprints=PRINTS)
    value = json.loads(json.dumps(to_json(good), allow_nan=False))
    assert valid(value) and from_json(value) == good
    line = "the fingerprints speak, the tokens do not; p = 0.4 for tokens and 0.0001 for fingerprints; 39 sequences"
    assert line in " ".join(to_text(good).split())
    assert line in to_html([good])
    silent = divergent(fingerprints=replace(PRINTS, speaks=None, p_value=None, tap=None, reasons={}))
    assert from_json(to_json(silent)) == silent and valid(to_json(silent))
    assert "neither tokens nor fingerprints speak" in to_html([silent])


def test_findings_written_before_fingerprints_are_read() -> None:
    value = to_json(divergent())
    assert value.pop("fingerprints") is None
    assert valid(value)
    assert from_json(value) == divergent()


@pytest.mark.parametrize(
    ("field", "value"),
    [("speaks", "nobody"), ("sequences", -1), ("missing", -1), ("p_value", 1.5), ("tokens_p_value", -0.1)],
)
def test_fingerprints_that_mean_nothing_are_refused(field: str, value: object) -> None:
    changed = to_json(divergent(fingerprints=PRINTS))
    changed["fingerprints"][field] = value
    with pytest.raises(InputError, match=rf"fingerprints\.{field}: got"):
        from_json(changed)
    assert not valid(changed)


def test_hostile_reasons_are_made_visible() -> None:
    shown = divergent(fingerprints=replace(PRINTS, reasons={"<b>\x1b": "<script>\u202e"}))
    assert "\x1b" not in to_text(shown) and "\u202e" not in to_text(shown)
    assert "<script>" not in to_html([shown])
