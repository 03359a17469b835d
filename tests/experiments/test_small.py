"""The reduced experiment runs from its file to its table, and the table says what the project claims."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import run

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

EXPERIMENT = Path(run.__file__).parent / "small.toml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    command = [sys.executable, str(EXPERIMENT.parent / "run.py"), str(EXPERIMENT), "--work", str(folder / "work")]
    done = subprocess.run([*command, "--results", str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return folder / "small"


@pytest.fixture(scope="module")
def rows(made: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((made / "table.json").read_text())["figures"]["rows"]
    return rows


def test_honest_tokens_match(made: Path) -> None:
    document = json.loads((made / "table.json").read_text())
    assert document["figures"]["honest"]["tb7m"]["honest"] > 0.97
    assert document["raw"]["stacks"]["tb7m"]["honest"]["float32"]["sigma"] < 0.1


def test_no_peer_is_ahead(rows: list[dict[str, Any]]) -> None:
    assert [row for row in rows if row["status"] == "behind"] == []
    assert sum(row["status"] == "ahead" for row in rows) >= 3


@pytest.mark.parametrize(
    ("deviation", "kind", "budget", "least"),
    [
        ("int4 weights", "tokens", 192, 0.98),
        ("int4 weights", "activations", 2, 0.999),
        ("int8 weights and activations", "activations", 8, 0.99),
        ("temperature 1.1", "tokens", 192, 0.9),
        ("1 in 100 tokens uniform among 32", "tokens", 192, 0.8),
        ("another seed", "tokens", 32, 0.99),
    ],
)
def test_deviations_are_found(rows: list[dict[str, Any]], deviation: str, kind: str, budget: int, least: float) -> None:
    """With at most so many tokens: what is certain with fewer is not judged with more."""
    row = [row for row in rows if (row["deviation"], row["kind"]) == (deviation, kind) and row["budget"] <= budget][-1]
    assert row["auc"][row["ours"]] > least
    assert row["auc"][row["closest_peer"]] <= row["auc"][row["ours"]] + 0.02


def test_nothing_is_done_twice(made: Path) -> None:
    work = made.parent / "work" / "tb7m"
    before = {path.name: path.stat().st_mtime_ns for path in work.iterdir() if path.name != "experiment.toml"}
    command = [sys.executable, str(EXPERIMENT.parent / "run.py"), str(EXPERIMENT), "--work", str(made.parent / "work")]
    subprocess.run([*command, "--results", str(made.parent)], check=True, capture_output=True)
    after = {path.name: path.stat().st_mtime_ns for path in work.iterdir() if path.name != "experiment.toml"}
    assert after == before
