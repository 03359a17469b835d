"""How seeds were used in a set of traces: shared, repeated or, as far as outputs can hint at it, ignored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass

from veridifr.trace import Trace

ALIKE_TOKENS = 32
"""Outputs this long are compared; honest short answers are often the same."""
ALIKE_DISTINCT = 12
"""Different token ids that such an output must have: a loop repeats itself under any seed."""

Ids = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SeedReport:
    """What the seeds of a set of traces are worth. Greedy sequences draw nothing and are left out.

    A draw's noise is named by the seed with `engine.child` and `engine.batch_row`, since engines mix those in.
    `shared` has each seed that several sequences were drawn with, `repeated` the sequences whose prompt and settings
    were too: they bring no new evidence. `alike` has those with equal prompts and outputs and different seeds: a hint,
    no more, that the seed is ignored, because a prompt with one likely answer looks the same. All largest first.
    """

    sequences: int
    unseeded: Ids
    shared: tuple[tuple[int, Ids], ...]
    repeated: tuple[Ids, ...]
    alike: tuple[Ids, ...]

    @property
    def constant(self) -> bool:
        """Whether one seed stands for all of at least two sequences."""
        return len(self.shared) == 1 and len(self.shared[0][1]) == self.sequences

    @property
    def sentences(self) -> tuple[str, ...]:
        """What a report should say of it: one sentence for each thing found."""
        said = []
        if self.shared:
            seed, ids = self.shared[0]
            others = sum(len(group) for _, group in self.shared[1:])
            more = f", and {len(self.shared) - 1} further by {others}" if others else ""
            of = f"all {self.sequences}" if self.constant else f"{len(ids)} of {self.sequences}"
            said.append(
                f"Seed {seed} is shared by {of} sequences{more}: their noise is taken as independent, and as not "
                "foreseen by the provider."
            )
        if self.repeated:
            extra = sum(len(group) - 1 for group in self.repeated)
            said.append(
                f"{extra} of {self.sequences} sequences repeat a prompt under the same seed and settings: each is "
                "counted, though none is new evidence."
            )
        if self.alike:
            total = sum(len(group) for group in self.alike)
            said.append(
                f"{total} sequences have the output of another with the same prompt and another seed: taken as a "
                "prompt with one likely answer, though a seed that is ignored looks the same."
            )
        return tuple(said)


def seed_report(traces: Iterable[Trace]) -> SeedReport:
    """How the seeds of `traces` were used: which are shared, which sequences repeat, and which look as if ignored."""
    drawn = [trace for trace in traces if not trace.sampling.greedy]
    seeded = [trace for trace in drawn if trace.sampling.seed is not None]
    prompts = _groups(seeded, lambda trace: (trace.prompt_token_ids.tobytes(), trace.sampling.distribution()))
    repeated = [again for group in prompts for again in _groups(group, _noise)]
    outputs = (_groups(filter(_tells, group), lambda trace: trace.output_token_ids.tobytes()) for group in prompts)
    alike = [group for groups in outputs for group in groups if len({_noise(trace) for trace in group}) > 1]
    return SeedReport(
        sequences=len(drawn),
        unseeded=_ids(trace for trace in drawn if trace.sampling.seed is None),
        shared=tuple((_noise(group[0])[0], _ids(group)) for group in _groups(seeded, _noise)),
        repeated=tuple(map(_ids, sorted(repeated, key=len, reverse=True))),
        alike=tuple(map(_ids, sorted(alike, key=len, reverse=True))),
    )


def _groups(traces: Iterable[Trace], key: Callable[[Trace], Hashable]) -> list[list[Trace]]:
    """The traces that share a key with another one, largest group first."""
    groups: dict[Hashable, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[key(trace)].append(trace)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def _ids(traces: Iterable[Trace]) -> Ids:
    return tuple(trace.id for trace in traces)


def _noise(trace: Trace) -> tuple[int, int, int]:
    seed = trace.sampling.seed
    return (0 if seed is None else seed, trace.engine.child or 0, trace.engine.batch_row or 0)


def _tells(trace: Trace) -> bool:
    """Whether an output is long and varied enough that honest draws seldom give it twice."""
    ids, allowed = trace.output_token_ids, trace.sampling.allowed_token_ids
    forced = trace.sampling.top_k == 1 or (allowed is not None and len(allowed) == 1)
    return not forced and len(ids) >= ALIKE_TOKENS and len(set(ids.tolist())) >= ALIKE_DISTINCT
