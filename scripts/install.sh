#!/usr/bin/env bash
# Create .venv beside the package if it is missing and install the package with the given extras ("dev", "all", ...).
set -euo pipefail
cd "$(dirname "$0")/.."
extras="${1:-}"
python="${PYTHON:-python3}"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Python 3.11 or newer is needed; found $("$python" --version). Set PYTHON to another interpreter." >&2
    exit 1
}
[ -x .venv/bin/python ] || "$python" -m venv .venv
# A stamp keeps the second run quick: nothing is installed again while the requirements are the same.
stamp=".venv/installed-${extras:-core}"
if [ ! -f "$stamp" ] || [ setup.cfg -nt "$stamp" ]; then
    echo "Installing kmaskformer${extras:+[$extras]} into .venv ..."
    .venv/bin/python -m pip install --quiet --upgrade pip
    .venv/bin/python -m pip install --quiet --editable ".${extras:+[$extras]}"
    touch "$stamp"
fi
