"""Activation-DiFR against TOPLOC: how many tokens and bytes it takes to find a deviation of the forward pass.

usage: fingerprints.py collect --models DIR --out DIR [--device cuda]   run the models; leaves OUT/fingerprints.npz
       fingerprints.py collect --models DIR --out DIR --model tb7m --emulate --prompt-tokens 32 --conditions ...
       fingerprints.py merge --out DIR --other FILE --machine h200   add what another machine's `collect` left
       fingerprints.py measure [--h200 FILE] [--cpu FILE] [--cpu_tb7m FILE]   score what `collect` left there
       fingerprints.py --check | --write-docs               recompute the figures; write docs/fingerprints.md's tables

The verifier runs tb24m (or `--model`) in float32 over recorded vLLM sequences (benchmarks/data/h200_pools.npz), prompt
and output teacher-forced, and takes the hidden states that produced the first 32 output tokens. Providers run the same
tokens in bfloat16: honest stacks (and one in float16), and deviations. Every deviation is simulated by rounding
(weights, or keys and values), not by a quantized kernel. The smaller model has another hidden size: its provider
projects what it has with the matrix for its own size, which is the best that it can do without the claimed model.

With `--emulate` a provider computes in float32 and rounds what a 16-bit run would store (_fingerprint_emulation.py).
Two honest stacks are real all the same: `honest_true`, and `honest_vllm`, vLLM with tokens of its own.

The verifier makes a second pass in which it rounds, for the sensitivity of each hidden state; scores use it.

What `collect` keeps: 32 coordinates of each hidden state, 160 of the first four (the verifier's in float16; the others'
differences from it in steps of a sixteenth of their standard deviation), and TOPLOC's three statistics for chunks of 1
to 32 tokens and top-k 4 to 512. `measure` keeps scores alone, beside its results. It takes minutes; without a file it
computes the figures again from the scores that are there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import _fingerprint_models as models
import _results
from _fingerprint_docs import END, START, block
from _fingerprint_figures import figures_of
from _fingerprint_merge import MACHINES, merged
from _fingerprint_scores import kept
from _fingerprint_vllm import vllm_stack

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from trace_pools import load_set, write_arrays

RESULTS = _results.RESULTS / "fingerprints.json"
DOCS = Path(__file__).parents[1] / "docs" / "fingerprints.md"
PARTS = ("h200", "cpu", "cpu_tb7m")
DATA = Path(__file__).parent / "data" / "h200_pools.npz"
TOKENS = 32
K = 32
"""Coordinates kept of each hidden state."""
WIDE_TOKENS, WIDE_K = 4, 160
"""More coordinates for the first tokens: what small deviations need if few tokens are to do."""
LEVELS = 16
"""Levels of a kept error for one standard deviation: 8 of those fit a signed byte."""
SEED = 7
"""Seed of the projection matrix."""
CHUNKS = (1, 2, 4, 8, 16, 32)
TOP_KS = (4, 8, 16, 32, 64, 128, 256, 512)


def main() -> int:
    """Exit status: 1 if figures or tables do not follow from the raw results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("verb", nargs="?", choices=("collect", "merge", "measure"))
    parser.add_argument("--models", type=Path)
    parser.add_argument("--prompts", type=Path, default=DATA)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--count", type=int, default=2100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--conditions", nargs="*", default=list(models.CONDITIONS))
    parser.add_argument("--model", default="tb24m", help="the claimed one")
    parser.add_argument("--prompt-tokens", type=int, help="run over the last ones of each prompt alone")
    parser.add_argument("--more", action="store_true", help="add the conditions to the file that is there")
    parser.add_argument("--other", type=Path, help="with merge: what another machine left")
    parser.add_argument("--machine", choices=MACHINES)
    parser.add_argument("--emulate", action="store_true", help="emulate 16-bit types in float32: for CPUs without them")
    for name in PARTS:
        parser.add_argument(f"--{name}", type=Path, help="what collect left for this part of the results")
    parser.add_argument("--lean", action="store_true", help="keep fewer cells: none that is neither cheapest nor best")
    parser.add_argument("--calibrate", type=int, default=100, help="prompts that the honest scale is fitted to")
    parser.add_argument("--made", help="how and where, for a file that does not say so itself")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write-docs", action="store_true")
    args = parser.parse_args()
    if args.check or args.write_docs:
        wrong = _results.check(RESULTS, figures) if args.check else []
        wrong += _docs(write=args.write_docs)
        print("\n".join(wrong) or "fingerprints: figures and tables follow from the scores")
        return int(bool(wrong))
    if args.verb == "collect":
        if not (args.models and args.out):
            parser.error("collect needs --models and --out")
        collect(args)
    elif args.verb == "merge":
        merge(args.out / "fingerprints.npz", args.other, args.machine)
    elif args.verb == "measure":
        measure(args)
    else:
        parser.error("collect, measure, --check or --write-docs is needed")
    return 0


def merge(path: Path, other: Path, machine: str) -> None:
    """Add the honest stacks of another machine to the file that `collect` left."""
    with np.load(path, allow_pickle=False) as mine, np.load(other, allow_pickle=False) as theirs:
        found = merged(mine, theirs, machine, LEVELS)
    _save(path, found)


