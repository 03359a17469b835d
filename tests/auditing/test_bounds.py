"""An honest provider and a reference that lists too little: undecided, with the way out named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from recorded import Recorded
from veridifr import Verdict, audit
from veridifr.evidence import Evidence
from veridifr.references.recorded import RecordedReference
from veridifr.trace import Trace


class ShortOfBreath(RecordedReference):
    """Recorded evidence whose listing leaves every third token open."""

    def evidence(self, traces: Sequence[Trace]) -> Iterator[Evidence]:
        for found in super().evidence(traces):
            open_T = np.arange(found.tokens) % 3 == 0
            best_T = np.maximum.reduceat(found.logits_N, found.offsets_T1[:-1])
            yield replace(
                found,
                floor_T=np.where(open_T, best_T, found.floor_T).astype(np.float32),
                tail_T=np.where(open_T, 0.5, found.tail_T),
                hot_tail_T=np.where(open_T, 0.7, found.hot_tail_T),
            )


def test_bounds_leave_an_audit_undecided_and_say_what_to_do(recorded: Recorded) -> None:
    found = audit(recorded["v1"], ShortOfBreath(Path(recorded.file)), recorded.calibration)
    assert found.verdict is Verdict.UNDECIDED
    assert found.tokens_by_status["bound"] > found.tokens_by_status["missing"] == 0
    assert found.coverage is not None and 0.6 < found.coverage < 0.7
    assert found.next_step is not None and "let the reference list more (--top-logprobs)" in found.next_step


def test_missing_tokens_are_still_asked_for_again(recorded: Recorded) -> None:
    traces = [replace(t, output_token_ids=t.output_token_ids[:30]) for t in recorded["v1"]]
    found = audit(traces, ShortOfBreath(Path(recorded.file)), recorded.calibration, requests=recorded["v1"])
    assert found.next_step is not None and "--top-logprobs" not in found.next_step
