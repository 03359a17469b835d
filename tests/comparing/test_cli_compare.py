"""`veridifr compare`: what it prints and writes, and with which status it ends."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from recorded import Recorded
from veridifr import report
from veridifr.calibration_io import write_calibration
from veridifr.cli import main
from veridifr.traces import write_traces


def run(folder: Path, recorded: Recorded, *names: str, more: tuple[str, ...] = ()) -> int:
    write_calibration(folder / "calibration.json", recorded.calibration)
    files = []
    for name in names:
        files.append(str(folder / f"{name}.jsonl"))
        write_traces(files[-1], recorded[name])
    reference = ["--reference", f"evidence:{recorded.file}", "--calibration", str(folder / "calibration.json")]
    return main(["compare", *files, *reference, *more])


@pytest.mark.parametrize(
    ("names", "status"),
    [(("v1", "v2"), 0), (("v2", "int4"), 1), (("v1", "short"), 3)],
)
def test_the_status_is_that_of_the_whole(
    tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], status: int
) -> None:
    out, page = tmp_path / "out.json", tmp_path / "out.html"
    options = ("--alpha", "0.02", "--json", str(out), "--report", str(page), "--title", "Three of a kind")
    assert run(tmp_path, recorded, *names, more=options) == status
    value = json.loads(out.read_text())
    jsonschema.Draft202012Validator(report.comparison_schema()).validate(value)
    assert value["verdict"] == {0: "consistent", 1: "divergent", 3: "undecided"}[status]
    assert {one["name"] for one in value["providers"]} == set(names)
    first = value["providers"][0]["finding"]["provenance"]
    assert first["traces"][0]["file"] == f"{value['providers'][0]['name']}.jsonl"
    assert first["calibration_file"] == "calibration.json"
    assert "Three of a kind" in page.read_text()
    printed = capsys.readouterr()
    assert printed.err == ""
    assert all(name in printed.out for name in names)


def test_quiet_and_resume(tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").mkdir()
    assert run(tmp_path, recorded, "v1", more=("--quiet", "--resume", str(tmp_path / "kept"))) == 0
    assert capsys.readouterr() == ("", "")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["v1.evidence"]


def test_requests_count_against_those_who_leave_some_out(tmp_path: Path, recorded: Recorded) -> None:
    asked = [replace(t, output_token_ids=t.output_token_ids[:0]) for t in recorded["v1"]]
    more = [replace(t, id=f"{t.id}/more") for t in asked]
    write_traces(tmp_path / "asked.jsonl", [*asked, *more])
    assert run(tmp_path, recorded, "v1", more=("--requests", str(tmp_path / "asked.jsonl"), "--quiet")) == 3


def test_requests_of_each_provider(tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for name in ("v1", "v2"):
        files.append(str(tmp_path / f"{name}.asked.jsonl"))
        write_traces(files[-1], [replace(t, output_token_ids=t.output_token_ids[:0]) for t in recorded[name]])
    more = ("--alpha", "0.02", "--json", str(tmp_path / "out.json"), "--requests", *files)
    assert run(tmp_path, recorded, "v1", "v2", more=more) == 0
    said = [one["finding"]["assumptions"] for one in json.loads((tmp_path / "out.json").read_text())["providers"]]
    assert not any("No requests were given" in text for texts in said for text in texts)
    assert run(tmp_path, recorded, "v1", "v2", "int4", more=more) == 2
    assert "--requests: got 2 files, expected 1, or 3" in capsys.readouterr().err


def test_the_sampler_may_be_taken_as_unknown(
    tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in an audit: one calibration for the distribution, for all providers, and only where it was asked for."""
    honest, out, draws = tmp_path / "h.jsonl", tmp_path / "out.json", tmp_path / "draws.json"
    write_traces(honest, recorded["calibration.v1"])
    reference = ["--reference", f"evidence:{recorded.file}", "--quiet"]
    assert main(["calibrate", str(honest), *reference, "--sampler", "unknown", "--out", str(draws)]) == 0
    more = ("--calibration", str(draws), "--json", str(out), "--quiet")
    assert run(tmp_path, recorded, "v1", "temp1.1", more=(*more, "--sampler", "unknown")) == 1
    providers = {one["name"]: one["finding"] for one in json.loads(out.read_text())["providers"]}
    assert {finding["mode"] for finding in providers.values()} == {"distribution"}
    assert providers["temp1.1"]["verdict"] == "divergent"
    assert providers["v1"]["verdict"] in ("consistent", "undecided")
    assert run(tmp_path, recorded, "v1", "temp1.1", more=more) == 2
    assert "v1: calibration: mode: made for distribution evidence" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--json", "/no/such/folder/x"), "/no/such/folder/x: cannot be written"),
        (("--report", "/no/such/folder/x"), "/no/such/folder/x: cannot be written"),
        (("--resume", "/no/such/folder"), "/no/such/folder: no such folder"),
    ],
)
def test_what_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert run(tmp_path, recorded, "v1", more=more) == 2
    assert capsys.readouterr().err.startswith(f"veridifr: {message}")


def test_two_files_of_one_name_are_refused(
    tmp_path: Path, recorded: Recorded, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "v1.jsonl.gz"
    write_traces(twin, recorded["v1"])
    assert main(["compare", str(twin), str(twin), "--reference", "evidence:x", "--calibration", "c"]) == 2
    assert "'v1' is there already" in capsys.readouterr().err
