"""The options of every command."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from veridifr import arguments_collect
from veridifr.deviations import MULTIPLES
from veridifr.references import TOP_LOGPROBS
from veridifr.vllm.serve_arguments import add_serve_options

EPILOG = (
    "exit status: 0 consistent, 1 divergent, 2 usage or unreadable input, 3 undecided, no evidence or unsupported "
    "(or seeds not as issued), 4 an unexpected failure"
)


def parser(version: str) -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="veridifr",
        description="Did this provider really run the model, weights and sampling settings it claims?",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=f"veridifr {version}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _demo(_command(commands, "demo", "audit the four bundled providers"))
    _audit(_command(commands, "audit", "judge traces against a reference and a calibration"))
    _compare(_command(commands, "compare", "judge several providers of one model together"))
    arguments_collect.add(_command(commands, "collect", "ask a server for the sequences of an audit"))
    _plan(_command(commands, "plan", "say how many sequences and tokens an audit takes to find a deviation"))
    _calibrate(_command(commands, "calibrate", "learn from honest traces what honest runs look like"))
    _replay(_command(commands, "replay", "run the reference once and keep its evidence in a file"))
    _identify(_command(commands, "identify", "name the sampler contract that tokens fit, if one does"))
    _samplers(_command(commands, "samplers", "list the sampler contracts"))
    _noise(_command(commands, "noise", "print a contract's noise for chosen token ids"))
    _report(_command(commands, "report", "render findings (JSON) again as text and HTML"))
    _import(_command(commands, "import", "turn another tool's output into traces"))
    _seeds(_command(commands, "seeds", "issue the seeds of an audit from a secret, and check them"))
    _serve_flags(_command(commands, "serve-flags", "print what switches capture on in a vLLM server"))
    return top


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str
) -> argparse.ArgumentParser:
    added = commands.add_parser(name, help=what, description=what[0].upper() + what[1:] + ".", epilog=EPILOG)
    added.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return added


def _reference_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--reference",
        required=True,
        metavar="R",
        help="hf:DIR, hf:ORG/MODEL (with --revision), the URL of a trusted server, or evidence:FILE",
    )
    command.add_argument("--revision", metavar="REV", help="commit of a hub model")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: float32 on a CPU")
    command.add_argument("--device", metavar="DEV", help="cpu, cuda, cuda:1; default: cuda where there is one")
    command.add_argument("--threads", type=_count, metavar="N", help="CPU threads of the reference")
    command.add_argument(
        "--model-files",
        type=Path,
        metavar="DIR",
        help="of a server: folder with its model's config.json and tokenizer.json",
    )
    command.add_argument("--served-model", metavar="NAME", help="of a server: which of its models, if it has several")
    command.add_argument(
        "--top-logprobs",
        type=_count,
        default=TOP_LOGPROBS,
        metavar="N",
        help=f"of a server: tokens that it lists at each position (default {TOP_LOGPROBS})",
    )
    command.add_argument(
        "--reference-key-file",
        type=Path,
        metavar="F",
        help="of a server: file with its key (default: the environment variable VERIDIFR_REFERENCE_KEY)",
    )


def _quiet(command: argparse.ArgumentParser) -> None:
    command.add_argument("--quiet", action="store_true", help="no progress bar, no text on standard output")


def _outputs(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", type=Path, metavar="OUT", help="write the finding as JSON")
    command.add_argument("--report", type=Path, metavar="HTML", help="write the report as one HTML file")


def _demo(command: argparse.ArgumentParser) -> None:
    _outputs(command)
    command.add_argument("--threads", type=_count, metavar="N", help="CPU threads of the reference")
    _quiet(command)


def _audit(command: argparse.ArgumentParser) -> None:
    command.add_argument("traces", nargs="+", type=Path, metavar="TRACES", help="trace files (JSON lines or Parquet)")
    _reference_options(command)
    command.add_argument("--calibration", required=True, type=Path, metavar="C", help="from `veridifr calibrate`")
    command.add_argument("--alpha", type=_alpha, default=0.01, metavar="A", help="false-positive rate (default 0.01)")
    command.add_argument("--requests", type=Path, metavar="FILE", help="what was asked for: id, prompt, sampling")
    command.add_argument(
        "--engine", metavar="JSON", help="fix the engine record (JSON, or @FILE); default: the commonest"
    )
    command.add_argument(
        "--seed-secret-file",
        type=Path,
        metavar="F",
        help="check first that the seeds are those issued from this secret",
    )
    command.add_argument("--resume", type=Path, metavar="FILE", help="keep evidence here, and go on from it")
    command.add_argument(
        "--sequential",
        action="store_true",
        help="look sequence by sequence and stop once decided; files of later purchases are given after the first",
    )
    command.add_argument(
        "--seed", type=_whole, default=0, metavar="N", help="of the lots and the sequential order (default 0)"
    )
    command.add_argument(
        "--fingerprints",
        choices=("auto", "required", "off"),
        default="auto",
        help="test fingerprints: if the traces have some (default), of every sequence, or never",
    )
    command.add_argument(
        "--opened", metavar="TAP", help="fingerprints are of this tap alone, and count if they open their --roots"
    )
    command.add_argument(
        "--roots", type=Path, metavar="FILE", help="the traces (or id and commitment) as they came with the responses"
    )
    _sampler(command)
    command.add_argument(
        "--never-give-up",
        action="store_true",
        help="with --sequential: look on for small deviations, and for those on a part of the requests",
    )
    _outputs(command)
    _quiet(command)


def _compare(command: argparse.ArgumentParser) -> None:
    command.add_argument("traces", nargs="+", type=Path, metavar="TRACES", help="one trace file for each provider")
    _reference_options(command)
    command.add_argument("--calibration", required=True, type=Path, metavar="C", help="from `veridifr calibrate`")
    command.add_argument(
        "--alpha", type=_alpha, default=0.01, metavar="A", help="false-positive rate of all together (default 0.01)"
    )
    command.add_argument(
        "--requests",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="what was asked for: one file for all, or one for each in the order of the traces",
    )
    command.add_argument("--resume", type=Path, metavar="DIR", help="keep evidence in this folder, and go on from it")
    command.add_argument("--title", default="Providers compared", help="headline of the HTML report")
    _sampler(command)
    _outputs(command)
    _quiet(command)


def _calibrate(command: argparse.ArgumentParser) -> None:
    command.add_argument("traces", nargs="+", type=Path, metavar="HONEST", help="honest traces, one file per stack")
    _reference_options(command)
    command.add_argument("--out", required=True, type=Path, metavar="C", help="the calibration to write")
    command.add_argument(
        "--detect",
        type=_detect,
        metavar="sigma=S",
        help="smallest logit noise that a consistent verdict rules out (default: twice the honest)",
    )
    _specification(command)
    _sensitivity(command)
    _sampler(command)
    command.add_argument("--resume", type=Path, metavar="FILE", help="keep evidence here, and go on from it")
    _quiet(command)


def _sampler(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sampler",
        choices=("auto", "unknown"),
        default="auto",
        help="auto (default): as the engine record says; unknown: seeds are ignored, the distribution alone counts",
    )


def _identify(command: argparse.ArgumentParser) -> None:
    command.add_argument("traces", nargs="+", type=Path, metavar="TRACES", help="trace files with seeds")
    _reference_options(command)
    command.add_argument("--resume", type=Path, metavar="FILE", help="keep evidence here, and go on from it")
    command.add_argument("--json", dest="json_output", action="store_true", help="as JSON")
    _quiet(command)


def _plan(command: argparse.ArgumentParser) -> None:
    command.add_argument("--calibration", required=True, type=Path, metavar="C", help="from `veridifr calibrate`")
    command.add_argument(
        "--deviation", required=True, metavar="D", help=f"sigma=X in logits, or a name: {', '.join(MULTIPLES)}"
    )
    command.add_argument(
        "--fingerprints", action="store_true", help="by fingerprints alone; for sigma=X: errors=X, times the honest"
    )
    command.add_argument(
        "--share", type=_share, default=1.0, metavar="S", help="share of the requests that deviate (default 1)"
    )
    command.add_argument("--alpha", type=_alpha, default=0.01, metavar="A", help="false-positive rate (default 0.01)")
    command.add_argument("--power", type=_share, default=0.9, metavar="P", help="chance of finding it (default 0.9)")
    command.add_argument("--tokens", type=_count, metavar="L", help="length of a sequence (default: the cheapest)")
    command.add_argument("--json", dest="json_output", action="store_true", help="as JSON")


def _replay(command: argparse.ArgumentParser) -> None:
    command.add_argument("traces", nargs="+", type=Path, metavar="TRACES", help="trace files")
    _reference_options(command)
    command.add_argument("--out", required=True, type=Path, metavar="EVIDENCE", help="written, or gone on with")
    _specification(command)
    _sensitivity(command)
    _quiet(command)


def _specification(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--fingerprints", type=Path, metavar="SPEC", help="a fingerprint specification (JSON): also project by it"
    )


def _sensitivity(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--sensitivity",
        action="store_true",
        help="judge fingerprints against how far rounding moves each hidden state: finds far smaller deviations, and "
        "takes the reference a second forward pass, in float32",
    )


def _samplers(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", dest="json_output", action="store_true", help="as JSON")


def _noise(command: argparse.ArgumentParser) -> None:
    command.add_argument("contract", metavar="CONTRACT")
    command.add_argument("--seed", required=True, type=int, metavar="S")
    command.add_argument("--position", type=int, metavar="P", help="absolute position of the last input token, P-1+t")
    command.add_argument("--step", type=int, metavar="T", help="output index t, from 0")
    command.add_argument("--vocab-size", required=True, type=int, metavar="V", help="width of the logits row")
    command.add_argument("--ids", required=True, type=_ids, metavar="I,J", help="token ids, comma-separated")
    command.add_argument("--multiprocessors", type=int, metavar="N", help="of the provider's GPU")
    command.add_argument("--threads-per-multiprocessor", type=int, metavar="M", help="of the provider's GPU")
    command.add_argument("--json", dest="json_output", action="store_true", help="as JSON")


def _report(command: argparse.ArgumentParser) -> None:
    command.add_argument("findings", nargs="+", type=Path, metavar="JSON", help="findings written by --json")
    command.add_argument("--html", type=Path, metavar="HTML", help="write the report as one HTML file")
    command.add_argument("--title", default="Inference audit", help="headline of the HTML report")


def _import(command: argparse.ArgumentParser) -> None:
    command.add_argument("kind", choices=("difr", "openai", "token-difr"), help="whose file it is")
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument("--sampling", required=True, metavar="JSON", help="the settings asked for (JSON, or @FILE)")
    command.add_argument("--engine", required=True, metavar="JSON", help="the engine record (JSON, or @FILE)")
    command.add_argument("--model", metavar="NAME", help="the model claimed")
    command.add_argument("--out", required=True, type=Path, metavar="TRACES", help="trace file to write")


def _seeds(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = _command(actions, "new-secret", "write a fresh secret to a new file that only you can read")
    new.add_argument("--out", required=True, type=Path, metavar="F", help="must not exist")
    issue = _command(actions, "issue", "give each request its seed, and print the commitment to publish")
    issue.add_argument("requests", type=Path, metavar="REQUESTS", help="what to ask for: id, prompt, sampling")
    _secret_file(issue)
    issue.add_argument("--audit-id", required=True, metavar="A", help="a name for the audit, new for each")
    issue.add_argument("--bits", type=int, default=31, metavar="N", help="width of the seeds, 31 (default) to 63")
    issue.add_argument("--out", required=True, type=Path, metavar="ASKED", help="the requests with seeds, JSON lines")
    check = _command(actions, "check", "recompute every seed; exit status 3 where one is not as issued")
    check.add_argument("traces", nargs="+", type=Path, metavar="TRACES", help="trace files, or requests with seeds")
    _secret_file(check)


def _serve_flags(command: argparse.ArgumentParser) -> None:
    add_serve_options(command)
    command.add_argument("--vllm-version", metavar="V", help="of this version (default: the one that is installed)")
    command.add_argument("--json", dest="json_output", action="store_true", help="as JSON")


def _secret_file(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--secret-file", required=True, type=Path, metavar="F", help="from `veridifr seeds new-secret`"
    )


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 0")
    return int(text)


def _alpha(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 0.5:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0 and below 0.5")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number above 0 and at most 1")
    return value


def _detect(text: str) -> float:
    name, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = 0.0
    if name != "sigma" or not 0.0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected sigma=S with S in logits above 0")
    return value


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected token ids like 0,1,17") from None
