"""The front end's records: which engine requests belong to which HTTP request, and how they ended.

A record's id is the only key to it: 256 random bits, given to the requester alone. The engine requests behind it get
random names too, so that no id that a client may choose reaches another client's tokens.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

from veridifr.vllm.server_options import ServerOptions

MAX_REQUESTS = 64
"""Engine requests of one HTTP request; a beam search makes more, and has no record."""
Standing = Literal["running", "aborted", "done"]


@dataclass(eq=False)
class Watched:
    """One engine request. `name` is its id in the engine, `shown` the id that the client sees in its response."""

    name: str
    shown: str
    delta: bool
    """Whether the engine yields only what is new."""
    several: bool
    """Whether it asks for n > 1 outputs."""
    prompt: Any = None
    outputs: dict[int, SimpleNamespace] = field(default_factory=dict)
    finished: bool = False
    closed: bool = False

    def see(self, output: Any) -> None:
        """What the engine yields: vLLM's `RequestOutput`, whole or the part that is new."""
        self.finished = bool(output.finished)
        self.prompt = output.prompt_token_ids if self.prompt is None else self.prompt
        for part in output.outputs:
            index = int(part.index)
            known = self.outputs.setdefault(
                index, SimpleNamespace(index=index, token_ids=[], finish_reason=None, stop_reason=None)
            )
            if self.delta:
                known.token_ids.extend(part.token_ids)
            else:
                known.token_ids = list(part.token_ids)
            known.finish_reason = part.finish_reason or known.finish_reason
            known.stop_reason = part.stop_reason if part.stop_reason is not None else known.stop_reason

    def child(self, output: Any) -> int | None:
        """The number of one output among several; None for a request of one."""
        return int(output.index) if self.several else None

    @property
    def standing(self) -> Standing:
        """Whether all of its tokens are there, or never will be."""
        if any(output.finish_reason in ("abort", "error") for output in self.outputs.values()):
            return "aborted"
        if self.finished:
            return "done"
        return "aborted" if self.closed else "running"

    @property
    def tokens(self) -> int:
        """Output tokens so far."""
        return sum(len(output.token_ids) for output in self.outputs.values())


@dataclass(eq=False)
class Kept:
    """One HTTP request's record. `body` is the answer once it was put together."""

    id: str
    made: float
    requests: list[Watched] = field(default_factory=list)
    too_many: bool = False
    counted: int = 0
    body: dict[str, Any] | None = None

    @property
    def standing(self) -> Standing:
        """That of the request that is worst off."""
        found = {request.standing for request in self.requests}
        return "aborted" if "aborted" in found else "running" if "running" in found else "done"


class Ticket:
    """Stands for one HTTP request while it runs; it has a record from the first engine request on."""

    def __init__(self, records: Records) -> None:
        self._records = records
        self.record: Kept | None = None

    def watch(self, shown: str, *, delta: bool, several: bool) -> Watched:
        """A new engine request of this HTTP request."""
        if self.record is None:
            self.record = self._records.new()
        request = Watched(name=f"{shown}-{secrets.token_hex(16)}", shown=shown, delta=delta, several=several)
        if len(self.record.requests) < MAX_REQUESTS:
            self.record.requests.append(request)
        else:
            self.record.too_many = True
        return request

    def count(self, request: Watched) -> None:
        """A request of this HTTP request has ended: its tokens count against the bound."""
        if self.record is not None:
            self._records.count(self.record, request.tokens)


class Records:
    """All records of a server, bounded in number, tokens and age. `now` gives seconds."""

    def __init__(self, options: ServerOptions, now: Callable[[], float]) -> None:
        self._options = options
        self._now = now
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._gone: OrderedDict[str, str] = OrderedDict()
        self._tokens = 0

    def new(self) -> Kept:
        """A record with a fresh id."""
        record = Kept(id=secrets.token_urlsafe(32), made=self._now())
        self._kept[record.id] = record
        self._expire()
        return record

    def find(self, record_id: str) -> Kept | str | None:
        """The record; or why it is gone; or None for an id that was never given out, or long ago."""
        self._expire()
        return self._kept.get(record_id) or self._gone.get(record_id)

    def remove(self, record: Kept, reason: str) -> None:
        """Forget a record, and remember why."""
        if self._kept.pop(record.id, None) is not None:
            self._gone[record.id] = reason
            self._tokens -= record.counted
        while len(self._gone) > 4 * self._options.max_records:
            self._gone.popitem(last=False)

    def count(self, record: Kept, tokens: int) -> None:
        """Count output tokens of a record against the bound."""
        if record.id in self._kept:
            record.counted += tokens
            self._tokens += tokens
            self._expire()

    def _expire(self) -> None:
        oldest = self._now() - self._options.capture.ttl_seconds
        while self._kept:
            record = next(iter(self._kept.values()))
            if record.made < oldest:
                self.remove(record, "expired")
            elif len(self._kept) > self._options.max_records or self._tokens > self._options.capture.max_tokens:
                self.remove(record, "dropped: more records or tokens were made than are kept")
            else:
                return
