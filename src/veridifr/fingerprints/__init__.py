"""Fingerprints of activations: projections of hidden states in a few bytes, and the TOPLOC baseline beside them.

Provider and verifier share `spec`, `projection`, `encoding` and `wire`; `capture` takes hidden states from a torch
model; `attached` puts a fingerprint into a trace; `score` is the verifier's; `merkle` commits to several taps, and
`opened` puts roots and openings into traces.
docs/fingerprints.md is the norm.
"""

from veridifr.fingerprints.attached import fingerprint_of, with_fingerprint
from veridifr.fingerprints.encoding import Codes, Intervals, to_codes, to_intervals
from veridifr.fingerprints.opened import Openings, with_opening, with_root
from veridifr.fingerprints.projection import matrix_digest, project, projection_matrix, tolerance
from veridifr.fingerprints.score import ErrorScale, combine, fit_scale, ratios
from veridifr.fingerprints.spec import FINAL, FingerprintSpec
from veridifr.fingerprints.wire import Fingerprint, fingerprint, from_base64, from_bytes, to_base64, to_bytes

__all__ = [
    "FINAL",
    "Codes",
    "ErrorScale",
    "Fingerprint",
    "FingerprintSpec",
    "Intervals",
    "Openings",
    "combine",
    "fingerprint",
    "fingerprint_of",
    "fit_scale",
    "from_base64",
    "from_bytes",
    "matrix_digest",
    "project",
    "projection_matrix",
    "ratios",
    "to_base64",
    "to_bytes",
    "to_codes",
    "to_intervals",
    "tolerance",
    "with_fingerprint",
    "with_opening",
    "with_root",
]
