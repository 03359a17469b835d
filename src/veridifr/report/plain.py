"""A finding as plain JSON values and back, driven by the dataclasses themselves so that the two cannot drift apart."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from veridifr.errors import InputError

Plain = dict[str, Any]
MAX_INT = 2**63 - 1


def to_plain(value: object, where: str) -> Any:
    """`value` as dicts, lists, strings, numbers, booleans and None.

    Raises ValueError naming the field for a number that is not finite, TypeError for a type JSON does not know.
    """
    if value is None or isinstance(value, str | bool | np.bool_):
        return bool(value) if isinstance(value, np.bool_) else value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        if not math.isfinite(value):
            raise ValueError(f"{where}: got {value}, expected a finite number, or None where it is not known")
        return float(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, Sequence | np.ndarray):
        return [to_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise TypeError(f"{where}: got {type(value).__name__}, which JSON does not know")


def from_plain(kind: Any, value: object, where: str) -> Any:
    """`value` as the type `kind`, or `InputError` naming the field. Unknown and missing keys are refused."""
    if get_origin(kind) in (Union, types.UnionType):
        return _union(get_args(kind), value, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _enum(kind, value, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _record(kind, value, where)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, where)
    if get_origin(kind) is Mapping:
        return _mapping(get_args(kind)[1], value, where)
    return _scalar(kind, value, where)


def _union(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    """The member of a union that the value's own type names; int before float, and never bool for either."""
    if value is None and type(None) in kinds:
        return None
    options = [kind for kind in kinds if kind is not type(None)]
    for kind in options:
        if type(value) is kind:
            return from_plain(kind, value, where)
    return from_plain(options[0] if len(options) == 1 else options, value, where)


def _enum(kind: type[Enum], value: object, where: str) -> Enum:
    known = {member.value: member for member in kind}
    if not isinstance(value, str) or value not in known:
        raise _wrong(where, value, "one of " + ", ".join(known))
    return known[value]


def _record(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    hints = get_type_hints(kind)
    names = {f.name: bool(f.metadata.get("later")) for f in dataclasses.fields(kind)}
    for key in value:
        if key not in names:
            raise InputError(f"{where}: unknown field {_shown(key)}")
    for name, later in names.items():
        if name not in value and not later:
            raise InputError(f"{where}: missing field {name!r}")
    found = [name for name in names if name in value]  # what came later keeps its default
    return kind(**{name: from_plain(hints[name], value[name], f"{where}.{name}") for name in found})


def _tuple(kinds: tuple[Any, ...], value: object, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise _wrong(where, value, "a list")
    many = len(kinds) == 2 and kinds[1] is Ellipsis
    if not many and len(value) != len(kinds):
        raise InputError(f"{where}: got {len(value)} entries, expected {len(kinds)}")
    each = [kinds[0]] * len(value) if many else list(kinds)
    return tuple(from_plain(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(each, value, strict=True)))


def _mapping(kind: Any, value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    return {key: from_plain(kind, item, f"{where}.{_shown(key)}") for key, item in value.items()}


def _scalar(kind: Any, value: object, where: str) -> Any:
    if kind is str and isinstance(value, str):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        if kind is int and isinstance(value, int) and abs(value) <= MAX_INT:
            return value
        if kind is float and abs(value) <= 1e300:  # larger integers and 1e999 (read as infinity) are no measurement
            return float(value)
    expected = {str: "a string", int: "an integer of 64 bits", float: "a finite number", bool: "true or false"}
    raise _wrong(where, value, expected.get(kind, "another type") if isinstance(kind, type) else "another type")


def _wrong(where: str, value: object, expected: str) -> InputError:
    return InputError(f"{where}: got {_shown(value)}, expected {expected}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
