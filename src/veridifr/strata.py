"""Which honest sequence is compared at which length, by lengths and lot alone, never by scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def matched(sequences: Sequence[Sequence[float]], places: Sequence[int]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Honest values and their strata: every honest sequence stands in one stratum that it is long enough for.

    `sequences` hold one value for each edge that they reach, `places` are the edges of the audited ones. Strata (edges)
    are given out in proportion to the audited sequences, the longest first, by length and lot alone: an honest sequence
    in two strata, or placed by its score, would break the permutation argument.
    """
    rng = np.random.default_rng(len(sequences))  # the lot is fixed by their number
    wanted = Counter(places)
    free = [int(i) for i in rng.permutation(len(sequences))]
    chosen: list[tuple[int, int]] = []
    for number, place in enumerate(sorted(wanted, reverse=True)):
        fit = [i for i in free if len(sequences[i]) > place]
        left = sum(wanted[p] for p in sorted(wanted, reverse=True)[number:])
        share = len(fit) if wanted[place] == left else -(-len(fit) * wanted[place] // left)
        chosen += [(i, place) for i in fit[:share]]
        free = [i for i in free if i not in set(fit[:share])]
    return (
        np.array([sequences[i][place] for i, place in chosen], dtype=np.float64),
        np.array([place for _, place in chosen], dtype=np.int64),
    )
