"""What a server answers about its records, and how it learns of the requests: around one vLLM engine client."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any

from veridifr.errors import UnsupportedError, VeridifrError
from veridifr.fingerprints import FingerprintSpec, fingerprint_of
from veridifr.fingerprints.merkle import commit, open_tap
from veridifr.fingerprints.spec import from_dict, to_dict
from veridifr.trace import Trace
from veridifr.traces.codec import engine_to_dict, trace_to_dict
from veridifr.vllm.assembly import engine_of, first_rank, reason_of, trace_of, with_child
from veridifr.vllm.options import EXTENSION, options_to_dict
from veridifr.vllm.records import Kept, Records, Ticket, Watched
from veridifr.vllm.server_options import VARIABLE, ServerOptions, server_options_from_json

FORMAT_VERSION = 1
TICKET: ContextVar[Ticket | None] = ContextVar("veridifr_ticket", default=None)
"""The HTTP request that the current task works for: what binds an engine request to its record."""

Answer = tuple[int, dict[str, Any]]
"""An HTTP status and a JSON object."""


class Service:
    """Records of what one engine client generates; made by `start`."""

    def __init__(self, client: Any, model: str, record: dict[str, Any], options: ServerOptions) -> None:
        self._client = client
        self._model = model
        self._options = options
        self._engine = engine_of(record)
        self._spec: FingerprintSpec | None = None if record["spec"] is None else from_dict(record["spec"])
        self._lock = asyncio.Lock()
        self._drops: set[asyncio.Task[Any]] = set()
        self.records = Records(options, time.monotonic)

    def watch_client(self) -> None:
        """Have every request that the server's handlers make noted under their HTTP request."""
        original = self._client.generate

        def generate(prompt: Any, sampling_params: Any, request_id: str, **fields: Any) -> Any:
            ticket = TICKET.get()
            if ticket is None:
                return original(prompt, sampling_params, request_id, **fields)
            kind = getattr(sampling_params, "output_kind", None)
            several = int(getattr(sampling_params, "n", 1)) > 1
            request = ticket.watch(request_id, delta=getattr(kind, "name", None) == "DELTA", several=several)
            return self._watched(original(prompt, sampling_params, request.name, **fields), request, ticket)

        self._client.generate = generate

    async def _watched(self, stream: Any, request: Watched, ticket: Ticket) -> AsyncIterator[Any]:
        try:
            async for output in stream:
                request.see(output)
                yield output
        finally:
            request.closed = True
            await stream.aclose()  # a request whose reader went away is aborted by closing its stream
            ticket.count(request)
            if request.standing == "aborted":
                self._drop([request])

    def engine(self) -> Answer:
        """The engine as measured, and the fingerprint specification."""
        spec = None if self._spec is None else to_dict(self._spec)
        return 200, {"version": FORMAT_VERSION, "engine": engine_to_dict(self._engine), "spec": spec}

    async def get(self, record_id: str) -> Answer:
        """A finished request's record."""
        found = self._ready(record_id)
        if not isinstance(found, Kept):
            return found
        async with self._lock:
            if self.records.find(record_id) is not found:  # another call was first
                return _gone("deleted once served")
            body = await self._body(found)
            if self._options.delete_once_served:
                self.records.remove(found, "deleted once served")
        return 200, body

    async def commitment(self, record_id: str) -> Answer:
        """The commitments to a record's fingerprints alone; the record later opens them."""
        found = self._ready(record_id)
        if not isinstance(found, Kept):
            return found
        async with self._lock:
            body = await self._body(found)
        roots = [sequence.get("commitment", {}).get("root") for sequence in body["sequences"]]
        return 200, {"version": FORMAT_VERSION, "roots": roots}

    def delete(self, record_id: str) -> Answer:
        """Forget a record and what the worker has captured for it."""
        found = self.records.find(record_id)
        if not isinstance(found, Kept):
            return _gone(found)
        self.records.remove(found, "deleted")
        if found.body is None:
            self._drop(found.requests)
        return 200, {"deleted": True}

    def _ready(self, record_id: str) -> Kept | Answer:
        found = self.records.find(record_id)
        if not isinstance(found, Kept):
            return _gone(found)
        if found.too_many:
            return 410, {"error": "the request made more engine requests than a record holds, as a beam search does"}
        if found.standing == "running":
            return 409, {"error": "the request has not finished"}
        if found.standing == "aborted":
            return 410, {"error": "the request was aborted"}
        return found

    async def _body(self, record: Kept) -> dict[str, Any]:
        """The answer, put together once: the worker forgets what it gives out."""
        if record.body is None:
            wanted = [(r, o) for r in record.requests for o in r.outputs.values()]
            names = [[r.name, r.child(o), len(o.token_ids)] for r, o in wanted]
            answers = first_rank(await self._client.collective_rpc("veridifr_take", args=(names,)))["requests"]
            pairs = zip(wanted, answers, strict=True)
            sequences = [self._sequence(request, output, answer) for (request, output), answer in pairs]
            record.body = {"version": FORMAT_VERSION, "sequences": sequences}
        return record.body

    def _sequence(self, request: Watched, output: Any, answer: dict[str, Any]) -> dict[str, Any]:
        """One sequence: a trace with its commitment and opening, or its id and the reason why there is no trace."""
        engine = with_child(self._engine, request.child(output))
        seen = SimpleNamespace(request_id=request.shown, prompt_token_ids=request.prompt, outputs=[output])
        try:
            trace = trace_of(seen, answer, model=self._model, engine=engine, spec=self._spec)
        except VeridifrError as error:
            return {"id": f"{request.shown}/{output.index}", "reason": reason_of(error)}
        found = {**trace_to_dict(trace), **_opened(trace)}
        if not self._options.keep_prompts:
            found["prompt_tokens"] = len(found.pop("prompt_token_ids"))
        return found

    def _drop(self, requests: list[Watched]) -> None:
        names = [[r.name, child, 0] for r in requests for child in (None, *r.outputs)]
        task = asyncio.get_running_loop().create_task(self._client.collective_rpc("veridifr_drop", args=(names,)))
        self._drops.add(task)
        task.add_done_callback(self._drops.discard)


async def start(client: Any, state: Any, arguments: Any) -> Service | None:
    """Switch capture on for a server's engine client, and keep the service at `state.veridifr`.

    None, and nothing is touched, for an engine started without the extension. `UnsupportedError` names what the engine
    is refused for, `InputError` an option.
    """
    config = getattr(client, "vllm_config", None)
    if config is None or config.parallel_config.worker_extension_cls != EXTENSION:
        return None
    if (getattr(arguments, "api_server_count", None) or 1) != 1:
        raise UnsupportedError("api_server_count", "expected 1: each front end would have records of its own")
    options = server_options_from_json(os.environ.get(VARIABLE))
    record = first_rank(await client.collective_rpc("veridifr_enable", args=(options_to_dict(options.capture),)))
    names = getattr(arguments, "served_model_name", None) or [config.model_config.model]
    service = Service(client, str(names[0]), record, options)
    service.watch_client()
    state.veridifr = service
    return service


def _opened(trace: Trace) -> dict[str, Any]:
    found = fingerprint_of(trace)
    if found is None:
        return {}
    secret = secrets.token_bytes(32)
    root, opening = commit(found, trace.digest(), secret), open_tap(found, trace.digest(), secret, 0)
    return {"commitment": {"root": root.hex(), "tap": 0, "salt": opening.salt.hex()}}


def _gone(found: str | None) -> Answer:
    return (404, {"error": "no such record"}) if found is None else (410, {"error": f"the record was {found}"})
