#!/usr/bin/env bash
# Install what the tests need, check style and import layers, run the default tests, then the quickstart in miniature.
# Further arguments go to pytest: `bash scripts/test.sh -m slow`.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/install.sh dev
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/lint-imports
if [ $# -eq 0 ]; then
    QUICKSTART_OUTPUT="$(mktemp -d)/quickstart" bash scripts/quickstart.sh --smoke
fi
# A process per core, but no more than four: each takes two or three GB.
.venv/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile "$@"
