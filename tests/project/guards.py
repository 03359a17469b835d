"""What the project's guard tests look for, as functions of source text, so that each is shown to be able to fail."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "veridifr"


def modules() -> dict[str, Path]:
    """Dotted name of every module of the package, and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def called(node: ast.AST) -> str:
    """Name of what a call calls: ``zip``, ``np.load``; empty for anything that is not a dotted name."""
    if isinstance(node, ast.Call):
        node = node.func
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (left := called(node.value)):
        return f"{left}.{node.attr}"
    return ""


def imports(tree: ast.AST, module: str, *, package: bool = False) -> set[str]:
    """Every dotted name that a module imports, wherever in it, also through ``require("x", ...)`` and importlib.

    ``from a import b`` yields both ``a`` and ``a.b``, since b may be a module. `package`: the module is an __init__.
    """
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[
                    : None if package and node.level == 1 else (1 if package else 0) - node.level
                ]
                base = ".".join([*parents, *([base] if base else [])])
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and called(node).split(".")[-1] in ("require", "import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value)
    return found


def within(name: str, prefixes: tuple[str, ...] | set[str]) -> bool:
    """Whether a dotted name is one of `prefixes`, or lies below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def broad_excepts(tree: ast.AST) -> Iterator[int]:
    """Lines that swallow everything: a bare ``except``, Exception or BaseException, also in a tuple or in suppress().

    A handler that ends by raising the same exception only cleans up, and is none.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            if isinstance(last := node.body[-1], ast.Raise) and last.exc is None:
                continue
            caught = (
                [None] if node.type is None else node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
            )
        elif isinstance(node, ast.Call) and called(node).split(".")[-1] == "suppress":
            caught = list(node.args)
        else:
            continue
        if any(c is None or called(c) in ("Exception", "BaseException") for c in caught):
            yield node.lineno


def loose_zips(tree: ast.AST) -> Iterator[int]:
    """Lines with a zip() that does not say whether unequal lengths are an error."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and called(node) == "zip" and all(k.arg != "strict" for k in node.keywords):
            yield node.lineno


UNSAFE_MODULES = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
UNSAFE_CALLS = ("eval", "exec", "np.fromfile", "numpy.fromfile")


def unsafe_loads(tree: ast.AST) -> Iterator[int]:
    """Lines that could run what they read: pickle and its kin, allow_pickle, trust_remote_code, eval, torch.load."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            if any(within(name, UNSAFE_MODULES) for name in imports(node, "")):
                yield node.lineno
        elif isinstance(node, ast.Call):
            on = {k.arg for k in node.keywords if not (isinstance(k.value, ast.Constant) and k.value.value is False)}
            weights_only = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            if (
                called(node) in UNSAFE_CALLS
                or on & {"allow_pickle", "trust_remote_code"}
                or (called(node) == "torch.load" and not weights_only)
            ):
                yield node.lineno


def nan_literals(tree: ast.AST) -> Iterator[int]:
    """Lines that make a nan: an unknown is None or a status, never a number that spreads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and called(node) in ("np.nan", "numpy.nan", "math.nan", "torch.nan"):
            yield node.lineno
        elif isinstance(node, ast.Call) and called(node) in ("float", "np.float64", "np.float32") and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and str(first.value).strip().lower().lstrip("+-") == "nan":
                yield node.lineno


def long_functions(tree: ast.AST, most: int) -> Iterator[tuple[str, int]]:
    """Functions of more than `most` lines, decorators and docstring counted, with their length."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            length = (node.end_lineno or node.lineno) - first + 1
            if length > most:
                yield node.name, length
