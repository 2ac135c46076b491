#!/usr/bin/env bash
# Builds an environment with the real Isaac Lab 3.0 (once for each set of pins) and runs the tests that need it.
# Arguments go to pytest: bash scripts/test_isaaclab.sh -k physics
#
# Python 3.11 with torch for the CPU is not what Isaac Lab asks for (3.12 and torch 2.11), but everything here runs on it,
# it takes 2 GB instead of 6, and it is what the rest of the tests run on. PYTHON=python3.12 takes the other one.
#
# No Isaac Sim, GPU or display is needed: Newton physics runs on the CPU. Its compiled kernels are kept in .cache/warp;
# the first run compiles them (two minutes).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

isaaclab=3.0.0
pins=scripts/isaaclab-requirements.txt
pins23=scripts/isaaclab23-requirements.txt
python="${PYTHON:-python3.11}"
say() { printf '==> %s\n' "$*"; }

if ! command -v "$python" >/dev/null; then
    echo "error: $python not found; set PYTHON=/path/to/python3.11 (or 3.12)" >&2
    exit 2
fi

fingerprint() { # files...
    { cat "$@"; "$python" --version; echo "$isaaclab $PWD"; } | sha256sum | cut -c1-12
}

venv=".cache/isaaclab-$(fingerprint "$pins" pyproject.toml)"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input)
if [ ! -f "$venv/.complete" ]; then
    say "building $venv (minutes, once)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "${pip[@]}" --requirement "$pins"
    "${pip[@]}" --no-deps --ignore-requires-python "isaaclab==$isaaclab"
    "${pip[@]}" --no-deps --no-build-isolation --editable .
    touch "$venv/.complete"
fi

export WARP_CACHE_PATH="${WARP_CACHE_PATH:-$PWD/.cache/warp}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
say "running the tests marked isaaclab in $venv"
"$venv/bin/python" -m pytest -m isaaclab tests/isaaclab "$@"
if [ $# = 0 ]; then # pytest ends with an error where arguments such as -k leave no test over
    say "running the engines' contract on Isaac Lab"
    "$venv/bin/python" -m pytest -k "isaaclab and not isaaclab23" tests/engines/test_vec_env_contract.py
fi

# Isaac Lab 2.3 needs Isaac Sim, which cannot run here: its real Python code runs with stand-ins for Isaac Sim alone.
# The wheel is for Python 3.11.
if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    say "left out: the contract test of Isaac Lab 2.3, whose wheel is for Python 3.11"
    exit 0
fi
wheel=".cache/isaaclab23-$(fingerprint "$pins23")"
if [ ! -f "$wheel/.complete" ]; then
    say "unpacking Isaac Lab 2.3 into $wheel (once)"
    rm -rf "$wheel"
    "${pip[@]}" --no-deps --target "$wheel" --requirement "$pins23"
    touch "$wheel/.complete"
fi
say "running the tests marked isaaclab23 with $wheel"
ISAACLAB23="$PWD/$wheel" "$venv/bin/python" -m pytest -m isaaclab23 tests/isaaclab23 "$@"
say "all passed"
