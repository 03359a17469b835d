"""Every bad trace file, through the command line: status 2, and one line that names file, line and field."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from recorded import Recorded
from veridifr.calibration_io import write_calibration
from veridifr.cli import main

ASSETS = Path(__file__).parents[1] / "assets"
_spec = importlib.util.spec_from_file_location("make_bad_for_cli", ASSETS / "make_bad.py")
assert _spec is not None and _spec.loader is not None
make_bad = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_bad)


@pytest.fixture(scope="module")
def options(recorded: Recorded, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    calibration = tmp_path_factory.mktemp("bad") / "c.json"
    write_calibration(calibration, recorded.calibration)
    return ["--reference", f"evidence:{recorded.file}", "--calibration", str(calibration)]


def test_all_of_them_are_here() -> None:
    assert {path.stem for path in (ASSETS / "bad").iterdir()} == set(make_bad.BAD)
    assert len(make_bad.BAD) > 80


@pytest.mark.parametrize("name", make_bad.BAD)
def test_a_bad_file_ends_with_2(
    options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    path, out = ASSETS / "bad" / f"{name}.jsonl", tmp_path / "out.json"
    assert main(["audit", str(path), *options, "--json", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"veridifr: {path}{make_bad.BAD[name][1]}")
    assert printed.err.count("\n") == 1 and printed.err.endswith("\n")
    assert not out.exists()


def test_the_good_line_gets_further(options: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What the bad ones were made from is read; it ends as `unsupported` or the like, by what it says."""
    path = tmp_path / "good.jsonl"
    path.write_bytes(make_bad.GOOD_LINE + make_bad.SECOND)
    status = main(["audit", str(path), *options])
    printed = capsys.readouterr()
    assert "good.jsonl" not in printed.err
    assert status == 3 or "calibration: " in printed.err