def measure(args: argparse.Namespace) -> None:
    """Score what `collect` left and write the results; print the figures without the long tables."""
    raw: dict[str, Any] = _results.read(RESULTS)["raw"] if RESULTS.exists() else {}
    for name in PARTS:
        path = getattr(args, name)
        if path is None:
            continue
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        made = str(arrays["made"]) if "made" in arrays else args.made
        if made is None:
            raise SystemExit(f"{path}: does not say how it was made: give --made")
        found, about = kept(arrays, args.calibrate, lean=args.lean)
        scores = RESULTS.with_name(f"fingerprints_{name}.npz")
        write_arrays(scores, found)
        source = {"sha256": _results.digest(path), "bytes": path.stat().st_size, "made": made}
        kept_as = {"scores": scores.name, "sha256": _results.digest(scores), "scored_at": _results.COMMIT}
        raw[name] = {**kept_as, "source": source, **about}
    found = _results.write(RESULTS, raw, figures)
    long = ("curve", "cheapest", "toploc", "toploc_best", "encodings", "false_positives")
    print(
        json.dumps({name: {k: v for k, v in part.items() if k not in long} for name, part in found.items()}, indent=1)
    )


def figures(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is published, by machine, from the scores that `raw` names."""
    out = {}
    for name, about in raw.items():
        with np.load(
            _results.unchanged(RESULTS.with_name(about["scores"]), about["sha256"]), allow_pickle=False
        ) as file:
            out[name] = _rounded(figures_of({key: file[key] for key in file.files}, about))
    return out


def _rounded(value: Any) -> Any:
    """The same with six decimals: more would say nothing, and there are thousands of values."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return round(value, 6) if isinstance(value, float) else value


def _docs(*, write: bool) -> list[str]:
    """Put the tables into docs/fingerprints.md, or say that they are not what the results give."""
    return _results.documented(DOCS, START, END, block(_results.read(RESULTS)["figures"]), write=write)


def collect(args: argparse.Namespace) -> None:
    """Run the verifier and every provider, and write what is kept of them."""
    import torch

    from veridifr.fingerprints import matrix_digest
    from veridifr.fingerprints.projector import Projector
    from veridifr.fingerprints.spec import FingerprintSpec

    sequences = _sequences(args)
    path = args.out / "fingerprints.npz"
    args.out.mkdir(parents=True, exist_ok=True)
    own = models.hidden(args, "verifier", sequences, TOKENS)

    def projected(states: Any) -> Any:
        spec = FingerprintSpec(seed=SEED, hidden_size=states.shape[2], k=WIDE_K, encoding="float32")
        return Projector(spec, states.device).project(states.flatten(0, 1)).reshape(*states.shape[:2], WIDE_K)

    mine = projected(own)
    matrix = matrix_digest(SEED, K, own.shape[2])
    arrays: dict[str, Any] = {"chunks": CHUNKS, "top_ks": TOP_KS, "hidden_size": own.shape[2]}
    arrays["made"] = _made(args, matrix)
    arrays["own"], arrays["wide/own"] = (part.half().cpu().numpy() for part in _kept(mine))
    arrays["sensitivity"] = _sensitivity(args, sequences, own)
    if args.more:
        with np.load(path, allow_pickle=False) as file:
            if not np.array_equal(file["own"], arrays["own"]):
                raise SystemExit(f"{path}: of another model or other sequences")
            arrays = {**{key: file[key] for key in file.files}, "sensitivity": arrays["sensitivity"]}
        added = ", ".join([*args.conditions, "the sensitivity"])
        arrays["made"] = f"{arrays['made']}; {added} added by another run at {_results.COMMIT[:7]}"
    print("matrix SHA-256", matrix, "torch", torch.__version__, flush=True)
    for name in args.conditions:
        if name == "honest_vllm":
            asked, given = vllm_stack(args, [prompt for prompt, _ in sequences], TOKENS, SEED, WIDE_K)
            theirs = None
            mine_too = models.hidden(args, "verifier", asked, TOKENS)
            reference = projected(mine_too)
            arrays[f"sensitivity/{name}"] = _sensitivity(args, asked, mine_too)
            arrays[f"own/{name}"] = _kept(reference)[0].half().cpu().numpy()
            error = given - reference
        else:
            theirs = models.hidden(args, name, sequences, TOKENS)
            error = projected(theirs) - mine
        step = error.std() / LEVELS
        levels = _kept((error / step).round().clamp(-127, 127).to(torch.int8))
        arrays[f"error/{name}"], arrays[f"wide/error/{name}"] = (part.cpu().numpy() for part in levels)
        arrays[f"step/{name}"] = step.cpu().numpy()
        print(f"{name}: error per coordinate {float(error.std()):.5f}", flush=True)
        for key, value in ({} if theirs is None else _toploc(own, theirs)).items():
            arrays[f"toploc/{name}/{key}"] = value
        _save(path, arrays)  # a long run that is cut off leaves what it has
    _save(path, arrays)
    print("wrote", path, path.stat().st_size, "bytes", flush=True)


def _sensitivity(args: argparse.Namespace, sequences: Any, own: Any) -> Any:
    """Root mean square of what rounding changes in the verifier's hidden states, [sequences, tokens]."""
    apart = models.hidden(args, "rounded", sequences, TOKENS) - own
    return apart.square().mean(dim=2).sqrt().cpu().numpy()


def _save(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write a file that is whole or not there."""
    np.savez(path.with_suffix(".part.npz"), **arrays)
    path.with_suffix(".part.npz").replace(path)


def _made(args: argparse.Namespace, matrix: str) -> str:
    """How and where this run was made."""
    import torch
    import transformers

    cuda = str(args.device).startswith("cuda")
    machine = torch.cuda.get_device_name() if cuda else platform.machine() + " CPU"
    emulated = ", 16-bit types emulated in float32 (honest_true and honest_vllm not)" if args.emulate else ""
    cut = f", last {args.prompt_tokens} tokens of each prompt" if args.prompt_tokens else ""
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    made = f"fingerprints.py collect --device {args.device} --model {args.model} at {_results.COMMIT[:7]}, {machine}"
    return f"{made}{emulated}{cut}, {versions}, matrix SHA-256 {matrix}"


def _kept(values: Any) -> tuple[Any, Any]:
    return values[..., :K], values[:, :WIDE_TOKENS]


def _sequences(args: argparse.Namespace) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompt and first output tokens of honest sequences, each of another prompt."""
    found: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    last = slice(-args.prompt_tokens if args.prompt_tokens else None, None)
    for name in ("honest.v1", "honest.v2"):
        traces = load_set(args.prompts, name)
        found += ((p[last], ids[:TOKENS]) for p, ids in zip(traces.prompts, traces.outputs, strict=True))
    if len(found) < args.count:
        raise SystemExit(f"{args.prompts}: {len(found)} honest sequences, {args.count} asked for")
    return found[: args.count]


def _toploc(own: Any, theirs: Any) -> dict[str, Any]:
    """TOPLOC's statistics for the first tokens of each sequence, by chunk and top-k: [chunk, top-k, sequence].

    Where the verifier asks for an entry that the provider did not choose, the polynomial gives an element of the field
    that is as good as random; here it is drawn at random (`tests/fingerprints/test_toploc.py` compares the two).
    """
    import torch

    count = len(own)
    shape = (len(CHUNKS), len(TOP_KS), count)
    mismatches, means, medians = (
        np.zeros(shape, np.uint16),
        np.zeros(shape, np.float16),
        np.full(shape, 255, np.uint8),
    )
    generator = torch.Generator(device=own.device).manual_seed(1)
    for (c, chunk), part in itertools.product(enumerate(CHUNKS), _parts(count)):
        mine, given = _largest(own[part, :chunk], max(TOP_KS)), _largest(theirs[part, :chunk], max(TOP_KS))
        rank = torch.full(mine.bits.shape, 1 << 20, device=own.device)  # of an entry, among the provider's largest
        inside = given.order < rank.shape[1]
        places = torch.arange(given.order.shape[1], device=own.device).expand_as(given.order)
        rank.scatter_reduce_(
            1, torch.where(inside, given.order, 0), torch.where(inside, places, 1 << 20), reduce="amin"
        )
        random = torch.randint(0, 65497, mine.order.shape, generator=generator, device=own.device)
        bits = mine.bits.gather(1, mine.order)
        width = given.bits.shape[1]
        offered = given.bits.gather(1, mine.order.clamp_max(width - 1))
        ranks = rank.gather(1, mine.order)
        for t, top_k in enumerate(TOP_KS):
            if top_k > mine.order.shape[1]:
                continue
            claimed = torch.where(ranks < top_k, offered, random)[:, :top_k]
            same = ((claimed >> 7) & 255) == ((bits[:, :top_k] >> 7) & 255)
            errors = ((claimed & 127) - (bits[:, :top_k] & 127)).abs()
            agreeing = same.sum(1)
            mismatches[c, t, part] = (top_k - agreeing).cpu().numpy()
            means[c, t, part] = ((errors * same).sum(1) / agreeing.clamp_min(1)).cpu().numpy()
            ordered = torch.where(same, errors, 255).sort(1).values
            medians[c, t, part] = ordered.gather(1, (agreeing // 2).clamp_max(top_k - 1)[:, None])[:, 0].cpu().numpy()
    return {"mismatches": mismatches, "means": means, "medians": medians}


class _Largest:
    """bfloat16 bits of a chunk, flattened [B, T D], and its entries by falling magnitude."""

    def __init__(self, bits: Any, order: Any) -> None:
        self.bits, self.order = bits, order


def _largest(hidden: Any, most: int) -> _Largest:
    import torch

    bits = hidden.flatten(1).bfloat16().view(torch.int16).long() & 0xFFFF
    order = (bits & 0x7FFF).topk(min(most, bits.shape[1]), dim=1).indices
    return _Largest(bits, order)


def _parts(count: int, size: int = 256) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


if __name__ == "__main__":
    sys.exit(main())
