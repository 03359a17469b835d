"""Every exception that veridifr raises on purpose.

VeridifrError
├── InputError            what was read cannot be used: names the file, line and field
│   ├── TraceError        a trace or a file of traces
│   ├── EvidenceError     an evidence file
│   ├── CalibrationError  a calibration, or one that was made for something else
│   ├── FingerprintError  a fingerprint, its specification or its commitment
│   └── ReferenceError    the reference model cannot be loaded or does not fit the traces
├── UnsupportedError      a contract or a setting that cannot be honoured: names the setting
│   └── UndecidedSamplerError  an engine record that does not tell which noise was drawn
└── MissingExtraError     an optional dependency is not installed

Divergence is never an exception: it is a `Finding`.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class VeridifrError(Exception):
    """Base of all errors of this package."""


class InputError(VeridifrError):
    """Input that cannot be used. The message names the place: ``file:line: field: what is wrong``."""


class TraceError(InputError):
    """A trace, or a file of traces, that is malformed."""


class EvidenceError(InputError):
    """An evidence file that is malformed or belongs to other traces."""


class CalibrationError(InputError):
    """A calibration that is malformed, or that was made for another model, contract or sampling."""


class FingerprintError(InputError):
    """A fingerprint that is malformed, or that does not fit its specification, tokens or commitment."""


class ReferenceError(InputError):
    """A reference model that cannot be loaded, or that the traces do not fit."""


class UnsupportedError(VeridifrError):
    """A contract or setting that cannot be honoured. `setting` is its name as the trace spells it."""

    def __init__(self, setting: str, reason: str) -> None:
        super().__init__(f"{setting}: {reason}")
        self.setting = setting
        self.reason = reason


class UndecidedSamplerError(UnsupportedError):
    """An engine record that does not tell which noise was drawn: the tokens may still tell it."""


class MissingExtraError(VeridifrError):
    """An optional dependency is missing; the message gives the install command."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or raise `MissingExtraError` with the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{module} is needed here ({error}): pip install 'veridifr[{extra}]'") from error
