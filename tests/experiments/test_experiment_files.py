"""The declarative files: what is refused, and that no prompt is used twice where it must not be."""

from __future__ import annotations

from pathlib import Path

import pytest

import scores
import spec as specs

FOLDER = Path(specs.__file__).parent
TEXT = """
name = "x"
tokens = 20
fit = 3
judged = 4
edges = [10, 20]
budgets = [10, 40]
claim = {temperature = 1.0}
[models.tb7m]
path = "src/veridifr/data/tb7m"
[[providers]]
name = "a"
honest = true
[[providers]]
name = "b"
honest = true
[[providers]]
name = "c"
weights = "int4"
"""


@pytest.mark.parametrize("file", sorted(path.name for path in FOLDER.glob("*.toml")))
def test_every_experiment_can_be_read(file: str) -> None:
    found = specs.read(FOLDER / file)
    assert found.honest
    assert found.deviating or found.stacks
    assert all(budget in found.edges or budget % found.tokens == 0 for budget in found.budgets)


def test_prompts_are_shared_by_deviating_providers_only() -> None:
    found = specs.parse(TEXT)
    used = [range(found.prompts)[found.slice_of(one)] for one in found.providers]
    assert [len(part) for part in used] == [7, 7, 4]
    assert sorted(n for part in used for n in part) == list(range(found.prompts))


def test_fewer_of_each_honest_provider_may_be_judged() -> None:
    found = specs.parse(TEXT.replace("judged = 4", "judged = 4\njudged_honest = 2"))
    used = [range(found.prompts)[found.slice_of(one)] for one in found.providers]
    assert [len(part) for part in used] == [5, 5, 4]
    assert sorted(n for part in used for n in part) == list(range(found.prompts))
    assert [found.states_of(one) for one in found.providers] == [5, 5, 4]


def test_honest_stacks_alone_keep_no_hidden_states() -> None:
    alone = specs.parse(TEXT[: TEXT.rindex("[[providers]]")])
    assert (alone.deviating, alone.prompts) == ((), 18)
    assert [alone.states_of(one) for one in alone.providers] == [0, 0]


def test_a_deviation_that_comes_later_is_judged_from_there() -> None:
    assert specs.Provider(name="s", inside="second", period=7).begins == 7
    assert specs.Provider(name="u", inside="uniform", period=7).begins == 1


def test_what_activations_cost() -> None:
    """4 bytes a token for 16 coordinates of two bits, and 2 + 2 k for a proof, whatever the tokens."""
    found = specs.parse(TEXT.replace("judged = 4", "judged = 4\nactivation_budgets = [1, 8]\nwider = [[4, -4]]"))
    names, costs = scores.activation_detectors(found), scores.activation_bytes(found)
    assert [row[: len(found.fingerprints)].tolist() for row in costs] == [[4, 1], [32, 8]]
    assert dict(zip(names, costs[1].tolist(), strict=True))["toploc mean 64"] == 130


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (('weights = "int4"', 'weights = "int5"'), "c: weights: got 'int5'"),
        (('weights = "int4"', 'wieghts = "int4"'), "unknown keys wieghts"),
        (("fit = 3", "fits = 3"), "unknown keys fits"),
        (('name = "b"', 'name = "a"'), "the same name"),
        (("edges = [10, 20]", "edges = [10]"), "the last of edges to be tokens"),
        (('weights = "int4"', 'seeds = "mine"'), "c: seeds: got 'mine'"),
        (('weights = "int4"', 'engine = "llama.cpp"'), "c: engine: got"),
        (("judged = 4", 'judged = 4\nstacks = ["float8"]'), "stacks: got 'float8'"),
        (("judged = 4", 'judged = 4\nstacks = ["float16 eager now"]'), "stacks: got 'float16 eager now'"),
    ],
)
def test_refusals(change: tuple[str, str], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        specs.parse(TEXT.replace(*change))


def test_what_a_fingerprint_can_see() -> None:
    honest, _, rounded = specs.parse(TEXT).providers
    assert rounded.changes_forward_pass
    assert not honest.changes_forward_pass
    assert not specs.Provider(name="t", sampling={"temperature": 2.0}).changes_forward_pass
    assert specs.Provider(name="k", keep=3).changes_forward_pass
    assert not specs.Provider(name="w", inside="watermark").sees_activations
