"""Records of a server: bound to one HTTP request, guarded by the server's key, bounded, and gone when deleted."""

from __future__ import annotations

import asyncio
import json

import pytest
from fake_server import RECORD, SPEC, FakeClient, got, made, run, started

from veridifr.errors import FingerprintError
from veridifr.fingerprints import fingerprint_of
from veridifr.fingerprints.merkle import Opening, check_opening
from veridifr.traces.codec import trace_from_dict
from veridifr.vllm.options import CaptureOptions
from veridifr.vllm.records import MAX_REQUESTS, Records, Ticket
from veridifr.vllm.server_options import ServerOptions


@pytest.mark.parametrize("kind", ["FINAL_ONLY", "CUMULATIVE", "DELTA"])
def test_a_record_is_a_trace(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch, served=("shown",))
        record = await made(server, {"prompts": [[4, 5]], "kind": kind})
        status, body = await got(server, record)
        assert status == 200
        (sequence,) = body["sequences"]
        trace = trace_from_dict(sequence)
        assert (trace.id, trace.model) == ("cmpl-0-0/0", "shown")
        assert trace.prompt_token_ids.tolist() == [4, 5]
        assert trace.output_token_ids.tolist() == [400, 401, 402]
        assert (trace.sampling.seed, trace.engine.sampler) == (3, "vllm-cpu-gumbel-splitmix")
        assert trace.finish_reason == "length"
        assert fingerprint_of(trace, SPEC) is not None
        assert await got(server, record) == (status, body)  # the worker gave it out once; the record stays the same

    run(work())


def test_the_commitment_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch)
        record = await made(server, {"prompts": [[4]]})
        status, _, roots = await server.ask("GET", f"/veridifr/v1/records/{record}/commitment")
        _, body = await got(server, record)
        (sequence,) = body["sequences"]
        said = sequence["commitment"]
        assert (status, json.loads(roots)["roots"]) == (200, [said["root"]])
        trace = trace_from_dict(sequence)
        found = fingerprint_of(trace, SPEC)
        assert found is not None
        opening = Opening(tap=said["tap"], payload=found.payloads[0], salt=bytes.fromhex(said["salt"]), siblings=())
        root = bytes.fromhex(said["root"])
        assert check_opening(opening, root, SPEC, 3, trace.digest()) == found.payloads[0]
        with pytest.raises(FingerprintError):
            check_opening(opening, root, SPEC, 3, "00" * 32)

    run(work())


def test_several_prompts_and_children(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch)
        record = await made(server, {"prompts": [[1], [2]], "n": 2, "kind": "DELTA"})
        _, body = await got(server, record)
        traces = [trace_from_dict(sequence) for sequence in body["sequences"]]
        assert [(t.id, t.engine.child, t.output_token_ids[0]) for t in traces] == [
            ("cmpl-0-0/0", 0, 100),
            ("cmpl-0-0/1", 1, 110),
            ("cmpl-0-1/0", 0, 200),
            ("cmpl-0-1/1", 1, 210),
        ]

    run(work())


def test_bodies_pass_through_and_only_a_header_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch)
        status, headers, body = await server.ask("POST", "/v1/completions", {"prompts": [[4]], "kind": "DELTA"})
        assert (status, body) == (200, b"[400][401][402]")
        assert headers.keys() == {"a", RECORD}
        assert len(headers[RECORD]) == 43  # 256 bits

    run(work())


def test_clients_with_one_request_id_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may choose its request id, also another's: ids of the engine are not made from it alone."""

    async def work() -> None:
        client = FakeClient()
        server = await started(monkeypatch, client)
        client.after_first = lambda: asyncio.sleep(0.01)
        bodies = [{"prompts": [[number]]} for number in range(1, 9)]
        records = await asyncio.gather(*(made(server, body, x_request_id="same") for body in bodies))
        assert len(set(records)) == 8
        for number, record in enumerate(records, start=1):
            _, body = await got(server, record)
            (sequence,) = body["sequences"]
            assert sequence["prompt_token_ids"] == [number]
            assert sequence["output_token_ids"] == [100 * number + step for step in range(3)]
            assert sequence["id"] == "same-0/0"

    run(work())


def test_a_running_request_has_no_record_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        client = FakeClient()
        server = await started(monkeypatch, client)
        entered, leave = asyncio.Event(), asyncio.Event()

        async def wait() -> None:
            entered.set()
            await leave.wait()

        client.after_first = wait
        asking = asyncio.create_task(made(server, {"prompts": [[4]]}))
        await entered.wait()
        (record,) = server.state.veridifr.records._kept
        assert await got(server, record) == (409, {"error": "the request has not finished"})
        leave.set()
        assert await asking == record
        assert (await got(server, record))[0] == 200

    run(work())


