"""Projections on a device: what the hooks of engines and of transformers models share. torch is imported late."""

from __future__ import annotations

from typing import Any

import numpy as np

from veridifr.errors import FingerprintError, require
from veridifr.fingerprints.projection import projection_matrix, scale
from veridifr.fingerprints.spec import FingerprintSpec

_PRODUCTS = 2**24
"""Products held at a time while projecting (float32: 64 MiB)."""


class Projector:
    """The matrix of a specification on a device; `project` is all that an engine's hook needs."""

    def __init__(self, spec: FingerprintSpec, device: Any) -> None:
        self._torch = require("torch", "hf")
        matrix = projection_matrix(spec.seed, spec.k, spec.hidden_size)
        self._matrix_KD = self._torch.from_numpy(matrix.astype(np.float32)).to(device)
        self._scale = float(scale(spec.hidden_size))
        self._size = spec.hidden_size
        self._rows = max(1, _PRODUCTS // self._matrix_KD.numel())

    def project(self, hidden_ND: Any) -> Any:
        """Projections [N, k] in float32, on the device, of hidden states [N, D] of any float type. Does not wait for
        the device. Products and sums are elementwise, so no setting turns them into TF32 or bfloat16."""
        projected_NK = self._torch.empty(
            (hidden_ND.shape[0], self._matrix_KD.shape[0]), dtype=self._torch.float32, device=self._matrix_KD.device
        )
        self.project_into(hidden_ND, projected_NK)
        return projected_NK

    def project_into(self, hidden_ND: Any, projected_NK: Any) -> None:
        """As `project`, into a tensor of the caller's: three kernels for each 64 MiB of products."""
        if hidden_ND.ndim != 2 or hidden_ND.shape[1] != self._size:
            raise FingerprintError(f"hidden: got shape {tuple(hidden_ND.shape)}, expected [N, {self._size}]")
        if hidden_ND.dtype == self._torch.float64:
            hidden_ND = hidden_ND.to(self._torch.float32)  # narrower types are widened by the product itself
        parts = zip(hidden_ND.split(self._rows), projected_NK.split(self._rows), strict=True)
        for hidden_PD, projected_PK in parts:
            products_PKD = hidden_PD.unsqueeze(1) * self._matrix_KD  # in float32
            self._torch.sum(products_PKD, dim=2, out=projected_PK).mul_(self._scale)
