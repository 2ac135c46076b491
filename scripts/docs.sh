#!/usr/bin/env bash
# Builds the site into docs/_build/html: warnings are errors, nothing is fetched but the packages of extra docs.
# Arguments go to sphinx-build.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh docs

"$VENV_PYTHON" scripts/make_reference.py --check || {
    echo "error: docs/reference is out of date: python scripts/make_reference.py" >&2
    exit 1
}
"$VENV_PYTHON" -m sphinx -W --keep-going -b html docs docs/_build/html "$@"
say "open docs/_build/html/index.html"
