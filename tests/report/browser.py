"""Headless Chromium for the tests and for the README picture. A missing browser is an error, never a skip."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
LIGHT, DARK = "--blink-settings=preferredColorScheme=1", "--blink-settings=preferredColorScheme=0"


def binary() -> str:
    """The browser named by the environment variable CHROMIUM, or the one on the path."""
    found = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        raise FileNotFoundError("Chromium is needed here: apt-get install chromium, or set CHROMIUM to its path")
    return found


def run(page: Path, *flags: str) -> str:
    """Open `page` with `flags`; what the browser printed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [binary(), *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def picture(page: Path, target: Path, width: int, height: int, *flags: str) -> None:
    """A picture of the top `width` x `height` CSS pixels of `page`, as PNG."""
    run(page, f"--screenshot={target}", f"--window-size={width},{height}", *flags)
    assert target.is_file(), "the browser wrote no picture"
