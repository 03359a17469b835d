"""JSON objects of a calibration, field by field: each by its type, and nothing left over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from veridifr.errors import CalibrationError

_MOST = 1_000_000


class Fields:
    """Takes the fields of one JSON object, each by its type, and refuses what is left over."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, Mapping):
            raise CalibrationError(f"{where}: expected an object")
        self._where = where
        self._left = dict(value)
        self._seen: dict[str, Any] = {}

    def optional(self, name: str) -> Any:
        """The value of a field that may be absent, then None."""
        return self.take(name) if name in self._left else None

    def take(self, name: str) -> Any:
        if name not in self._seen:
            if name not in self._left:
                raise CalibrationError(f"{self._where}.{name}: missing")
            self._seen[name] = self._left.pop(name)
        return self._seen[name]

    def finish(self) -> None:
        if self._left:
            raise CalibrationError(f"{self._where}.{next(iter(self._left))[:60]}: not a field of this format")

    def text(self, name: str) -> str:
        value = self.take(name)
        if not isinstance(value, str) or len(value) > 4096:
            raise CalibrationError(f"{self._where}.{name}: expected a string of at most 4096 characters")
        return value

    def number(self, name: str, low: float, high: float) -> float:
        return self._number(name, self.take(name), low, high)

    def numbers(self, name: str, low: float, high: float) -> list[float]:
        return [self._number(f"{name}[{i}]", value, low, high) for i, value in enumerate(self.sequence(name))]

    def shares(self, name: str, count: int) -> tuple[float, ...]:
        """`count` shares that sum to one; empty where the field is absent."""
        if name not in self._left:
            return ()
        found = tuple(self.numbers(name, 0.0, 1.0))
        if len(found) != count or abs(sum(found) - 1.0) > 1e-6:
            raise CalibrationError(f"{self._where}.{name}: expected {count} shares that sum to 1")
        return found

    def tables(self, name: str, low: float, high: float) -> list[list[float]]:
        rows = []
        for i, row in enumerate(self.sequence(name)):
            if not isinstance(row, list) or len(row) > _MOST:
                raise CalibrationError(f"{self._where}.{name}[{i}]: expected a list of at most {_MOST} entries")
            rows.append([self._number(f"{name}[{i}][{j}]", value, low, high) for j, value in enumerate(row)])
        return rows

    def integer(self, name: str) -> int:
        return int(self._integer(name, self.take(name)))

    def integers(self, name: str) -> list[int]:
        return [self._integer(f"{name}[{i}]", value) for i, value in enumerate(self.sequence(name))]

    def sequence(self, name: str) -> Sequence[Any]:
        value = self.take(name)
        if not isinstance(value, list) or len(value) > _MOST:
            raise CalibrationError(f"{self._where}.{name}: expected a list of at most {_MOST} entries")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.take(name)
        if not isinstance(value, Mapping):
            raise CalibrationError(f"{self._where}.{name}: expected an object")
        return dict(value)

    def _number(self, name: str, value: object, low: float, high: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise CalibrationError(f"{self._where}.{name}: got {value!r:.40}, expected a number in {low:g} to {high:g}")
        return float(value)

    def _integer(self, name: str, value: object) -> int:
        if type(value) is not int or not 0 <= value <= 2**40:
            raise CalibrationError(f"{self._where}.{name}: got {value!r:.40}, expected a count")
        return value
