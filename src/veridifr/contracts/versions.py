"""Reading an engine's version string."""

from __future__ import annotations

import re
from dataclasses import dataclass

from veridifr.errors import UnsupportedError

_PATTERN = re.compile(r"v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(?:\.\d{1,6})*([^+]{0,64})(?:\+.{0,256})?", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Version:
    """A version: `release` is (major, minor, patch)."""

    release: tuple[int, int, int]
    prerelease: bool
    """rc, alpha, beta: cut from the branch of the release."""
    snapshot: bool
    """A development build of the main branch, which may be on either side of a change."""


def parse(text: str) -> Version:
    """The version, of the forms 0.24.0, 0.24.0rc1, 0.24.1.dev5+gabc, v0.24.0.post1, 0.24.0+cpu.

    `UnsupportedError` naming engine.version for anything else.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None or not re.fullmatch(r"([-._]?(rc|a|b|alpha|beta|post|dev)[-._]?\d*)*", match[4]):
        raise UnsupportedError("engine.version", f"got {text[:60]!r}, expected a version such as 0.24.0")
    suffix = match[4]
    return Version(
        release=(int(match[1]), int(match[2]), int(match[3] or 0)),
        prerelease=re.search(r"rc|a|b", suffix) is not None,
        snapshot="dev" in suffix,
    )
