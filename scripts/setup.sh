#!/usr/bin/env bash
# Makes the virtual environment that the other scripts run in. What is there already is left as it is.
#
#   source scripts/setup.sh "extras"     e.g. dev, or "" for none; afterwards $VENV_PYTHON is its Python
#
# PYTHON=/path/to/python3.12 chooses the interpreter, VENV=folder the place (default: .venv).

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '==> %s\n' "$*"; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3 python}; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
            >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        echo "error: PYTHON=$PYTHON is not Python 3.11 or 3.12 with its venv module" >&2
    else
        echo "error: found neither Python 3.11 nor 3.12 with its venv module; install one, or set PYTHON=/path/to/it" >&2
    fi
    return 2
}

fingerprint() { # of everything that decides what is installed
    "$1" - "$2" <<'PY'
import hashlib, pathlib, sys
files = [pathlib.Path(name) for name in ("pyproject.toml", "setup.py", "constraints.txt")]
text = b"".join(path.read_bytes() for path in files) + f"{sys.version} {sys.argv[1]} {pathlib.Path.cwd()}".encode()
print(hashlib.sha256(text).hexdigest())
PY
}

set_up() {
    local extras="$1" venv="${VENV:-.venv}" python stamp wanted target="."
    export PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
    VENV_PYTHON="$venv/bin/python"
    if [ ! -x "$VENV_PYTHON" ]; then
        python="$(find_python)" || exit 2
        say "making a virtual environment in $venv with $python"
        "$python" -m venv "$venv"
    fi
    [ -n "$extras" ] && target=".[$extras]"
    stamp="$venv/.installed-${extras:-base}"
    wanted="$(fingerprint "$VENV_PYTHON" "$extras")"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        say "packages are installed already in $venv"
        return
    fi
    say "installing $target with the versions of constraints.txt into $venv (minutes, the first time)"
    # Stopped while it was made, an environment has no pip.
    "$VENV_PYTHON" -c 'import pip' 2>/dev/null || "$VENV_PYTHON" -m ensurepip >/dev/null
    "$VENV_PYTHON" -m pip install --quiet --constraint constraints.txt --editable "$target"
    echo "$wanted" >"$stamp"
    fingerprint "$VENV_PYTHON" "" >"$venv/.installed-base" # extras include it
}

set_up "${1:-}"
export VENV_PYTHON
