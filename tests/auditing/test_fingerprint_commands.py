"""Fingerprints on the command line: replay, calibrate and audit with one specification file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from printed import SPEC

from recorded import Recorded
from veridifr.calibration_io import read_calibration, write_calibration
from veridifr.cli import main
from veridifr.demo import model_path
from veridifr.evidence_io import read_all
from veridifr.fingerprints.spec import to_dict
from veridifr.traces import write_traces


def test_calibrate_and_audit(printed: Recorded, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(SPEC)))
    write_traces(tmp_path / "honest.jsonl", printed["calibration.v1"])
    reference = ["--reference", f"evidence:{printed.file}", "--quiet"]
    made = ["--fingerprints", str(tmp_path / "spec.json"), "--out", str(tmp_path / "c.json")]
    assert main(["calibrate", str(tmp_path / "honest.jsonl"), *reference, *made]) == 0
    found = read_calibration(tmp_path / "c.json")[0]
    wanted = printed.calibration.fingerprints
    assert found.fingerprints is not None and wanted is not None
    assert (found.fingerprints.spec, found.fingerprints.scales) == (wanted.spec, wanted.scales)
    write_calibration(tmp_path / "c.json", printed.calibration)
    write_traces(tmp_path / "t.jsonl", printed["int4 weights"])
    audit = ["audit", str(tmp_path / "t.jsonl"), *reference, "--calibration", str(tmp_path / "c.json")]
    assert main([*audit, "--fingerprints", "required", "--json", str(tmp_path / "f.json")]) == 1
    told = json.loads((tmp_path / "f.json").read_text())["fingerprints"]
    assert (told["speaks"], told["missing"], told["tap"]) == ("fingerprints", 0, "layer.1")
    assert main([*audit, "--fingerprints", "off", "--alpha", "0.02"]) == 0


def test_plan_with_what_calibrate_left(printed: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """int4 weights show in fewer tokens by fingerprints than by tokens."""
    write_calibration(tmp_path / "c.json", printed.calibration)
    command = ["plan", "--calibration", str(tmp_path / "c.json"), "--deviation", "int4", "--alpha", "0.1", "--json"]
    best = []
    for more in ([], ["--fingerprints"]):
        assert main([*command, *more]) == 0
        best.append(json.loads(capsys.readouterr().out)["best"])
    assert best[1]["fixed"] * best[1]["tokens"] < best[0]["fixed"] * best[0]["tokens"]


def test_replay_keeps_projections(printed: Recorded, tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(to_dict(SPEC)))
    write_traces(tmp_path / "t.jsonl", printed["v1"][:2])
    options = ["--reference", f"hf:{model_path()}", "--device", "cpu", "--quiet", "--out", str(tmp_path / "e")]
    more = ["--fingerprints", str(tmp_path / "spec.json")]
    assert main(["replay", str(tmp_path / "t.jsonl"), *options, *more]) == 0
    shapes = [e.projections_AFK.shape for e in read_all(tmp_path / "e") if e.projections_AFK is not None]
    assert shapes == [(3, 80, 8), (3, 80, 8)]


@pytest.mark.parametrize(("text", "message"), [("{}", "spec."), ("[", "--fingerprints"), ("[]", "spec: got list")])
def test_a_specification_that_is_none(
    tmp_path: Path, printed: Recorded, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    (tmp_path / "spec.json").write_text(text)
    write_traces(tmp_path / "t.jsonl", printed["v1"][:1])
    options = ["--reference", f"evidence:{printed.file}", "--out", str(tmp_path / "c")]
    more = ["--fingerprints", str(tmp_path / "spec.json")]
    assert main(["calibrate", str(tmp_path / "t.jsonl"), *options, *more]) == 2
    assert message in capsys.readouterr().err
