"""Projections of a transformers model's hidden states, taken while it runs: the provider's and the verifier's side.

    with Capture(model, spec, starts=[width - 1] * batch) as captured:
        model.generate(...)
    found = captured.fingerprint(row, tokens)

Only the rows asked for are projected, on the model's device, in float32. torch is imported late.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from veridifr.errors import FingerprintError, require
from veridifr.fingerprints.projector import Projector
from veridifr.fingerprints.spec import FINAL, FingerprintSpec, layer_of
from veridifr.fingerprints.wire import Fingerprint, fingerprint


class Capture:
    """Context manager around forward or generate calls of one batch.

    `starts`: for each row, the column of its padded input whose hidden state produces output token 0: the last prompt
    token's. Left-padded generate: input width - 1 for every row. Right-padded forward: prompt length - 1.
    `counts`: output tokens of each row, where they are known beforehand (forward). In generate they are not: ask for
    the first `tokens` afterwards. Forward calls are taken as consecutive columns, as a key-value cache makes them.
    `keep_states`: also keep the hidden states themselves, on the device, for `apart`.

    Beam search reorders rows and assisted generation rewinds: the first cannot be noticed here, so do not use it; the
    second, and generation without a cache, raise `FingerprintError` from within the forward call.
    """

    def __init__(
        self,
        model: Any,
        spec: FingerprintSpec,
        *,
        starts: Sequence[int],
        counts: Sequence[int] | None = None,
        keep_states: bool = False,
    ) -> None:
        if counts is not None and len(counts) != len(starts):
            raise FingerprintError(f"counts: got {len(counts)}, expected one for each of {len(starts)} rows")
        size = int(model.config.get_text_config().hidden_size)
        if size != spec.hidden_size:
            raise FingerprintError(f"spec.hidden_size: got {spec.hidden_size}, the model's is {size}")
        self._spec = spec
        self._starts = [int(start) for start in starts]
        self._counts = None if counts is None else [int(count) for count in counts]
        self._projector = Projector(spec, next(model.parameters()).device)
        self._modules = [_module(model, tap) for tap in spec.taps]
        self._width = spec.k
        self._columns = [0] * len(spec.taps)
        self._rows: list[list[tuple[list[int], list[int], Any]]] = [[] for _ in spec.taps]
        self._states: list[list[Any]] | None = [[] for _ in spec.taps] if keep_states else None
        self._handles: list[Any] = []

    def __enter__(self) -> Capture:
        for tap, module in enumerate(self._modules):
            self._handles.append(module.register_forward_hook(self._hook(tap)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def values(self, row: int, tokens: int) -> list[npt.NDArray[np.float32]]:
        """Projections of a row's first `tokens` output tokens, per tap [entries, k]. `FingerprintError` if the model
        ran over fewer."""
        if self._counts is not None and tokens > self._counts[row]:
            raise FingerprintError(f"tokens: got {tokens}, row {row} was captured for {self._counts[row]}")
        entries = self._spec.entries(tokens)
        out = []
        for tap, pieces in zip(self._spec.taps, self._rows, strict=True):
            found_FK = np.zeros((entries, self._width), dtype=np.float32)
            seen_F = np.zeros(entries, dtype=bool)
            for rows, numbers, projected in pieces:
                keep = [i for i, (r, n) in enumerate(zip(rows, numbers, strict=True)) if r == row and n < entries]
                if keep:
                    places = [numbers[i] for i in keep]
                    found_FK[places] = projected.cpu().numpy()[keep]
                    seen_F[places] = True
            if not seen_F.all():
                raise FingerprintError(f"tap {tap}, row {row}: {int(seen_F.sum())} of {entries} entries were captured")
            out.append(found_FK)
        return out

    def apart(self, other: Capture) -> Capture:
        """How far the hidden states of two runs over one batch lie apart: `values` of what is returned gives the root
        mean square of their difference over the D coordinates, [entries, 1]. Both must have been told to `keep_states`.
        """
        if self._states is None or other._states is None or self._starts != other._starts:
            raise FingerprintError("apart: the hidden states of both runs over one batch are needed")
        found = copy.copy(self)
        found._width = 1
        found._rows = [
            [
                (rows, numbers, (mine.float() - theirs.float()).square().mean(dim=1, keepdim=True).sqrt())
                for (rows, numbers, _), mine, theirs in zip(pieces, kept, others, strict=True)
            ]
            for pieces, kept, others in zip(self._rows, self._states, other._states, strict=True)
        ]
        return found

    def fingerprint(self, row: int, tokens: int) -> Fingerprint:
        """The fingerprint of a row's first `tokens` output tokens."""
        return fingerprint(self._spec, tokens, self.values(row, tokens))

    def _hook(self, tap: int) -> Any:
        def hook(*call: Any) -> None:  # module, arguments, output
            output = call[-1]
            hidden_BSD = getattr(output, "last_hidden_state", None)
            if hidden_BSD is None:
                hidden_BSD = output[0] if isinstance(output, tuple | list) else output
            self._take(tap, hidden_BSD)

        return hook

    def _take(self, tap: int, hidden_BSD: Any) -> None:
        """Project what one forward call holds of the rows asked for, and leave it on the device."""
        batch, width = int(hidden_BSD.shape[0]), int(hidden_BSD.shape[1])
        if batch != len(self._starts):
            raise FingerprintError(f"batch: got {batch} rows, expected {len(self._starts)}")
        first = self._columns[tap]
        if self._counts is None and width > 1 and first > max(self._starts):
            raise FingerprintError("generate: several tokens in one step: speculative, or without a key-value cache")
        self._columns[tap] = first + width
        rows, columns, numbers = [], [], []
        for row, start in enumerate(self._starts):
            stop = first + width if self._counts is None else min(first + width, start + self._counts[row])
            skip = -(-max(first - start, 0) // self._spec.every)
            for entry in range(skip, -(-max(stop - start, 0) // self._spec.every)):
                rows.append(row)
                columns.append(start + entry * self._spec.every - first)
                numbers.append(entry)
        if rows:
            states = hidden_BSD[rows, columns].detach()
            self._rows[tap].append((rows, numbers, self._projector.project(states)))
            if self._states is not None:
                self._states[tap].append(states)


def _module(model: Any, tap: str) -> Any:
    """The module whose output is the tap: the model without its head, whose output comes after the final norm, or one
    decoder layer."""
    torch = require("torch", "hf")
    base = model.base_model
    if tap == FINAL:
        return base
    layers = int(model.config.get_text_config().num_hidden_layers)
    lists = [m for m in base.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers]
    number = layer_of(tap)
    if len(lists) != 1 or number is None:
        raise FingerprintError(f"spec.taps: {tap}: cannot tell which modules are the {layers} decoder layers")
    if number >= layers:
        raise FingerprintError(f"spec.taps: got {tap}, the model has {layers} decoder layers")
    return lists[0][number]
