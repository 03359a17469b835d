"""Files of the public tools `difr` (github.com/adamkarvonen/difr) and `token-difr` (PyPI), which hold token ids only.

Such files do not say how the tokens were sampled or by which engine: the caller states both, nothing is guessed. Both
tools write files that were tokenised again from text (their `openrouter_api`), where a few ids are not the ones that
the provider sampled; traces of such files diverge by 1 to 3 % of their tokens for that reason alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from veridifr.errors import TraceError
from veridifr.trace import EngineRecord, Sampling, Trace, check_int, check_number
from veridifr.traces.jsonl import read_lines
from veridifr.traces.strict_json import MAX_DOCUMENT_BYTES, parse_json, read_bounded


def from_difr(
    path: str | Path, *, model: str, sampling: Sampling | Sequence[Sampling], engine: EngineRecord
) -> list[Trace]:
    """The traces of a token file of `difr`: ``{"samples": [{"prompt_token_ids", ...}]}``, each sample with
    ``output_token_ids`` (what its loader calls the new format) or ``outputs: [{"token_ids"}]`` (the legacy one).

    `sampling` is one setting for all samples, or one per sample. Ids are ``{file stem}/{sample}``. Several outputs of
    one sample need an ``index`` each, their number among n > 1 (then ids end in ``/{index}``). Raises `TraceError`,
    also if the file's ``config.temperature`` contradicts `sampling`.
    """
    path = Path(path)
    document = read_document(path)
    if isinstance(document, dict) and "scores" in document and "samples" not in document:
        raise TraceError(f"{path}: samples: missing: this is a file of difr's results, which holds no token ids")
    return _traces(path, "difr", _samples(path, document), document, (model, sampling, engine))


def from_token_difr(
    path: str | Path, *, model: str, sampling: Sampling | Sequence[Sampling], engine: EngineRecord
) -> list[Trace]:
    """The traces of a file of `token-difr` (0.1): what its ``save_results`` writes (``{"config", "samples"}``), or a
    JSON list, or JSON lines (suffix .jsonl), of ``TokenSequence.to_dict()``. Otherwise as `from_difr`.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        rows = []
        for number, line in read_lines(path):
            try:
                rows.append(parse_json(line))
            except TraceError as error:
                raise TraceError(f"{path}:{number}: {error}") from error
        document: Any = rows
    else:
        document = read_document(path)
    samples = document if isinstance(document, list) else _samples(path, document)
    return _traces(path, "token-difr", samples, document, (model, sampling, engine))


def read_document(path: Path) -> Any:
    """The value of a file that is one JSON document of at most `MAX_DOCUMENT_BYTES`; else `TraceError`."""
    data = read_bounded(path, MAX_DOCUMENT_BYTES)
    try:
        return parse_json(data)
    except TraceError as error:
        raise TraceError(f"{path}: {error}") from error


def per_item(name: str, given: Any, count: int) -> list[Any]:
    """`given` for each of `count` items: itself repeated, or a list of exactly that length."""
    if isinstance(given, Sequence) and not isinstance(given, str):
        if len(given) != count:
            raise TraceError(f"{name}: got {len(given)}, expected one for each of {count} sequences")
        return list(given)
    return [given] * count


def _samples(path: Path, document: Any) -> list[Any]:
    if not isinstance(document, dict):
        raise TraceError(f"{path}: got {type(document).__name__}, expected an object with samples")
    samples = document.get("samples")
    if not isinstance(samples, list):
        raise TraceError(f"{path}: samples: {'missing' if samples is None else 'expected a list'}")
    return samples


def _traces(
    path: Path, tool: str, samples: list[Any], document: Any, claim: tuple[str, Any, EngineRecord]
) -> list[Trace]:
    model, sampling, engine = claim
    if not samples:
        raise TraceError(f"{path}: holds no samples")
    claims = per_item(f"{path}: sampling", sampling, len(samples))
    traces = []
    for number, (sample, setting) in enumerate(zip(samples, claims, strict=True)):
        try:
            _check_config(document, setting)
            prompt, outputs = _sample(sample)
            for child, ids in outputs:
                suffix = "" if child is None else f"/{child}"
                traces.append(
                    Trace(
                        id=f"{path.stem}/{number}{suffix}",
                        model=model,
                        prompt_token_ids=prompt,
                        output_token_ids=ids,
                        sampling=setting,
                        engine=engine if child is None else replace(engine, child=child),
                        extra={"imported_from": tool},
                    )
                )
        except TraceError as error:
            raise TraceError(f"{path}: samples[{number}]: {error}") from error
    return traces


def _check_config(document: Any, sampling: Sampling) -> None:
    """What the file says of the temperature must not contradict the caller: a wrong claim would read as divergence."""
    config = document.get("config") if isinstance(document, dict) else None
    if not isinstance(config, dict) or config.get("temperature") is None:
        return
    stated = check_number("config.temperature", config["temperature"], 0.0, 1e4)
    if stated != sampling.temperature:
        raise TraceError(
            f"config.temperature: the file says {stated:g}, but the sampling given for it says {sampling.temperature:g}"
        )


def _sample(sample: Any) -> tuple[Any, list[tuple[int | None, Any]]]:
    """Prompt ids, and the outputs with their child number (None for the only one)."""
    if not isinstance(sample, dict):
        raise TraceError(f"got {type(sample).__name__}, expected an object")
    if "prompt_token_ids" not in sample:
        raise TraceError("prompt_token_ids: missing")
    if ("output_token_ids" in sample) == ("outputs" in sample):
        raise TraceError("expected either output_token_ids or outputs")
    if "output_token_ids" in sample:
        return sample["prompt_token_ids"], [(None, sample["output_token_ids"])]
    outputs = sample["outputs"]
    if not isinstance(outputs, list) or not outputs:
        raise TraceError("outputs: expected a list of at least one output")
    found: list[tuple[int | None, Any]] = []
    for number, output in enumerate(outputs):
        if not isinstance(output, dict) or "token_ids" not in output:
            raise TraceError(f"outputs[{number}].token_ids: missing")
        child = None
        if len(outputs) > 1:
            if "index" not in output:
                raise TraceError(f"outputs[{number}].index: missing, needed where a sample has several outputs")
            child = check_int(f"outputs[{number}].index", output["index"], 0, 65535)
            if any(child == other for other, _ in found):
                raise TraceError(f"outputs[{number}].index: {child} occurs twice")
        found.append((child, output["token_ids"]))
    return sample["prompt_token_ids"], found
