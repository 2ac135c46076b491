#!/usr/bin/env bash
# Sets up, then lints, checks types and runs all tests but those that need Isaac Lab, l2f or a GPU.
# Arguments go to pytest: bash scripts/test.sh tests/config -x
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh dev
unset PYTHONDONTWRITEBYTECODE # hundreds of tests start a command: each reads what the first one compiled

failed=()
check() { # name, command...
    local name="$1"
    shift
    say "$name: $*"
    "$@" || failed+=("$name")
}

check lint "$VENV_PYTHON" -m ruff check .
check format "$VENV_PYTHON" -m ruff format --check .
check types "$VENV_PYTHON" -m pyright --pythonpath "$VENV_PYTHON"
workers="$("$VENV_PYTHON" -c 'import os; print(min(8, os.cpu_count() or 1))')"
check tests "$VENV_PYTHON" -m pytest --numprocesses "$workers" --dist loadfile --no-loadscope-reorder "$@"

if [ "${#failed[@]}" -gt 0 ]; then
    say "failed: ${failed[*]}"
    exit 1
fi
say "all passed"
