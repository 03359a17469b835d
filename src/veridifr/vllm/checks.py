"""Whether an engine's internals look as the hooks need them. If not, each raises `UnsupportedError` with the name."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from veridifr.errors import UnsupportedError

RUNNER = "engine.runner"


def check_parameters(runner: Any, method: str, expected: tuple[str, ...]) -> None:
    """The method exists and has exactly these parameters beside self."""
    found = getattr(type(runner), method, None)
    if not callable(found):
        raise UnsupportedError(RUNNER, f"{_kind(runner)} has no method {method}")
    names = tuple(inspect.signature(found).parameters)[1:]
    if names != expected:
        raise UnsupportedError(RUNNER, f"{method} has the parameters {names}, expected {expected}")


def check_unwrapped(runner: Any, method: str) -> None:
    """Nobody has put another function over the method of this instance."""
    if method in vars(runner):
        raise UnsupportedError(RUNNER, f"{method} is wrapped already, by this package or by something else")


def check_attribute(runner: Any, path: str) -> None:
    """The dotted attribute exists."""
    found = runner
    for name in path.split("."):
        if not hasattr(found, name):
            raise UnsupportedError(RUNNER, f"{_kind(runner)} has no {path}")
        found = getattr(found, name)


def check_fields(module: ModuleType, name: str, expected: tuple[str, ...]) -> None:
    """A named tuple or dataclass of a module has these fields."""
    kind = getattr(module, name, None)
    found = tuple(getattr(kind, "_fields", ()))
    if is_dataclass(kind):
        found = tuple(f.name for f in fields(kind))
    for wanted in expected:
        if wanted not in found:
            raise UnsupportedError(RUNNER, f"{module.__name__}.{name} has no field {wanted}")


def _kind(runner: Any) -> str:
    return f"{type(runner).__module__}.{type(runner).__name__}"
