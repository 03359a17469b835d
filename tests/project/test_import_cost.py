"""`import veridifr` must stay light: someone who only reads traces needs numpy and scipy, not an inference stack."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "tokenizers", "safetensors", "vllm", "httpx", "pyarrow")


def heavy_after(statement: str, extra_path: Path | None = None) -> list[str]:
    """Which of `HEAVY` a fresh interpreter has loaded after `statement`. Fails if the statement does."""
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    path = os.pathsep.join([*([str(extra_path)] if extra_path else []), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "statement",
    [
        "import veridifr",
        "import veridifr\ndir(veridifr)",
        "import veridifr.cli",
        "from veridifr import audit",
        "from veridifr.contracts import registry",
        "import veridifr.references",
        "from veridifr import collect",
        "import veridifr.collecting.running, veridifr.retokenizing",
        "import veridifr.fingerprints, veridifr.fingerprints.toploc, veridifr.fingerprints.capture",
        "import veridifr.stats, veridifr.report, veridifr.traces",
        "import veridifr.vllm, veridifr.vllm.extension",
    ],
)
def test_nothing_heavy_is_loaded(statement: str) -> None:
    assert heavy_after(statement) == []


def test_help_loads_nothing_heavy() -> None:
    statement = (
        "import contextlib, io, veridifr.cli\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):\n"
        "    veridifr.cli.main(['--help'])"
    )
    assert heavy_after(statement) == []


@pytest.mark.parametrize("name", HEAVY)
def test_the_check_can_fail(name: str, tmp_path: Path) -> None:
    """A stub of the heavy module, imported by a stub package, is found: a clean result above is no accident."""
    (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "greedy_package.py").write_text(f"def load():\n    import {name}\nload()\n")
    assert heavy_after("import greedy_package", tmp_path) == [name]


def test_a_failing_statement_is_not_a_pass() -> None:
    with pytest.raises(AssertionError, match="ModuleNotFoundError"):
        heavy_after("import a_module_that_is_not_there")
