"""What the worker keeps of each request until it is taken: a bounded store, oldest out first, evictions remembered."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from veridifr.errors import InputError
from veridifr.vllm.options import CaptureOptions
from veridifr.vllm.staging import Float32, Int32, Int64, Rows

Name = tuple[str, int | None]
"""A request's id as its caller knows it, and the child's number where n > 1."""

_SUFFIX = re.compile(r"(.+)-[0-9a-f]{8}\Z", re.DOTALL)
"""vLLM appends 8 random hexadecimal digits (vllm/v1/engine/input_processor.py: ``assign_request_id``)."""
_CHILD = re.compile(r"(0|[1-9][0-9]{0,4})_(.+)\Z", re.DOTALL)
"""Child j of n > 1 is ``{j}_{parent}`` (vllm/v1/engine/parallel_sampling.py: ``get_child_info``)."""


@dataclass(eq=False)
class Captured:
    """One request in the engine. `prompt` and `params` are the engine's own objects, which it does not change."""

    prompt: list[int] | None
    params: Any
    extra: dict[str, Any]
    touched: float
    pieces: list[tuple[Int64, Int32, Float32 | None]] = field(default_factory=list)
    rows: int = 0
    seeds: set[int] = field(default_factory=set)
    refused: str | None = None
    """Why there can be no record, where that is so."""

    def output(self, tokens: int, k: int) -> tuple[Int32, Float32, int]:
        """The first `tokens` tokens, their projections [tokens, k], and how many of them were captured. A token that
        was computed again, after preemption, replaces the earlier one."""
        tokens_T = np.zeros(tokens, dtype=np.int32)
        values_TK = np.zeros((tokens, k), dtype=np.float32)
        seen_T = np.zeros(tokens, dtype=bool)
        for indices, sampled, values in self.pieces:
            keep = (indices >= 0) & (indices < tokens)
            tokens_T[indices[keep]] = sampled[keep]
            if values is not None:
                values_TK[indices[keep]] = values[keep]
            seen_T[indices[keep]] = True
        return tokens_T, values_TK, int(seen_T.sum())


class Store:
    """Requests by the engine's own id. `now` gives seconds; `random_suffix` is whether the engine appends one."""

    def __init__(self, options: CaptureOptions, now: Callable[[], float], *, random_suffix: bool) -> None:
        self._options = options
        self._now = now
        self._suffix = random_suffix
        self._requests: OrderedDict[str, Captured] = OrderedDict()
        self._names: dict[Name, set[str]] = {}
        self._gone: OrderedDict[Name, None] = OrderedDict()
        self.rows = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._requests)

    def admit(self, request: Any) -> None:
        """A request that the scheduler sends to the worker: vLLM's ``NewRequestData``. The V2 runner sends it again
        when it goes on after preemption; a longer prompt under the same id is an input stream, which is refused."""
        known = self._requests.get(request.req_id)
        if known is not None:
            if known.prompt != request.prompt_token_ids:
                known.refused = "the prompt was sent in parts, as a stream"
            return
        extra: dict[str, Any] = {}
        if request.lora_request is not None:
            extra["lora_request"] = str(getattr(request.lora_request, "lora_name", "unnamed"))
        if request.mm_features:
            extra["multi_modal_inputs"] = len(request.mm_features)
        refused = None
        if request.prompt_token_ids is None:
            refused = "the prompt was given as embeddings"
        elif request.sampling_params is None:
            refused = "nothing is sampled in a pooling request"
        self._requests[request.req_id] = Captured(
            prompt=request.prompt_token_ids,
            params=request.sampling_params,
            extra=extra,
            touched=self._now(),
            refused=refused,
        )
        for name in self._names_of(request.req_id):
            self._names.setdefault(name, set()).add(request.req_id)
        self.evict()

    def add(self, rows: Rows) -> None:
        """Sort some steps' rows by request; those of requests not admitted, or evicted since, are dropped."""
        now = self._now()
        for column, request_id in enumerate(rows.request_ids):
            request = self._requests.get(request_id)
            if request is None:
                continue
            values = None if rows.values_SRK is None else rows.values_SRK[:, column].copy()
            request.pieces.append((rows.indices_SR[:, column].copy(), rows.tokens_SR[:, column].copy(), values))
            request.rows += len(rows.indices_SR)
            request.touched = now
            self.rows += len(rows.indices_SR)
            if rows.seeds_SR is not None:
                request.seeds.update(rows.seeds_SR[:, column].tolist())
            self._requests.move_to_end(request_id)
        self.evict()

    def evict(self) -> None:
        """Drop the oldest requests beyond the bounds: those that have waited longest since their last token."""
        oldest = self._now() - self._options.ttl_seconds
        while self._requests:
            request_id, request = next(iter(self._requests.items()))
            if (
                len(self._requests) <= self._options.max_requests
                and self.rows <= self._options.max_tokens
                and request.touched >= oldest
            ):
                return
            self.remove(request_id)
            self.evicted += 1
            for name in self._names_of(request_id):
                self._gone[name] = None
                self._gone.move_to_end(name)
        while len(self._gone) > 4 * self._options.max_requests:
            self._gone.popitem(last=False)

    def find(self, name: Name) -> tuple[str, Captured] | str:
        """The request of that name, or why there is none: "unknown", "evicted", or "ambiguous" for an id that its
        callers used twice."""
        found = self._names.get(name, set())
        if len(found) > 1 or (found and name in self._gone):
            return "ambiguous"
        for request_id in found:
            return request_id, self._requests[request_id]
        return "evicted" if name in self._gone else "unknown"

    def remove(self, request_id: str) -> None:
        """Forget a request; nothing happens if it is not there."""
        request = self._requests.pop(request_id, None)
        if request is None:
            return
        self.rows -= request.rows
        for name in self._names_of(request_id):
            self._names[name].discard(request_id)
            if not self._names[name]:
                del self._names[name]

    def _names_of(self, request_id: str) -> list[Name]:
        """What callers may know a request as: ``2_x`` is child 2 of x, unless that is just what its caller named it."""
        found = _SUFFIX.match(request_id) if self._suffix else None
        outer = found[1] if found else request_id
        child = _CHILD.match(outer)
        return [(outer, None), *([(child[2], int(child[1]))] if child else [])]


def check_names(value: object, most: int) -> list[tuple[Name, int]]:
    """Names with their numbers of output tokens, from what a call brought: lists [id, child or None, tokens]."""
    if not isinstance(value, list | tuple) or len(value) > most:
        raise InputError(f"requests: expected a list of at most {most}")
    checked: list[tuple[Name, int]] = []
    for number, item in enumerate(value):
        if not isinstance(item, list | tuple) or len(item) != 3:
            raise InputError(f"requests[{number}]: expected an id, a child or None, and a number of tokens")
        name, child, tokens = item
        if not isinstance(name, str) or not (child is None or type(child) is int):
            raise InputError(f"requests[{number}]: expected an id and a child or None")
        if type(tokens) is not int or not 0 <= tokens <= 2**20:
            raise InputError(f"requests[{number}]: got {tokens!r:.40} tokens, expected 0 to {2**20}")
        checked.append(((name, child), tokens))
    return checked
