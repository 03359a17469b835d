"""From final hidden states to evidence: logits chunk by chunk, listed as soon as they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np
import torch

from veridifr.contracts.common import V1_ORDER
from veridifr.evidence import Evidence, evidence_key, listing_temperature
from veridifr.processors import needs_processing, process
from veridifr.references import ReferenceSettings, fused_listing
from veridifr.references.listing import Listing, joined, list_candidates
from veridifr.trace import Sampling, Trace

_POINTWISE = V1_ORDER[: V1_ORDER.index("temperature")]
_CACHED_ELEMENTS = 2**19
_LISTING_THREADS = 8


class RowLister:
    """Lists what the output tokens of traces could have been. `head` turns final hidden states into logits."""

    def __init__(
        self,
        head: Callable[[torch.Tensor], torch.Tensor],
        vocab_size: int,
        eos_ids: tuple[int, ...],
        *,
        device: torch.device,
        settings: ReferenceSettings,
    ) -> None:
        self._head = head
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._device = device
        self._settings = settings

    def evidence(self, trace: Trace, hidden_TD: torch.Tensor) -> Evidence:
        """The evidence for a whole trace; `hidden_TD` are the states that its output tokens are drawn from."""
        tokens = len(trace.output_token_ids)
        return evidence_of(trace, self._vocab_size, joined(self.listings(trace, hidden_TD, 0), tokens))

    def listings(self, trace: Trace, hidden_RD: torch.Tensor, first: int) -> Iterator[Listing]:
        """The rows of output tokens from step `first` on, listed chunk by chunk."""
        tokens = len(hidden_RD)
        claimed_R = torch.from_numpy(trace.output_token_ids[first : first + tokens].astype(np.int64)).to(self._device)
        rows = max(1, self._settings.logit_elements // self._vocab_size)
        for start in range(0, tokens, rows):
            stop = min(tokens, start + rows)
            logits_RV = self._head(hidden_RD[start:stop]).float()
            processed_RV = logits_RV
            if needs_processing(trace.sampling):
                processed_RV = _processed(logits_RV, trace, first + start, self._eos_ids)
            yield from self._list_rows(trace.sampling, logits_RV, processed_RV, claimed_R[start:stop])

    def _list_rows(
        self, sampling: Sampling, logits_RV: torch.Tensor, processed_RV: torch.Tensor, claimed_R: torch.Tensor
    ) -> Iterator[Listing]:
        """List a chunk in blocks that fit a CPU's cache, several at a time; on a GPU in one."""
        rows, vocab = logits_RV.shape
        cpu = self._device.type == "cpu"
        if cpu and processed_RV is logits_RV and fused_listing.applies(sampling):
            yield fused_listing.list_rows(
                logits_RV.numpy(),
                claimed_R.numpy(),
                sampling,
                tail_mass=self._settings.tail_mass,
                list_bytes=self._settings.list_bytes,
                threads=torch.get_num_threads(),
            )
            return
        block = min(rows, max(1, _CACHED_ELEMENTS // vocab)) if cpu else rows
        firsts = range(0, rows, block)
        threads = min(torch.get_num_threads(), len(firsts), _LISTING_THREADS) if cpu else 1
        spare: SimpleQueue[torch.Tensor] = SimpleQueue()
        for _ in range(threads):
            spare.put(torch.empty_like(logits_RV[:block]))

        def part(first: int) -> Listing:
            logits = logits_RV[first : first + block]
            scratch = spare.get()
            try:
                with torch.inference_mode():  # each thread has its own mode
                    return list_candidates(
                        logits,
                        logits if processed_RV is logits_RV else processed_RV[first : first + block],
                        claimed_R[first : first + block],
                        sampling,
                        tail_mass=self._settings.tail_mass,
                        list_bytes=self._settings.list_bytes,
                        scratch_RV=scratch[: len(logits)],
                    )
            finally:
                spare.put(scratch)

        yield from map(part, firsts) if threads == 1 else _side_by_side(part, firsts, threads)


def _side_by_side(part: Callable[[int], Listing], firsts: Sequence[int], threads: int) -> Iterator[Listing]:
    """The listings in order, made on several threads with torch's own threads off.

    In passes as short as these torch's threads mostly wait for each other, on a busy machine for long.
    """
    usual = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield from pool.map(part, firsts)
    finally:
        torch.set_num_threads(usual)  # what a thread sets for itself is also the default of later ones


def _processed(logits_RV: torch.Tensor, trace: Trace, start: int, eos_ids: tuple[int, ...]) -> torch.Tensor:
    """Logits after penalties, bias and bans, over whole rows: such settings can lift any token into the candidates."""
    rows, vocab = logits_RV.shape
    values = process(
        _POINTWISE,
        trace.sampling,
        trace.prompt_token_ids,
        trace.output_token_ids,
        np.arange(start, start + rows, dtype=np.int64),
        np.repeat(np.arange(rows, dtype=np.int64), vocab),
        np.tile(np.arange(vocab, dtype=np.int64), rows),
        logits_RV.cpu().double().numpy().reshape(-1),
        eos_ids,
    )
    return torch.from_numpy(np.asarray(values, dtype=np.float32).reshape(rows, vocab)).to(logits_RV.device)


def evidence_of(trace: Trace, vocab_size: int, listing: Listing) -> Evidence:
    """The listing of all output tokens of a trace, as evidence."""
    return Evidence(
        trace_id=trace.id,
        trace_digest=evidence_key(trace),
        vocab_size=vocab_size,
        temperature=listing_temperature(trace.sampling),
        offsets_T1=np.concatenate([[0], np.cumsum(listing.counts_R)]).astype(np.int64),
        ids_N=listing.ids_N,
        logits_N=listing.logits_N,
        lse_T=listing.lse_R,
        rank_T=listing.rank_R,
        floor_T=listing.floor_R,
        tail_T=listing.tail_R,
        hot_tail_T=listing.hot_tail_R,
    )