def test_an_aborted_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream is closed at once, and the worker told to forget it."""

    async def work() -> None:
        client = FakeClient()
        server = await started(monkeypatch, client)
        record = await made(server, {"prompts": [[4]], "leave": True})
        assert client.closed
        assert await got(server, record) == (410, {"error": "the request was aborted"})
        await asyncio.sleep(0)
        assert client.calls[-1][0] == "veridifr_drop"
        assert (await got(server, await made(server, {"prompts": [[4]]})))[0] == 200

    run(work())


@pytest.mark.parametrize("status", ["evicted", "unknown", "ambiguous", "incomplete", "stopped"])
def test_what_the_worker_lost_is_said(status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        client = FakeClient()
        client.lost = {"status": status, "reason": "because"}
        server = await started(monkeypatch, client)
        code, body = await got(server, await made(server, {"prompts": [[4]]}))
        assert code == 200
        (sequence,) = body["sequences"]
        assert sequence["id"] == "cmpl-0-0/0"
        assert f"{status}: because" in sequence["reason"]
        assert "output_token_ids" not in sequence

    run(work())


def test_unknown_and_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        client = FakeClient()
        server = await started(monkeypatch, client)
        assert await got(server, "nobody") == (404, {"error": "no such record"})
        assert (await got(server, "nobody", "DELETE"))[0] == 404
        record = await made(server, {"prompts": [[4]]})
        assert await got(server, record, "DELETE") == (200, {"deleted": True})
        await asyncio.sleep(0)
        assert client.calls[-1][0] == "veridifr_drop"
        assert await got(server, record) == (410, {"error": "the record was deleted"})
        assert (await got(server, record, "DELETE"))[0] == 410

    run(work())


def test_deleted_once_served(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch, delete_once_served=True)
        record = await made(server, {"prompts": [[4]]})
        answers = await asyncio.gather(*(got(server, record) for _ in range(3)))
        assert sorted(status for status, _ in answers) == [200, 410, 410]

    run(work())


def test_prompts_may_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch, keep_prompts=False)
        _, body = await got(server, await made(server, {"prompts": [[4, 5, 6]]}))
        (sequence,) = body["sequences"]
        assert "prompt_token_ids" not in sequence
        assert sequence["prompt_tokens"] == 3
        whole = trace_from_dict({**sequence, "prompt_token_ids": [4, 5, 6]})
        assert fingerprint_of(whole, SPEC) is not None

    run(work())


def test_wrong_methods_and_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch)
        for method, path, expected in (
            ("POST", "/veridifr/v1/records/x", 405),
            ("DELETE", "/veridifr/v1/records/x/commitment", 405),
            ("POST", "/veridifr/v1/engine", 405),
            ("GET", "/veridifr/v1/records", 404),
            ("GET", "/veridifr/v1/records/x/y", 404),
            ("GET", "/veridifr/v2/records/x", 404),
        ):
            assert (await server.ask(method, path))[0] == expected, (method, path)

    run(work())


def test_a_failed_request_gives_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch)
        _, headers, _ = await server.ask("POST", "/v1/completions", {"prompts": [[4]], "status": 500})
        assert RECORD not in headers
        _, headers, _ = await server.ask("POST", "/tokenize", {"prompts": []})
        assert RECORD not in headers  # nothing was generated
        assert len(server.state.veridifr.records._kept) == 0

    run(work())


def test_the_worker_refusing_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        client = FakeClient()
        server = await started(monkeypatch, client)
        record = await made(server, {"prompts": [[4]]})
        client.refused = "capture: is off"
        assert await got(server, record) == (503, {"error": "capture: is off"})
        client.refused = None
        assert (await got(server, record))[0] == 200

    run(work())


def test_beams_have_no_record(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        server = await started(monkeypatch)
        record = await made(server, {"prompts": [[4]] * (MAX_REQUESTS + 1)})
        status, body = await got(server, record)
        assert (status, "beam search" in body["error"]) == (410, True)

    run(work())


def test_records_are_bounded_in_number_tokens_and_age() -> None:
    clock = [0.0]
    options = ServerOptions(capture=CaptureOptions(ttl_seconds=10, max_tokens=50), max_records=2)
    records = Records(options, lambda: clock[0])
    first, second, third = records.new(), records.new(), records.new()
    assert "more records" in str(records.find(first.id))
    assert records.find(second.id) is second
    records.count(second, 30)
    records.count(third, 30)
    assert "more records or tokens" in str(records.find(second.id))
    assert records.find(third.id) is third
    clock[0] = 11.0
    assert records.find(third.id) == "expired"
    assert records.find("nobody") is None


def test_ids_are_not_made_from_what_a_client_sends() -> None:
    records = Records(ServerOptions(), lambda: 0.0)
    names = {Ticket(records).watch("chosen", delta=False, several=False).name for _ in range(50)}
    assert len(names) == 50
    assert all(name.startswith("chosen-") and len(name) == len("chosen-") + 32 for name in names)
