"""How seeds were used: shared, repeated, and outputs that hint at a seed that is ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from makers import CPU_ENGINE, make_trace
from recorded import DATA
from veridifr import SeedIssuer, Trace, read_traces, seed_report

VARIED = tuple(range(40))


def sequence(
    name: str, prompt: int = 1, seed: int | None = 7, output: Sequence[int] = VARIED, **sampling: float
) -> Trace:
    return make_trace(output, name=name, prompt=(prompt,), seed=seed, **sampling)


def test_distinct_seeds_say_nothing() -> None:
    issued = SeedIssuer(bytes(range(32)), "a").issue([sequence(str(i), i, output=()) for i in range(50)])
    found = seed_report(issued)
    assert (found.sequences, found.unseeded, found.shared, found.repeated, found.alike) == (50, (), (), (), ())
    assert found.sentences == () and not found.constant


def test_one_seed_for_all() -> None:
    found = seed_report([sequence(str(i), i, seed=42, output=(i,)) for i in range(3)])
    assert found.shared == ((42, ("0", "1", "2")),)
    assert found.constant
    assert found.sentences == (
        "Seed 42 is shared by all 3 sequences: their noise is taken as independent, and as not foreseen by the "
        "provider.",
    )


def test_some_share_a_seed() -> None:
    seeds = [42, 1, 2, 42, 42, 5, 5, 6, 6]
    found = seed_report([sequence(str(i), i, seed=seed, output=(i,)) for i, seed in enumerate(seeds)])
    assert found.shared == ((42, ("0", "3", "4")), (5, ("5", "6")), (6, ("7", "8")))
    assert not found.constant
    (said,) = found.sentences
    assert said.startswith("Seed 42 is shared by 3 of 9 sequences, and 2 further by 4: ")


def test_greedy_and_unseeded_sequences() -> None:
    found = seed_report(
        [sequence("g", temperature=0.0), sequence("h", temperature=0.0), sequence("n", 2, seed=None), sequence("s", 3)]
    )
    assert (found.sequences, found.unseeded, found.shared) == (2, ("n",), ())
    assert seed_report([]).sentences == ()
    assert not seed_report([sequence("one")]).constant


def test_children_and_rows_draw_other_noise() -> None:
    rows = [replace(sequence(str(i)), engine=replace(CPU_ENGINE, batch_row=i, batch_size=2)) for i in range(2)]
    children = [replace(sequence(f"c{i}", 2), engine=replace(CPU_ENGINE, child=i or None)) for i in range(2)]
    found = seed_report([replace(t, output_token_ids=[i]) for i, t in enumerate([*rows, *children])])
    assert found.shared == ((7, ("0", "c0")),)
    assert found.repeated == ()


def test_a_prompt_repeated_under_its_seed_is_no_new_evidence() -> None:
    group = [sequence("a"), sequence("b"), sequence("c", temperature=0.5), sequence("d", prompt=2)]
    found = seed_report([*group, sequence("e")])
    assert found.repeated == (("a", "b", "e"),)
    assert found.sentences[1] == (
        "2 of 5 sequences repeat a prompt under the same seed and settings: each is counted, though none is new "
        "evidence."
    )


def test_equal_outputs_under_different_seeds_are_a_hint() -> None:
    found = seed_report([sequence("a", seed=1), sequence("b", seed=2), sequence("c", seed=3, output=VARIED[::-1])])
    assert found.alike == (("a", "b"),)
    assert found.shared == ()
    assert found.sentences == (
        "2 sequences have the output of another with the same prompt and another seed: taken as a prompt with one "
        "likely answer, though a seed that is ignored looks the same.",
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (sequence("a", seed=1), sequence("b", seed=2, prompt=2)),  # another prompt: nothing is said
        (sequence("a", seed=1), sequence("b", seed=2, temperature=0.5)),
        (sequence("a", seed=1), sequence("b", seed=1)),  # the same seed should give the same
        (sequence("a", seed=1, output=VARIED[:31]), sequence("b", seed=2, output=VARIED[:31])),  # short
        (sequence("a", seed=1, output=[1, 2] * 40), sequence("b", seed=2, output=[1, 2] * 40)),  # a loop
        (sequence("a", seed=1, top_k=1), sequence("b", seed=2, top_k=1)),
        (make_trace(VARIED, name="a", allowed_token_ids=[3]), make_trace(VARIED, seed=2, allowed_token_ids=[3])),
        (sequence("a", seed=1, temperature=0.0), sequence("b", seed=2, temperature=0.0)),
    ],
)  # fmt: skip
def test_what_is_no_hint(first: Trace, second: Trace) -> None:
    assert seed_report([first, second]).alike == ()


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_honest_recorded_providers_give_no_hint(name: str) -> None:
    found = seed_report(read_traces(DATA / "demo" / f"{name}.jsonl.gz"))
    assert (found.sequences, found.sentences) == (40, ())
