#!/usr/bin/env bash
# Builds an environment with rl-tools' real packages (l2f, foundation-policy; once for each set of pins) and runs the tests
# that compare with them live. Without it, scripts/test.sh compares with flights that were recorded from them.
# Arguments go to pytest: bash scripts/test_l2f.sh -k hover
#
# Both exist as source only. g++ takes 6 GB of memory and ten minutes for l2f: one at a time, and the wheels are kept in
# .cache/wheels.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=".cache/l2f" source scripts/setup.sh dev

wheels=.cache/wheels
mkdir -p "$wheels"
export MAKEFLAGS=-j1 CMAKE_BUILD_PARALLEL_LEVEL=1
for package in l2f foundation-policy; do
    version="$(sed -n "s/^$package==//p" constraints.txt)"
    if "$VENV_PYTHON" -c "from importlib.metadata import version; import sys; sys.exit(version('$package') != '$version')" \
        2>/dev/null; then
        continue
    fi
    if ! compgen -G "$wheels/${package//-/_}-$version-*.whl" >/dev/null; then
        say "building $package $version (minutes, once)"
        "$VENV_PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$wheels" "$package==$version"
    fi
    "$VENV_PYTHON" -m pip install --quiet --constraint constraints.txt --find-links "$wheels" "$package==$version"
done

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
say "running the tests marked l2f"
"$VENV_PYTHON" -m pytest -m l2f tests "$@"
say "all passed"
