"""On which engines the provider's side has run: by version, model runner and device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from veridifr.contracts.versions import parse
from veridifr.errors import UnsupportedError

Status = Literal["run", "not run", "refused"]


@dataclass(frozen=True, kw_only=True)
class Support:
    """One row of the support table. `device` is a kind of device as torch names it; `note` may be empty."""

    version: str
    runner: str
    device: str
    status: Status
    note: str = ""


SUPPORT = (
    Support(version="0.24", runner="v1", device="cuda", status="run"),
    Support(version="0.24", runner="v2", device="cuda", status="run"),
    Support(version="0.32", runner="v1", device="cpu", status="run"),
    Support(version="0.32", runner="v1", device="cuda", status="not run"),
    Support(version="0.32", runner="v2", device="cuda", status="not run"),
)
"""Versions whose hooks were read in the source; "run" are those that the tests or a GPU script ran."""

_SEEDS_IGNORED = "on a CPU, versions 0.11 to 0.28 ignore all seeds of a batch in which one request has none"


def support_of(version: str, runner: str, device: str) -> Support:
    """What is known of an engine. One that the table lacks has not been run."""
    read = parse(version)
    series = ".".join(map(str, read.release[:2]))
    for row in SUPPORT:
        if (row.version, row.runner, row.device) == (series, runner, device) and not read.snapshot:
            return row
    if device == "cpu" and (0, 11) <= read.release[:2] <= (0, 28):
        return Support(version=series, runner=runner, device=device, status="refused", note=_SEEDS_IGNORED)
    return Support(version=series, runner=runner, device=device, status="not run")


def check_support(version: str, runner: str, device: str, *, allow_unverified: bool) -> Support:
    """The table's row, or `UnsupportedError` for an engine that is refused, or not run and not explicitly allowed."""
    row = support_of(version, runner, device)
    name = f"vLLM {version} with the {runner} runner on {device}"
    if row.status == "refused":
        raise UnsupportedError("engine.version", f"{name} is refused: {row.note}")
    if row.status == "not run" and not allow_unverified:
        raise UnsupportedError(
            "engine.version", f"{name} has not been run with this veridifr; allow_unverified_version tries it"
        )
    return row


def support_table() -> str:
    """The table as Markdown, for docs/providers.md."""
    lines = ["| vLLM | model runner | device | status | note |", "|---|---|---|---|---|"]
    lines += [f"| {r.version} | {r.runner} | {r.device} | {r.status} | {r.note} |" for r in SUPPORT]
    lines.append(f"| 0.11 to 0.28 | v1 | cpu | refused | {_SEEDS_IGNORED} |")
    lines.append("| others | any | any | not run | |")
    return "\n".join(lines)
