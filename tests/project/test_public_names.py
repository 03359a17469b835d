"""What `veridifr` offers by name, and that every place which states the version states the same one."""

from __future__ import annotations

import ast
import importlib.metadata
import re
from types import ModuleType

import pytest

import veridifr

from .guards import PACKAGE, ROOT, modules


def ruff_order(name: str) -> tuple[int, str]:
    """The order ruff keeps `__all__` in: CONSTANTS, then Classes, then the rest, each alphabetically."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_all_is_sorted_and_unique() -> None:
    names = list(veridifr.__all__)
    assert names == sorted(set(names), key=ruff_order)


def test_every_name_resolves() -> None:
    assert veridifr.__all__, "the package offers nothing"
    missing = [name for name in veridifr.__all__ if getattr(veridifr, name, None) is None]
    assert missing == []


def test_the_api_the_readme_promises() -> None:
    assert {"Finding", "Trace", "Verdict", "audit"} <= set(veridifr.__all__)
    assert callable(veridifr.audit)


def test_no_name_is_also_a_module() -> None:
    """Importing ``veridifr.x`` would put the module over a function x that the package offers."""
    submodules = {name.removeprefix("veridifr.").split(".")[0] for name in modules()}
    assert [n for n in veridifr.__all__ if n in submodules and not isinstance(getattr(veridifr, n), ModuleType)] == []


def test_dir_lists_every_public_name() -> None:
    assert set(veridifr.__all__) <= set(dir(veridifr))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        veridifr.no_such_name  # noqa: B018


def test_every_public_object_is_documented() -> None:
    public = {name: getattr(veridifr, name) for name in veridifr.__all__}
    undocumented = [
        n for n, o in public.items() if (callable(o) or isinstance(o, type)) and not (o.__doc__ or "").strip()
    ]
    assert undocumented == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in sorted(PACKAGE.rglob("*.py"))
        if (text := path.read_text(encoding="utf-8")).strip() and not ast.get_docstring(ast.parse(text))
    ]
    assert silent == []


def test_one_version_everywhere() -> None:
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    newest = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    version = veridifr.__version__
    assert importlib.metadata.version("veridifr") == version
    assert cited is not None and cited[1] == version
    assert newest is not None and newest[1] == version
