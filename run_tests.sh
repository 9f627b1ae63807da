#!/usr/bin/env bash
# Run the checks and the tests: ./run_tests.sh [pytest's arguments]
set -euo pipefail
cd "$(dirname "$0")"
. ./environment.sh
use_python "$PWD/requirements-dev.txt"
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m pytest --numprocesses 2 --dist loadfile "$@"
