#!/usr/bin/env bash
# Builds an environment with mjlab (once for each set of pins) and runs the tests that need it.
# Arguments go to pytest: bash scripts/test_mjlab.sh -k graphs
#
# No GPU or display is needed. The simulator's compiled kernels are kept in .cache/warp; the first run compiles them
# (minutes).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pins=scripts/mjlab-requirements.txt
python="${PYTHON:-python3.11}"
say() { printf '==> %s\n' "$*"; }

if ! command -v "$python" >/dev/null; then
    echo "error: $python not found; set PYTHON=/path/to/python3.11 (or 3.12)" >&2
    exit 2
fi

fingerprint="$({ cat "$pins" pyproject.toml; "$python" --version; echo "$PWD"; } | sha256sum | cut -c1-12)"
venv=".cache/mjlab-$fingerprint"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input)
if [ ! -f "$venv/.complete" ]; then
    say "building $venv (minutes, once)"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    "${pip[@]}" --requirement "$pins"
    "${pip[@]}" --no-deps --no-build-isolation --editable .
    touch "$venv/.complete"
fi

export WARP_CACHE_PATH="${WARP_CACHE_PATH:-$PWD/.cache/warp}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
say "running the tests marked mjlab in $venv"
"$venv/bin/python" -m pytest -m mjlab tests/mjlab "$@"
if [ $# = 0 ]; then # pytest ends with an error where arguments such as -k leave no test over
    say "running the engines' contract on mjlab"
    "$venv/bin/python" -m pytest -k mjlab tests/engines/test_vec_env_contract.py
fi
say "all passed"
