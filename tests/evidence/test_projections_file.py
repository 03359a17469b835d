"""Evidence files with the reference's own projections: format 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_evidence_file import HEADER, evidence, record, same, write

from veridifr import evidence_io
from veridifr.errors import EvidenceError
from veridifr.evidence import Evidence
from veridifr.evidence_io import MAGIC, EvidenceHeader, EvidenceWriter

PROJECTING = replace(HEADER, settings={**HEADER.settings, "fingerprints": "ab" * 32})


def projected(number: int) -> Evidence:
    found = evidence(number)
    rng = np.random.default_rng(number)
    return replace(found, projections_AFK=rng.normal(size=(2, found.tokens, 3)).astype(np.float32))


def written(path: Path, header: EvidenceHeader, made: Sequence[Evidence]) -> None:
    writer = EvidenceWriter(path, header)
    for item in made:
        writer.append(item)
    writer.close()


def test_projections_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "e"
    made = [projected(0), evidence(1), projected(2)]
    written(path, PROJECTING, made)
    assert path.read_bytes().startswith(evidence_io.MAGIC_2)
    for got, wanted in zip(evidence_io.read_all(path), made, strict=True):
        assert same(got, wanted)
        assert (got.projections_AFK is None) == (wanted.projections_AFK is None)
        if got.projections_AFK is not None and wanted.projections_AFK is not None:
            assert np.array_equal(got.projections_AFK, wanted.projections_AFK)
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])  # killed while writing the last record
    writer = EvidenceWriter(path, PROJECTING)
    writer.append(made[2])
    writer.close()
    assert path.read_bytes() == whole


def test_files_with_and_without_projections_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "e"
    write(path, 1)
    assert path.read_bytes().startswith(MAGIC)
    with pytest.raises(EvidenceError, match="equal settings"):
        EvidenceWriter(path, PROJECTING)


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_file_with_projections_killed_at_its_start_is_begun_again(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "e"
    EvidenceWriter(path, PROJECTING).close()
    path.write_bytes(path.read_bytes()[:cut])
    EvidenceWriter(path, PROJECTING).close()
    assert evidence_io.scan(path)[0] == PROJECTING


@pytest.mark.parametrize(
    "sizes", [3, [1, 2], [1, 2, 3, 4], [65, 1, 1], [1, -1, 1], [1, True, 1], [1, 1, 4097], [1.0, 1, 1]]
)
def test_sizes_that_mean_nothing(sizes: object, tmp_path: Path) -> None:
    path = tmp_path / "e"
    entry = {"id": "a", "digest": "d", "vocab_size": 9, "temperature": 1.0, "tokens": 0, "candidates": 0}
    path.write_bytes(evidence_io.MAGIC_2 + record(PROJECTING.to_json()) + record({**entry, "projections": sizes}))
    with pytest.raises(EvidenceError, match="projections: got"):
        evidence_io.scan(path)


def test_projections_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e"
    writer = EvidenceWriter(path, PROJECTING)
    writer.append(replace(projected(1), projections_AFK=np.full((1, 1, 1), np.inf, dtype=np.float32)))
    writer.close()
    with pytest.raises(EvidenceError, match="projections: expected finite"):
        list(evidence_io.read_all(path))


SENSITIVE = replace(PROJECTING, settings={**PROJECTING.settings, "sensitivity": "bfloat16"})


def sensitive(number: int) -> Evidence:
    found = projected(number)
    assert found.projections_AFK is not None
    return replace(found, sensitivity_AF=np.abs(found.projections_AFK[..., 0]) + np.float32(0.001))


def test_sensitivities_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "e"
    made = [sensitive(0), projected(1), sensitive(2)]
    written(path, SENSITIVE, made)
    assert path.read_bytes().startswith(evidence_io.MAGIC_3)
    for got, wanted in zip(evidence_io.read_all(path), made, strict=True):
        assert got.projections_AFK is not None and wanted.projections_AFK is not None
        assert np.array_equal(got.projections_AFK, wanted.projections_AFK)
        assert (got.sensitivity_AF is None) == (wanted.sensitivity_AF is None)
        if got.sensitivity_AF is not None and wanted.sensitivity_AF is not None:
            assert np.array_equal(got.sensitivity_AF, wanted.sensitivity_AF)
    with pytest.raises(EvidenceError, match="equal settings"):
        EvidenceWriter(path, PROJECTING)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_sensitivities_that_mean_nothing_are_refused(value: float, tmp_path: Path) -> None:
    path = tmp_path / "e"
    found = sensitive(1)
    assert found.sensitivity_AF is not None
    found.sensitivity_AF[1, 0] = value
    writer = EvidenceWriter(path, SENSITIVE)
    writer.append(found)
    writer.close()
    with pytest.raises(EvidenceError, match="sensitivity: expected values above 0"):
        list(evidence_io.read_all(path))


@pytest.mark.parametrize("value", [1, False, "yes", [2, 3]])
def test_what_a_record_says_of_sensitivities(value: object, tmp_path: Path) -> None:
    path = tmp_path / "e"
    entry = {"id": "a", "digest": "d", "vocab_size": 9, "temperature": 1.0, "tokens": 0, "candidates": 0}
    told = {**entry, "projections": [1, 1, 1], "sensitivity": value}
    path.write_bytes(evidence_io.MAGIC_3 + record(SENSITIVE.to_json()) + record(told))
    with pytest.raises(EvidenceError, match="sensitivity: got"):
        evidence_io.scan(path)
