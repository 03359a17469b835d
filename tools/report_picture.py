"""Make the README's picture of a report with headless Chromium.

    python tools/report_picture.py docs/img/report.png                    # from the tests' examples
    python tools/report_picture.py docs/img/report.png out1.json out2.json   # from findings on disk

Fonts decide how it looks: on Debian, ``apt-get install chromium fonts-inter fonts-crosextra-caladea``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "report"))

import browser  # noqa: E402  (beside the tests, which use the same browser and examples)
import report_examples  # noqa: E402

from veridifr.report import read_json, to_html  # noqa: E402


def main() -> None:
    """Parse the command line and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, help="PNG file to write")
    parser.add_argument("findings", nargs="*", type=Path, help="findings as JSON; without any, the tests' examples")
    parser.add_argument("--title", default="Demo: four providers, one model")
    parser.add_argument("--height", type=int, default=1180, help="CSS pixels shown, from the top")
    parser.add_argument("--only", type=int, help="show only the finding with this number, from 1")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    findings = [read_json(path) for path in options.findings] or list(report_examples.demo())
    if options.only is not None:
        findings = [findings[options.only - 1]]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(to_html(findings, title=options.title), encoding="utf-8")
        colours = browser.DARK if options.dark else browser.LIGHT
        target = options.target.resolve()
        browser.picture(page, target, 920, options.height, colours, "--force-device-scale-factor=1.5")
    print(f"{options.target}: {target.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
