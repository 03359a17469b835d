"""The contracts for people: a table of them, and their noise for chosen tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from veridifr.contracts.base import Contract, Stream
from veridifr.contracts.common import NoiseContract
from veridifr.contracts.registry import CONTRACTS, REFUSED, get
from veridifr.errors import TraceError, UnsupportedError
from veridifr.trace import MAX_TOKEN_ID, EngineRecord, Sampling, check_ids, check_int


def noise_values(
    contract_id: str,
    *,
    seed: int,
    vocab_size: int,
    ids: Sequence[int],
    position: int | None = None,
    step: int | None = None,
    multiprocessors: int | None = None,
    threads_per_multiprocessor: int | None = None,
) -> dict[str, Any]:
    """The noise of token ids at one output token: ``{"contract", "kind", "values"}``, in the order of `ids`.

    `position` is the absolute position of the last input token (P - 1 + t), `step` the output index t. A contract that
    needs one of them ignores the other. `kind` is exponential, gumbel or uniform; a uniform contract has one value
    whatever `ids` are. `UnsupportedError` or `TraceError` names what is missing or out of range.
    """
    contract = get(contract_id)
    if not isinstance(contract, NoiseContract):
        raise UnsupportedError("sampler", f"{contract_id} draws no noise")
    check_int("vocab_size", vocab_size, 1, MAX_TOKEN_ID + 1)
    if not len(ids):
        raise TraceError("ids: got none, expected at least one token id")
    wanted = check_ids("ids", ids).astype(np.int64)
    if int(wanted.max()) >= vocab_size:
        raise TraceError(f"ids: got {int(wanted.max())}, expected below vocab_size {vocab_size}")
    index = _index(contract, position, step)
    engine = _engine(contract, multiprocessors, threads_per_multiprocessor)
    top_k = 1 if contract.family == "inverse_cdf" else None
    contract.check(Sampling(seed=seed, top_k=top_k), engine, vocab_size)
    by_position = contract.needs == "position"
    stream = Stream(seed=seed, prompt_length=index + 1 if by_position else 1, vocab_size=vocab_size, engine=engine)
    steps = np.array([0 if by_position else index], dtype=np.int64)
    values = contract.noise(stream, steps, np.zeros(len(wanted), dtype=np.int64), wanted)
    return {"contract": contract.id, "kind": contract.kind, "values": values.tolist()}


def _index(contract: NoiseContract, position: int | None, step: int | None) -> int:
    value = position if contract.needs == "position" else step
    if value is None:
        raise UnsupportedError(contract.needs, f"is needed: the noise of {contract.id} depends on it")
    return check_int(contract.needs, value, 0, MAX_TOKEN_ID)


def _engine(contract: Contract, multiprocessors: int | None, threads: int | None) -> EngineRecord:
    """A record that lets the contract draw: one sequence alone on its machine."""
    grid = multiprocessors is not None or threads is not None
    return EngineRecord(
        name=contract.id.split("-", maxsplit=1)[0],
        device="cuda" if grid else "cpu",
        multiprocessors=multiprocessors,
        threads_per_multiprocessor=threads,
        filtered_batch=False,
        batch_row=0,
        batch_size=1,
    )


def table() -> list[dict[str, Any]]:
    """One row per contract: ``id``, ``family``, ``kind``, ``needs``, ``order``, ``bound``, ``summary``, ``status``.

    `status` is "supported" or "refused"; of a refused one only `id`, `summary` (the reason) and `status` are given.
    """
    rows: list[dict[str, Any]] = [
        {
            "id": contract.id,
            "family": contract.family,
            "kind": contract.kind,
            "needs": contract.needs if isinstance(contract, NoiseContract) else None,
            "order": list(contract.order),
            "bound": contract.bound,
            "summary": contract.summary,
            "status": "supported",
        }
        for contract in CONTRACTS.values()
    ]
    return rows + [{"id": name, "summary": reason, "status": "refused"} for name, reason in REFUSED.items()]
