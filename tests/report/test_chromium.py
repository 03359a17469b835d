"""The report in a real browser. A missing Chromium fails these tests."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from browser import DARK, LIGHT, binary, picture, run
from page import read
from PIL import Image
from report_examples import demo, divergent, one_of_each
from test_html import HOSTILE, POLICY, hostile_everywhere

from veridifr.report import to_html

pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(to_html(demo(), title="Demo: four providers, one model"), encoding="utf-8")
    return path


def shot(page: Path, folder: Path, width: int, height: int, *flags: str) -> npt.NDArray[np.float64]:
    """Grey values of the page's picture, float64[height, width] in 0 to 255, with at least 40 different colours."""
    target = folder / "shot.png"
    target.unlink(missing_ok=True)
    picture(page, target, width, height, *flags)
    with Image.open(target) as image:
        assert image.size == (width, height)
        colours = np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3)[::7], axis=0)
        assert len(colours) >= 40, "nearly blank"
        return np.asarray(image.convert("L"), dtype=np.float64)


def test_the_browser_shows_what_was_written(report: Path) -> None:
    dom = read(run(report, "--dump-dom"))
    written = read(report.read_text("utf-8"))
    assert dom.text == written.text
    assert [name for name, _ in dom.tags] == [name for name, _ in written.tags]


@pytest.mark.parametrize(("flag", "low", "high"), [(LIGHT, 240, 256), (DARK, 0, 40)], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 420])
def test_light_and_dark_at_two_widths(
    report: Path, tmp_path: Path, flag: str, low: float, high: float, width: int
) -> None:
    grey = shot(report, tmp_path, width, 2400, flag)
    assert low <= np.median(grey) < high
    assert grey.std() > 5, "nearly blank"


@pytest.mark.parametrize("text", [*HOSTILE, "W" * 200, "\u202e" * 30])
def test_nothing_runs_out_of_a_narrow_page(text: str, tmp_path: Path) -> None:
    page = tmp_path / "hostile.html"
    page.write_text(to_html([hostile_everywhere(text), divergent()], title=text), encoding="utf-8")
    grey = shot(page, tmp_path, 420, 6000, LIGHT)
    assert grey[:, -12:].min() == 255, "something reaches into the right margin"


def test_it_prints_light_whatever_the_screen_is(report: Path, tmp_path: Path) -> None:
    files = []
    for name, flag in (("light", LIGHT), ("dark", DARK)):
        files.append(tmp_path / f"{name}.pdf")
        run(report, f"--print-to-pdf={files[-1]}", "--no-pdf-header-footer", flag)
    light, dark = (file.read_bytes() for file in files)
    assert light.startswith(b"%PDF-")
    pages = len(re.findall(rb"/Type\s*/Page\b", light))
    assert 5 <= pages <= 20  # the overview, and four audits of at least one page each
    assert len(light) > 20_000
    drawn = [re.findall(rb"\bstream\r?\n(.*?)\r?\nendstream\b", file, re.DOTALL) for file in (light, dark)]
    assert len(drawn[0]) >= pages  # what is drawn, fonts too; dates and places of objects differ from print to print
    assert drawn[0] == drawn[1]


def test_all_verdicts_open(tmp_path: Path) -> None:
    page = tmp_path / "all.html"
    page.write_text(to_html(one_of_each()), encoding="utf-8")
    shown = read(run(page, "--dump-dom")).text
    for finding in one_of_each():
        assert finding.verdict.sentence in shown


@pytest.mark.parametrize("policy", [True, False], ids=["as written", "without the policy"])
def test_the_policy_stops_a_script_that_escaping_missed(report: Path, tmp_path: Path, policy: bool) -> None:
    text = report.read_text("utf-8").replace("</main>", "<script>document.title = 'ran'</script></main>")
    page = tmp_path / "injected.html"
    page.write_text(text if policy else text.replace(POLICY, "default-src *; script-src 'unsafe-inline'"), "utf-8")
    assert ("<title>ran</title>" in run(page, "--dump-dom")) is not policy


def test_a_missing_browser_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FileNotFoundError, match="apt-get install chromium"):
        binary()
