"""What all benchmarks share: results with their provenance, and the check that figures follow from raw data."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("veridifr", "numpy", "scipy", "torch", "transformers")
_LINE = 400
"""Characters of a results file's value that is kept on one line: the row of a table, say."""
Compute = Callable[[Mapping[str, Any]], dict[str, Any]]


def write(path: Path, raw: Mapping[str, Any], compute: Compute) -> dict[str, Any]:
    """Write a results file: figures computed from `raw`, `raw` itself, and where they come from. The figures."""
    plain = json.loads(json.dumps(raw))  # figures must follow from what is in the file
    document = {
        "figures": compute(plain),
        "command": " ".join(["python", "/".join(Path(sys.argv[0]).resolve().parts[-2:]), *_arguments()]),
        "commit": COMMIT,
        "uncommitted": _UNCOMMITTED,
        "versions": {"python": platform.python_version(), **_versions()},
        "hardware": _hardware(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "raw": plain,
    }
    if plain.get("again"):  # parts were run again, and say so themselves: the file keeps where the others come from
        document |= {key: read(path)[key] for key in ("command", "commit", "uncommitted", "versions", "hardware")}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(_text(document) + "\n")
    partial.replace(path)
    figures: dict[str, Any] = document["figures"]
    return figures


def _text(value: Any, indent: int = 0) -> str:
    """JSON, one line for everything that is short or holds no further list or object that is not empty."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    line = json.dumps(value)
    if len(line) <= _LINE or not any(isinstance(part, (dict, list)) and part for part in parts):
        return line
    start, end = "{}" if isinstance(value, dict) else "[]"
    names = [f"{json.dumps(name)}: " for name in value] if isinstance(value, dict) else [""] * len(value)
    lines = [" " * (indent + 1) + name + _text(part, indent + 1) for name, part in zip(names, parts, strict=True)]
    return "\n".join([start, ",\n".join(lines), " " * indent + end])


def read(path: Path) -> dict[str, Any]:
    """A results file as `write` left it."""
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def check(path: Path, compute: Compute) -> list[str]:
    """What in a results file does not follow from its raw data: empty if all does."""
    document = read(path)
    found = json.loads(json.dumps(compute(document["raw"])))
    return list(_differences(found, document["figures"], "figures"))


def digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unchanged(path: Path, sha256: str) -> Path:
    """`path`, or an end where it is not the file of that digest."""
    if digest(path) != sha256:
        raise SystemExit(f"{path.name}: not the file that the results were made from")
    return path


def documented(path: Path, start: str, end: str, new: str, *, write: bool) -> list[str]:
    """Put `new` between two markers of a document, or say that what stands there is not what the results give."""
    text = path.read_text()
    before, rest = text.split(start)
    old, after = rest.split(end)
    if write:
        path.write_text(before + start + new + end + after)
    return [] if write or old == new else [f"{path.name}: its tables are not those of the results: run --write-docs"]


def _differences(found: Any, stated: Any, where: str) -> list[str]:
    if isinstance(found, dict) and isinstance(stated, dict):
        wrong = [f"{where}.{key}: in one only" for key in sorted(found.keys() ^ stated.keys())]
        for key in found.keys() & stated.keys():
            wrong += _differences(found[key], stated[key], f"{where}.{key}")
        return wrong
    if isinstance(found, float) and isinstance(stated, float):
        return [] if abs(found - stated) <= 1e-9 * max(1.0, abs(stated)) else [f"{where}: {stated}, raw gives {found}"]
    return [] if found == stated else [f"{where}: {stated}, raw gives {found}"]


def _arguments() -> list[str]:
    """The command line, directories of this machine left out."""
    return [Path(word).name if "/" in word else word for word in sys.argv[1:]]


def _git(*words: str) -> str:
    """What git says; without a repository, the commit that COMMIT states (a run on a machine that got a copy)."""
    if "COMMIT" in os.environ:
        return os.environ["COMMIT"] if words[0] == "rev-parse" else ""
    done = subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    return done.stdout.rstrip("\n") if done.returncode == 0 else "not known"


# Taken when the benchmark starts: a long run outlives the commit that it runs.
COMMIT = _git("rev-parse", "HEAD")
_UNCOMMITTED = sorted(line[3:] for line in _git("status", "--porcelain", "--", "src").splitlines())


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _hardware() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    return {"cpu": name, "cores": os.cpu_count()}
