# shellcheck shell=bash
# Sourced by the other scripts: `use_python FILE` sets PYTHON to an interpreter with the packages of requirements FILE.
#
# If $PYTHON is set, it must have them. Otherwise, python3 (the active environment) is used if it has them, then .venv,
# which is created or updated if necessary, with the versions pinned in constraints.txt.

# Without this, bash runs the next command if the interrupted one handles Ctrl-C itself.
trap 'exit 130' INT

use_python() {
    local requirements=$1 root venv
    root=$(dirname "$requirements")
    venv=$root/.venv
    if [ -n "${PYTHON:-}" ]; then
        _has_packages "$PYTHON" "$requirements" || {
            echo "PYTHON=$PYTHON: lacks packages of $requirements. Install them there, or unset PYTHON" >&2
            return 2
        }
        PYTHON=$(command -v "$PYTHON")
        case $PYTHON in
            */*) PYTHON=$(cd "$(dirname "$PYTHON")" && pwd)/$(basename "$PYTHON") ;;
        esac
        return 0
    fi
    for PYTHON in python3 "$venv/bin/python"; do
        if _has_packages "$PYTHON" "$requirements" 2>/dev/null; then
            return 0
        fi
    done
    echo "installing the packages of $requirements into $venv (once; several GB)" >&2
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
            echo "python3: is older than 3.11. Run python3.12 -m venv $venv and then this script again" >&2
            return 2
        }
        python3 -m venv --clear "$venv"
    fi
    "$PYTHON" -m pip install --quiet --disable-pip-version-check \
        --requirement "$requirements" --constraint "$root/constraints.txt" >&2
    _has_packages "$PYTHON" "$requirements"
}

# Check that interpreter $1 has the packages of file $2. Print the first missing one to stderr.
_has_packages() {
    command -v "$1" >/dev/null && "$1" - "$2" <<'PYTHON'
import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback on Ctrl-C

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if sys.version_info < (3, 11):
    sys.exit(f"Python {sys.version.split()[0]} is older than 3.11")
try:
    from pip._vendor.packaging.requirements import Requirement
except ImportError:
    from packaging.requirements import Requirement


def requirements(path):
    for line in path.read_text().splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("-r"):
            yield from requirements(path.parent / line.removeprefix("-r").strip())
        elif line:
            yield Requirement(line)


for requirement in requirements(Path(sys.argv[1])):
    if requirement.marker and not requirement.marker.evaluate():
        continue
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        sys.exit(f"{requirement.name} is not installed")
    if not requirement.specifier.contains(installed, prereleases=True):
        sys.exit(f"{requirement} is required, {installed} is installed")
PYTHON
}
