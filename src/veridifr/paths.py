"""Paths on the command line: what a trace file names, and outputs that are refused before the long work."""

from __future__ import annotations

from pathlib import Path

from veridifr.errors import InputError


def stem(path: Path) -> str:
    """A file's name without the suffixes of trace files."""
    name = path.name
    for suffix in (".gz", ".jsonl", ".parquet"):
        name = name.removesuffix(suffix)
    return name


def check_writable(*paths: Path | None) -> None:
    """Raise `InputError` for an output whose folder is not there."""
    for path in paths:
        if path is not None and (not path.parent.is_dir() or path.is_dir()):
            raise InputError(f"{path}: cannot be written: no such folder, or a folder itself")
