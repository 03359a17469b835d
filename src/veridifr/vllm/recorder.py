"""The worker's side of capture: takes what each step sampled, and gives out what was captured of a request.

Its methods run in the engine's own thread, between steps. What goes wrong in it stops the capture, never the engine:
`fault` then says why, and everything asked for afterwards is refused with that reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import numpy as np

from veridifr.errors import VeridifrError
from veridifr.fingerprints.projector import Projector
from veridifr.fingerprints.spec import FingerprintSpec
from veridifr.traces.codec import sampling_to_dict
from veridifr.traces.importers import sampling_from_vllm
from veridifr.vllm.captured import Captured, Name, Store, check_names
from veridifr.vllm.options import CaptureOptions
from veridifr.vllm.staging import Int64, Staging, Step

_P = ParamSpec("_P")
_T = TypeVar("_T")

_FAULTS = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, VeridifrError)
MOST_REQUESTS = 65536
"""Requests of one call."""
_STAGED_BYTES = 2**24


class Recorder:
    """One engine's capture. `draws_seeds` is whether the engine draws a seed, and replays from it, for a request that
    brought none."""

    def __init__(
        self,
        spec: FingerprintSpec | None,
        options: CaptureOptions,
        device: Any,
        *,
        most_rows: int,
        draws_seeds: bool,
        random_suffix: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        projector = None if spec is None else Projector(spec, device)
        k = 0 if spec is None else spec.k
        self._staging = Staging(projector, k, _capacity(most_rows, k), device)
        self._store = Store(options, now, random_suffix=random_suffix)
        self._draws_seeds = draws_seeds
        self.fault: str | None = None

    def guard(self, function: Callable[_P, _T], *args: _P.args, **fields: _P.kwargs) -> _T | None:
        """Call from within a step: the engine goes on whatever happens, the capture does not."""
        if self.fault is not None:
            return None
        try:
            return function(*args, **fields)
        except _FAULTS as error:
            self.fault = f"capture stopped: {type(error).__name__}: {str(error)[:300]}"
            return None

    def admit(self, new_requests: list[Any]) -> None:
        """The requests that a step brings to the worker."""
        for request in new_requests:
            self._store.admit(request)

    def project(self, hidden_RD: Any) -> None:
        """The hidden states of a step's rows, before it samples: the device is still at the forward pass then, so that
        what this launches and sorts costs the host's time only."""
        self._staging.project(hidden_RD)
        if self._staging.waiting:
            for rows in self._staging.ready():
                self._store.add(rows)

    def record(self, request_ids: list[str], indices: Int64, tokens: Any, seeds: Int64 | None = None) -> None:
        """What the step sampled for the rows projected last: the output index of each (-1: its token is discarded), the
        tokens as a device tensor or as lists, and the seeds where the engine drew or keeps one for each row."""
        on_host = tokens if isinstance(tokens, list) else None
        step = Step(request_ids=request_ids, indices=indices, tokens=on_host, seeds=seeds)
        self._staging.add(step, None if on_host is not None else tokens)

    def take(self, requests: object, *, remove: bool) -> list[dict[str, Any]]:
        """What was captured of requests, given as [id, child or None, output tokens]: one answer each, in order.

        An answer's `status` is "ok", "unknown", "evicted", "ambiguous", "incomplete", "refused" or "stopped", and but
        for "ok" there is a `reason`. `remove` forgets those that were found.
        """
        wanted = check_names(requests, MOST_REQUESTS)
        self.guard(self._settle)
        if self.fault is not None:
            return [_answer("stopped", self.fault) for _ in wanted]
        answers = []
        for name, tokens in wanted:
            found = self._store.find(name)
            if isinstance(found, str):
                answers.append(_answer(found, _WHY[found]))
                continue
            answers.append(self._answer(found[1], name, tokens))
            if remove:
                self._store.remove(found[0])
        return answers

    def drop(self, ids: list[Name]) -> None:
        """Forget requests, for example those that were aborted."""
        for name in ids:
            found = self._store.find(name)
            if not isinstance(found, str):
                self._store.remove(found[0])

    def state(self) -> dict[str, Any]:
        """Counters: requests and output tokens kept, requests evicted, and the fault that stopped the capture."""
        self.guard(self._settle)
        return {
            "requests": len(self._store),
            "tokens": self._store.rows,
            "evicted": self._store.evicted,
            "fault": self.fault,
        }

    def _settle(self) -> None:
        for rows in self._staging.everything():
            self._store.add(rows)
        self._store.evict()

    def _answer(self, request: Captured, name: Name, tokens: int) -> dict[str, Any]:
        if request.refused is not None:
            return _answer("refused", request.refused)
        tokens_T, values_TK, seen = request.output(tokens, 0 if self._spec is None else self._spec.k)
        if seen < tokens:
            return _answer("incomplete", f"{seen} of {tokens} tokens were captured")
        try:
            sampling = sampling_to_dict(sampling_from_vllm(request.params))
        except VeridifrError as error:
            return _answer("refused", str(error))
        sampling.update(request.extra)
        seed, reason = self._seed(request)
        if seed is not None:
            sampling["seed"] = seed - (name[1] or 0)  # child j draws from seed + j
        return {
            "status": "ok",
            "reason": reason,
            "prompt": np.asarray(request.prompt, dtype="<i4").tobytes(),
            "tokens": tokens_T.astype("<i4").tobytes(),
            "values": None if self._spec is None else values_TK.astype("<f4").tobytes(),
            "sampling": sampling,
        }

    def _seed(self, request: Captured) -> tuple[int | None, str | None]:
        """The seed that a request was sampled from, or why it cannot be known."""
        if request.params.seed is not None:
            return int(request.params.seed), None
        if not self._draws_seeds:
            return None, "no seed was given, and this engine's noise for such requests cannot be replayed"
        if len(request.seeds) != 1:
            return None, f"no seed was given, and the engine drew {len(request.seeds)} one after another"
        return next(iter(request.seeds)), None


_WHY = {
    "unknown": "no such request was captured",
    "evicted": "dropped from the worker's buffer, which is bounded in number, tokens and age",
    "ambiguous": "several requests had this id",
}


def _capacity(most_rows: int, k: int) -> int:
    """Rows that wait on the device: sorting them by request costs as much for 10 steps as for 100. Memory bounds it."""
    return max(4 * most_rows, min(128 * most_rows, _STAGED_BYTES // (4 * k + 4)))


def _answer(status: str, reason: str) -> dict[str, Any]:
    return {"status": status, "reason": reason}
