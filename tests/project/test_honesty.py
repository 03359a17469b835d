"""Habits that hide errors, looked for in every source file, each with a proof that it would be found."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .guards import (
    PACKAGE,
    ROOT,
    broad_excepts,
    long_functions,
    loose_zips,
    modules,
    nan_literals,
    parse,
    unsafe_loads,
)

MOST_LINES = 350
MOST_FUNCTION_LINES = 80
Guard = Callable[[ast.AST], Iterator[int]]

# Files that may make a nan, and why. A line for a file that no longer does is an error too.
NAN_ALLOWED: dict[str, str] = {}

FILES = sorted(path.relative_to(ROOT).as_posix() for path in modules().values())
SCRIPTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in ("benchmarks", "tools", "tests")
    for path in (ROOT / folder).rglob("*.py")
)


def cli_main(tree: ast.Module) -> set[int]:
    """Lines of the function `main`, the one place where everything is caught: it turns a crash into exit status 4."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            return set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return set()


@pytest.mark.parametrize("name", FILES)
def test_no_broad_except(name: str) -> None:
    tree = parse(ROOT / name)
    allowed = cli_main(tree) if name in ("src/veridifr/cli.py", "src/veridifr/cli/__init__.py") else set()
    assert [line for line in broad_excepts(tree) if line not in allowed] == []


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("guard", [loose_zips, unsafe_loads])
def test_sources_are_clean(name: str, guard: Guard) -> None:
    assert list(guard(parse(ROOT / name))) == []


@pytest.mark.parametrize("name", FILES)
def test_no_nan(name: str) -> None:
    found = list(nan_literals(parse(ROOT / name)))
    assert bool(found) == (name in NAN_ALLOWED), f"{name}: nan at lines {found}, allowed: {NAN_ALLOWED.get(name, 'no')}"


@pytest.mark.parametrize("name", [*FILES, *SCRIPTS])
def test_size(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    assert list(long_functions(parse(ROOT / name), MOST_FUNCTION_LINES)) == []


def test_the_files_were_found() -> None:
    assert "src/veridifr/trace.py" in FILES
    assert "tests/project/guards.py" in SCRIPTS
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize(
    ("guard", "source"),
    [
        (broad_excepts, "try:\n    f()\nexcept:\n    pass"),
        (broad_excepts, "try:\n    f()\nexcept Exception:\n    pass"),
        (broad_excepts, "try:\n    f()\nexcept (ValueError, BaseException) as e:\n    pass"),
        (broad_excepts, "try:\n    f()\nexcept Exception:\n    if x:\n        raise"),
        (broad_excepts, "with contextlib.suppress(Exception):\n    f()"),
        (loose_zips, "zip(a, b)"),
        (loose_zips, "dict(zip(a, b))"),
        (unsafe_loads, "import pickle"),
        (unsafe_loads, "def f():\n    from pickle import loads"),
        (unsafe_loads, "np.load(path, allow_pickle=True)"),
        (unsafe_loads, "np.load(path, allow_pickle=flag)"),
        (unsafe_loads, "AutoModel.from_pretrained(path, trust_remote_code=True)"),
        (unsafe_loads, "torch.load(path)"),
        (unsafe_loads, "eval(text)"),
        (nan_literals, "x = float('nan')"),
        (nan_literals, "x = float('-NaN')"),
        (nan_literals, "x = np.nan"),
        (nan_literals, "x = np.full(3, math.nan)"),
    ],
)
def test_each_guard_can_fail(guard: Guard, source: str) -> None:
    assert list(guard(ast.parse(source))) != []


@pytest.mark.parametrize(
    ("guard", "source"),
    [
        (broad_excepts, "try:\n    f()\nexcept (ValueError, OSError):\n    pass"),
        (broad_excepts, "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
        (loose_zips, "zip(a, b, strict=True)"),
        (unsafe_loads, "np.load(path, allow_pickle=False)"),
        (unsafe_loads, "torch.load(path, weights_only=True)"),
        (nan_literals, "math.isnan(x) or np.isnan(x) or float('1.5')"),
    ],
)
def test_no_guard_cries_wolf(guard: Guard, source: str) -> None:
    assert list(guard(ast.parse(source))) == []


def test_the_size_guard_can_fail() -> None:
    source = "@decorated\ndef f():\n" + "    x = 1\n" * 79
    assert list(long_functions(ast.parse(source), 80)) == [("f", 81)]
    assert list(long_functions(ast.parse(source), 81)) == []


def test_only_main_may_catch_everything() -> None:
    tree = ast.parse("def main():\n    try:\n        f()\n    except Exception:\n        pass\n\ndef g():\n    pass")
    assert cli_main(tree) == {1, 2, 3, 4, 5}


def test_no_symlink_leads_out_of_the_package() -> None:
    assert [path for path in Path(PACKAGE).rglob("*") if path.is_symlink()] == []
