"""Calibrations on disk: strict JSON. Unknown keys are refused, because a null that is half understood is no null."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from veridifr.calibration import SCHEMA, Calibration, NullSequence, Stack
from veridifr.errors import CalibrationError
from veridifr.statistic import LikelihoodRatio
from veridifr.traces.strict_json import parse_json

MAX_BYTES = 256 * 2**20
_MOST = 1_000_000


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write atomically: a killed run leaves the old file or the new one, never half of one."""
    text = json.dumps(to_dict(calibration), allow_nan=False, separators=(",", ":"))
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def to_dict(calibration: Calibration) -> dict[str, Any]:
    """The JSON object of a calibration."""
    statistic = calibration.statistic
    return {
        "schema": SCHEMA,
        "veridifr": calibration.veridifr,
        "created": calibration.created,
        "model": calibration.model,
        "weights": calibration.weights,
        "reference_settings": dict(calibration.reference_settings),
        "sampling": dict(calibration.sampling),
        "statistic": {
            "name": statistic.name,
            "sigma": statistic.sigma,
            "epsilon": statistic.epsilon,
            "multiples": list(statistic.multiples),
            "replaced": statistic.replaced,
        },
        "detect_sigma": calibration.detect_sigma,
        "edges": list(calibration.edges),
        "stacks": [
            {
                "name": stack.name,
                "contract": stack.contract,
                "engine": dict(stack.engine),
                "traces_digest": stack.traces_digest,
                "fit_sequences": stack.fit_sequences,
                "sequences": [
                    {
                        "id": sequence.id,
                        "prompt": sequence.prompt,
                        "tokens": sequence.tokens,
                        "exact_match": round(sequence.exact_match, 6),
                        "scores": list(sequence.scores),
                        "deviating": list(sequence.deviating),
                    }
                    for sequence in stack.sequences
                ],
            }
            for stack in calibration.stacks
        ],
    }


def read_calibration(path: Path) -> tuple[Calibration, str]:
    """The calibration in a file, and the file's SHA-256 (hex); `CalibrationError` names file and field."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise CalibrationError(f"{path}: over {MAX_BYTES} bytes, which no calibration needs")
        data = path.read_bytes()
    except OSError as error:
        raise CalibrationError(f"{path}: cannot read it: {error.strerror}") from error
    try:
        value = parse_json(data, error=CalibrationError)
        found = from_dict(value)
    except CalibrationError as error:
        raise CalibrationError(f"{path}: {error}") from error
    return found, hashlib.sha256(data).hexdigest()


def from_dict(value: object) -> Calibration:
    """A calibration from its JSON object, every field checked."""
    top = _Fields("calibration", value)
    if top.text("schema") != SCHEMA:
        raise CalibrationError(f"schema: got {top.text('schema')[:60]!r}, expected {SCHEMA!r}")
    edges = tuple(top.integers("edges"))
    if list(edges) != sorted(set(edges)) or not edges or edges[0] < 1:
        raise CalibrationError("edges: expected ascending lengths of at least 1")
    found = Calibration(
        veridifr=top.text("veridifr"),
        created=top.text("created"),
        model=top.text("model"),
        weights=top.text("weights"),
        reference_settings=top.mapping("reference_settings"),
        sampling=top.mapping("sampling"),
        statistic=_statistic(top.take("statistic")),
        detect_sigma=top.number("detect_sigma", 1e-9, 1e6),
        edges=edges,
        stacks=tuple(_stack(i, entry, edges) for i, entry in enumerate(top.sequence("stacks"))),
    )
    top.finish()
    if not found.stacks:
        raise CalibrationError("stacks: got none")
    return found


def _statistic(value: object) -> LikelihoodRatio:
    fields = _Fields("statistic", value)
    if fields.text("name") != "noise_mixture":
        raise CalibrationError(f"statistic.name: got {fields.text('name')[:60]!r}, expected 'noise_mixture'")
    found = LikelihoodRatio(
        sigma=fields.number("sigma", 1e-9, 1e6),
        epsilon=fields.number("epsilon", 1e-12, 0.5),
        multiples=tuple(fields.numbers("multiples", 1e-3, 1e6)),
        replaced=fields.number("replaced", 1e-6, 1.0),
    )
    fields.finish()
    if not found.multiples:
        raise CalibrationError("statistic.multiples: got none")
    return found


def _stack(index: int, value: object, edges: Sequence[int]) -> Stack:
    where = f"stacks[{index}]"
    fields = _Fields(where, value)
    digest = None if fields.take("traces_digest") is None else fields.text("traces_digest")
    found = Stack(
        name=fields.text("name"),
        contract=fields.text("contract"),
        engine=fields.mapping("engine"),
        traces_digest=digest,
        fit_sequences=fields.integer("fit_sequences"),
        sequences=tuple(
            _sequence(f"{where}.sequences[{i}]", entry, edges) for i, entry in enumerate(fields.sequence("sequences"))
        ),
    )
    fields.finish()
    if not found.sequences:
        raise CalibrationError(f"{where}.sequences: got none")
    return found


def _sequence(where: str, value: object, edges: Sequence[int]) -> NullSequence:
    fields = _Fields(where, value)
    found = NullSequence(
        id=fields.text("id"),
        prompt=fields.text("prompt"),
        tokens=fields.integer("tokens"),
        exact_match=fields.number("exact_match", 0.0, 1.0),
        scores=tuple(fields.numbers("scores", -1e6, 1e6)),
        deviating=tuple(fields.numbers("deviating", -1e6, 1e6)),
    )
    fields.finish()
    reached = sum(edge <= found.tokens for edge in edges)
    for name in ("scores", "deviating"):
        if len(getattr(found, name)) != reached:
            raise CalibrationError(f"{where}.{name}: got {len(getattr(found, name))} values, expected {reached}")
    return found


class _Fields:
    """Takes the fields of one JSON object, each by its type, and refuses what is left over."""

    def __init__(self, where: str, value: object) -> None:
        if not isinstance(value, Mapping):
            raise CalibrationError(f"{where}: expected an object")
        self._where = where
        self._left = dict(value)
        self._seen: dict[str, Any] = {}

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
