"""Run every benchmark's ``--check``: the figures it published must follow from the raw results beside them.

A benchmark is ``benchmarks/NAME.py`` and writes ``benchmarks/results/NAME.json``. One without a results file has
published nothing and is only named; a results file without its script cannot be checked, which fails.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def check(script: Path) -> bool:
    """Whether ``script --check`` exits with 0. Its output is passed through."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, script, "--check"], cwd=BENCHMARKS.parent, stdin=subprocess.DEVNULL)
    print(f"{'ok' if done.returncode == 0 else 'FAILED'}  {script.name}  {time.monotonic() - start:.0f} s", flush=True)
    return done.returncode == 0


def main(benchmarks: Path = BENCHMARKS) -> int:
    """Exit status: 0 if every results file was recomputed, else 1."""
    scripts = {path.stem: path for path in sorted(benchmarks.glob("*.py")) if not path.name.startswith("_")}
    results = {path.stem for path in (benchmarks / "results").glob("*.json")}
    for name in sorted(scripts.keys() - results):
        print(f"--  {name}.py  has no results file yet", flush=True)
    orphans = sorted(results - scripts.keys())
    for name in orphans:
        print(f"FAILED  results/{name}.json  has no script benchmarks/{name}.py", flush=True)
    passed = [check(scripts[name]) for name in sorted(scripts.keys() & results)]
    print(f"bench-check: {sum(passed)} of {len(results)} results files recomputed", flush=True)
    return 0 if all(passed) and not orphans else 1


if __name__ == "__main__":
    sys.exit(main())
