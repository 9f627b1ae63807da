#!/usr/bin/env bash
# Run the checks and the tests.
set -euo pipefail

usage() {
    cat <<USAGE
usage: $0 [pytest arguments]
  $0                  all checks and tests (about 15 minutes on 2 cores)
  $0 -m "not slow"    all checks and the fast tests (under 3 minutes)
USAGE
}

case ${1:-} in -h | --help) usage && exit 0 ;; esac
cd "$(dirname "$0")"
. ./environment.sh
use_python "$PWD/requirements-dev.txt"
# Reject invalid pytest options now rather than after the checks.
"$PYTHON" -m pytest --noconftest --markers "$@" >/dev/null || { usage >&2 && exit 2; }
"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
"$PYTHON" -m mypy
tools=$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("scripts"))')
# requirements-dev.txt omits these two on platforms without wheels.
if [ -x "$tools/shellcheck" ]; then "$tools/shellcheck" -- *.sh configs/cluster/*.sh .ci/run; fi
if [ -x "$tools/hadolint" ]; then "$tools/hadolint" Dockerfile; fi
# One thread per process: the threads of two processes would wait for each other on two cores.
OMP_NUM_THREADS=1 "$PYTHON" -m pytest --numprocesses 2 --dist loadfile "$@"
