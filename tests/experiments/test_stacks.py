"""The table of honest stacks: references by dtype and attention, and what is read of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import run
import scores
import spec as specs
import stacks
import tables

HONEST = """
name = "x"
tokens = 8
fit = 0
judged = 4
edges = [2, 8]
budgets = [8]
activation_budgets = [1, 2, 8]
stacks = ["float32", "bfloat16 eager"]
claim = {temperature = 1.0}
[models.m]
path = "m"
[[providers]]
name = "a"
honest = true
[[providers]]
name = "b"
honest = true
"""
DEVIATING = '[[providers]]\nname = "c"\nweights = "int4"\n[[providers]]\nname = "d"\nsampling = {temperature = 2.0}\n'


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_reference_has_the_attention_that_is_asked_for(tb7m: Path, attention: str) -> None:
    reference = scores.reference_of(tb7m, "bfloat16", attention)
    assert reference.settings["dtype"] == "bfloat16"
    assert reference._model.config._attn_implementation == attention  # type: ignore[attr-defined]


def test_a_provider_that_one_reference_lacks_is_not_in_the_table(tmp_path: Path) -> None:
    cell = {"exact_match": 1.0, "mean_margin": 0.0, "sigma": 0.1, "tokens": 32}
    (tmp_path / "stacks.float32.json").write_text(json.dumps({"a": cell, "b": cell}))
    (tmp_path / "stacks.bfloat16_eager.json").write_text(json.dumps({"b": cell | {"sigma": 0.2}}))
    found = stacks.table(specs.parse(HONEST), tmp_path)
    assert {name: list(cells) for name, cells in found.items()} == {"b": ["float32", "bfloat16 eager"]}
    assert found["b"]["bfloat16 eager"]["sigma"] == 0.2


def test_honest_stacks_alone_have_no_rows(tmp_path: Path) -> None:
    found = run.table({"experiment": HONEST, "fitted": {"m": {}}}, tmp_path / "none.npz")
    assert found == {"rows": [], "beyond": 0, "fingerprints": [], "honest": {}}


def test_together_is_the_sum_on_the_same_sequences() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"m/{name}/{kind}": rng.normal(size=(count, places, 3)) + (name == "c")
        for name in "abcd"
        for kind, count, places in (("tokens", 50, 2), ("activations", 30, 3))
    }
    rows = run.together(specs.parse(HONEST + DEVIATING), arrays, ["m"])
    assert [(row["deviation"], row["tokens"]) for row in rows] == [("c", 2), ("c", 8)]  # d is not seen; 1 is no edge
    for row, edge, place in zip(rows, (0, 1), (1, 2), strict=True):
        both = {n: arrays[f"m/{n}/tokens"][:30, edge, 0] + arrays[f"m/{n}/activations"][:, place, 0] for n in "abc"}
        assert row["auc"][2] == pytest.approx(tables.auc(np.concatenate([both["a"], both["b"]]), both["c"]), abs=1e-6)
